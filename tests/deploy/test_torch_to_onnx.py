"""Export: one quiet file, a free batch, the same numbers."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from deploy.engines import load_engine
from deploy.errors import DeployError
from deploy.exporting.parity import INPUTS, parity
from deploy.exporting.torch_to_onnx import export_onnx

pytestmark = pytest.mark.heavy


@pytest.mark.parametrize("network", ["cnn", "resnet"])
def test_the_file_computes_what_the_model_computes(network, request, images, tmp_path):
    model = request.getfixturevalue(network)
    example = torch.from_numpy(images)
    path = export_onnx(model, example[:1], tmp_path / "model.fp32.onnx")
    with load_engine(path) as engine:
        found = parity(model, engine, example, batches=(1, 2, 5))
    assert [row["batch"] for row in found] == [1, 2, 5]
    assert max(row["max_relative_error"] for row in found) <= 1e-4
    assert min(row["snr_db"] for row in found) > 100


@pytest.fixture(scope="module")
def uneven(cnn, images, tmp_path_factory):
    """The network with channels whose weights lie six orders of magnitude apart, taken back by the next layer."""
    model = copy.deepcopy(cnn)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for norm, after in ((model[1], model[3]), (model[4], model[6])):
            scale = 10 ** (6 * torch.rand(len(norm.weight), generator=generator) - 3)
            norm.weight *= scale
            norm.bias *= scale
            after.weight /= scale.reshape(1, -1, 1, 1)
    path = tmp_path_factory.mktemp("uneven") / "uneven.fp32.onnx"
    return model, export_onnx(model, torch.from_numpy(images), path)


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("network", ["resnet", "uneven"])
def test_hard_inputs_and_uneven_channels_change_nothing(network, runtime, request, images, files):
    model, path = (
        request.getfixturevalue("uneven") if network == "uneven" else (request.getfixturevalue("resnet"), None)
    )
    with load_engine(path or files["fp32"], runtime=runtime) as engine:
        found = parity(model, engine, torch.from_numpy(images), inputs=tuple(INPUTS))
    assert [(row["inputs"], row["batch"]) for row in found] == [(k, b) for k in INPUTS for b in (1, 2, 7)]
    assert {"real", "times 1000", "times 0.001", "constant", "negated", "zeros", "saturated"} <= set(INPUTS)
    assert max(row["max_relative_error"] for row in found) <= 1e-4
    assert min(row["snr_db"] for row in found) > 80


def test_hard_inputs_show_what_an_engine_rounds(resnet, images, files):
    """int8 is calibrated for real images: the comparison has to see that others leave its range."""
    with load_engine(files["int8"]) as engine:
        rows = parity(resnet, engine, torch.from_numpy(images), inputs=("real", "times 1000"))
    worst = {kind: min(row["snr_db"] for row in rows if row["inputs"] == kind) for kind in ("real", "times 1000")}
    assert worst["real"] > 15 > 5 > worst["times 1000"]


@pytest.mark.parametrize("fails", [False, True])
def test_export_restores_each_activation_in_place(fails, tmp_path):
    seen = []

    class Last(nn.Module):
        def forward(self, x):
            seen.append([model[k].inplace for k in (1, 2, 3)])
            return x if not fails or x.sum() > 0 else -x

    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU(inplace=True), nn.Hardswish(), nn.ReLU6(inplace=True), Last())
    model.train()
    if fails:
        with pytest.raises(DeployError, match="cannot export Sequential"):
            export_onnx(model, torch.ones(2, 3), tmp_path / "m.onnx")
    else:
        export_onnx(model, torch.ones(2, 3), tmp_path / "m.onnx")
    assert seen
    assert not any(map(any, seen))
    assert [model[k].inplace for k in (1, 2, 3)] == [True, False, True]
    assert all(part.training for part in model.modules())


def test_export_is_quiet_and_restores_each_training_flag(cnn, images, tmp_path, capfd):
    cnn.train()
    cnn[1].eval()
    before = [module.training for module in cnn.modules()]
    try:
        path = export_onnx(cnn, torch.from_numpy(images), tmp_path / "a.onnx")
        assert [module.training for module in cnn.modules()] == before
    finally:
        cnn.eval()
    assert capfd.readouterr() == ("", "")
    assert [file.name for file in tmp_path.iterdir()] == ["a.onnx"]
    with load_engine(path) as engine:  # evaluation mode is what was written, whatever the flags said
        assert parity(cnn, engine, torch.from_numpy(images))[0]["max_relative_error"] < 1e-4


def test_the_file_says_what_it_is_and_nothing_of_the_machine(files):
    import onnx

    model = onnx.load(files["fp32"])
    assert {p.key: p.value for p in model.metadata_props} == {"origin": "test", "niwaki.precision": "fp32"}
    assert b"conftest.py" not in files["fp32"].read_bytes()
    assert str(files["fp32"].parent).encode() not in files["fp32"].read_bytes()


def test_names_and_free_batch_are_as_asked(cnn, images, tmp_path):
    path = export_onnx(cnn, torch.from_numpy(images), tmp_path / "m.onnx", input_name="x", output_name="y")
    with load_engine(path) as engine:
        assert engine.inputs["x"].shape == (None, 1, 16, 16)
        assert engine.outputs["y"].shape == (None, 5)


def test_a_model_that_cannot_be_exported_is_one_sentence(tmp_path):
    class Branching(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    with pytest.raises(DeployError, match="cannot export Branching"):
        export_onnx(Branching(), torch.ones(2, 3), tmp_path / "m.onnx")
    assert list(tmp_path.iterdir()) == []


def test_parity_sees_a_wrong_engine_and_refuses_a_zero_model(cnn, resnet, images, files):
    example = torch.from_numpy(images)
    with load_engine(files["fp32"]) as engine:
        wrong = parity(cnn, engine, example)
        assert min(row["max_relative_error"] for row in wrong) > 0.01
        assert parity(resnet, engine, example, seed=4) == parity(resnet, engine, example, seed=4)
        zero = nn.Sequential(nn.Flatten(), nn.Linear(256, 5))
        nn.init.zeros_(zero[1].weight)
        nn.init.zeros_(zero[1].bias)
        with pytest.raises(DeployError, match=r"largest output of the model is 0\.0"):
            parity(zero, engine, example)


def test_parity_of_equal_outputs_is_finite(cnn, images):
    from deploy.engines.base import Engine, TensorSpec

    class Same(Engine):
        name, runtime, precision = "same", "test", "fp32"
        inputs = {"image": TensorSpec("float32", (None, 1, 16, 16))}  # noqa: RUF012  (a fake, never changed)
        outputs = {"logits": TensorSpec("float32", (None, 5))}  # noqa: RUF012

        def _run(self, feeds):
            with torch.inference_mode():
                return {"logits": cnn(torch.from_numpy(feeds["image"])).numpy()}

        def close(self):
            pass

    found = parity(cnn, Same(), torch.from_numpy(images))
    assert all(row["max_relative_error"] == 0 and np.isfinite(row["snr_db"]) for row in found)


class Caching(nn.Module):
    """Keeps a table that it made for the last size, as a detector keeps its grid."""

    def __init__(self):
        super().__init__()
        self.linear, self.table, self.width = nn.Linear(4, 3), torch.zeros(0), 0

    def forward(self, x):
        if self.width != x.shape[1]:
            self.table, self.width = x.new_ones(x.shape[1]), x.shape[1]
        return self.linear(x * self.table)


def test_a_table_that_a_network_keeps_is_good_for_training_after_an_export(tmp_path):
    model, x = Caching(), torch.rand(2, 4)
    with load_engine(export_onnx(model, x, tmp_path / "m.fp32.onnx")) as engine:
        parity(model, engine, x)
    model(x).sum().backward()  # "Inference tensors cannot be saved for backward" where it was made for inference alone
    assert model.linear.weight.grad.abs().sum() > 0
