"""Networks with several inputs and outputs, dicts, scalars and fixed sizes: from the export to the bench."""

import numpy as np
import pytest
import torch
from torch import nn

import deploy
from deploy.engines import load_engine
from deploy.engines.torch import TorchEngine
from deploy.errors import DeployError
from deploy.exporting.parity import parity
from deploy.exporting.torch_to_onnx import export_onnx

pytestmark = pytest.mark.heavy

IMAGES = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Fused(nn.Module):
    """An image, a vector beside it and a scalar, to a dict of an embedding and logits."""

    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4 + 5, 6)

    def forward(self, photo, facts, scale):
        seen = self.body(photo).mean((2, 3)) * scale
        return {"zeta": self.head(torch.cat([seen, facts], 1)), "alpha": seen, "aux": None}


class Pair(nn.Module):
    """Its outputs have other names than the order of the alphabet would give them."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, left, right):
        return self.layer(left) - self.layer(right), (left * right).sum(1)


class Fixed(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(192, 3)

    def forward(self, x):
        return self.layer(x.view(2, -1))


class Branching(nn.Module):
    def forward(self, x):
        if x.sum() > 0:
            return x + 1
        return x - 1


@pytest.fixture(scope="module")
def fused(tmp_path_factory):
    torch.manual_seed(0)
    example = {"photo": IMAGES, "facts": torch.randn(2, 5), "scale": torch.tensor(1.5)}
    model = Fused().eval()
    return model, example, export_onnx(model, example, tmp_path_factory.mktemp("fused") / "fused.onnx")


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_number_11_several_inputs_and_a_dict_go_from_export_to_bench(fused, runtime):
    model, example, path = fused
    with load_engine(path, runtime=runtime) as engine, TorchEngine(model, example) as plain:
        assert {name: spec.shape for name, spec in engine.inputs.items()} == {
            "photo": (None, 3, 8, 8), "facts": (None, 5), "scale": (),
        }  # fmt: skip
        assert list(engine.outputs) == ["zeta", "alpha"]
        assert plain.inputs == engine.inputs and list(plain.outputs) == list(engine.outputs)
        rows = parity(model, engine, example, inputs=("real", "negated"))
        assert max(row["max_relative_error"] for row in rows) < 1e-5 and len(rows) == 6
        plain.name = "torch"
        feeds = {name: tensor.numpy() for name, tensor in example.items()}
        records = deploy.benchmark([engine, plain], feeds, rounds=2, warmup=2, min_seconds=0)
        assert [record.batch for record in records] == [2, 2]


def test_number_11_a_tuple_of_inputs_takes_the_names_of_the_arguments(tmp_path):
    example = (torch.randn(2, 4), torch.randn(2, 4))
    path = export_onnx(Pair(), example, tmp_path / "pair.onnx", output_name=("gap", "product"))
    with load_engine(path) as engine:
        assert (list(engine.inputs), list(engine.outputs)) == (["left", "right"], ["gap", "product"])
        assert engine.run({name: np.ones((5, 4), np.float32) for name in engine.inputs})["gap"].shape == (5, 3)
    with pytest.raises(DeployError, match=r"gives 2 tensors but 1 names: output_0, output_1"):
        export_onnx(Pair(), example, tmp_path / "pair.onnx", output_name="logits")


def test_number_11_parity_finds_the_output_that_is_wrong(fused):
    model, example, path = fused
    with load_engine(path) as engine, torch.no_grad():
        model.head.bias += 1
        try:
            assert parity(model, engine, example)[0]["max_relative_error"] > 0.01
        finally:
            model.head.bias -= 1


def test_number_11_a_view_of_two_rows_is_named_as_the_cause(tmp_path):
    with pytest.raises(DeployError) as caught:
        export_onnx(Fixed(), IMAGES, tmp_path / "fixed.onnx")
    said = str(caught.value)
    assert "fixes the batch of 'image' to 2, as view(2, -1) does; take sizes from the tensor" in said
    assert "\n" not in said and "exportdb" not in said


def test_number_11_a_branch_on_data_is_named_with_its_line(tmp_path):
    with pytest.raises(DeployError, match=r"data-dependent.* in forward, test_several_tensors.py line \d+: if x.sum"):
        export_onnx(Branching(), IMAGES, tmp_path / "branch.onnx")


def test_number_11_what_fails_on_its_example_or_gives_no_tensor_is_one_sentence(tmp_path):
    with pytest.raises(DeployError, match=r"Fixed fails on its example: .*mat1 and mat2"):
        export_onnx(Fixed(), torch.randn(3, 3, 8, 8), tmp_path / "fixed.onnx")

    class Text(nn.Module):
        def forward(self, x):
            return {"logits": x.flatten(1), "name": "cat"}

    with pytest.raises(DeployError, match="Text gives a str as 'name'"):
        export_onnx(Text(), IMAGES, tmp_path / "text.onnx")
    path = export_onnx(nn.Conv2d(3, 3, 1), IMAGES, tmp_path / "conv.onnx")
    with load_engine(path) as engine, pytest.raises(DeployError, match=r"takes .* and the example holds"):
        parity(Pair(), engine, (torch.randn(2, 4), torch.randn(2, 4)))
