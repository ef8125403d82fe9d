"""What a library computes otherwise, or leaves out, is refused by name and not answered wrongly."""

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from onnx import TensorProto, helper
from torch import nn

from deploy.engines import load_engine
from deploy.errors import DeployError
from deploy.exporting.torch_to_onnx import export_onnx

pytestmark = pytest.mark.heavy

IMAGES = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Of(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def _differs(path, module, runtime):
    with load_engine(path, runtime=runtime) as engine:
        found = engine.run({"image": IMAGES.numpy()})["logits"]
    return float(np.abs(found - module(IMAGES).numpy()).max())


REFUSED = {
    "antialias": (lambda x: F.interpolate(x, (5, 13), mode="bilinear", antialias=True), "a Resize with antialias"),
    "antialias, cubic": (lambda x: F.interpolate(x, (3, 3), mode="bicubic", antialias=True), "a Resize with antialias"),
    "counted padding": (
        lambda x: F.avg_pool2d(x, 3, 2, 1, ceil_mode=True),
        "an AveragePool that counts its padding and rounds its size up",
    ),
}
KEPT = {
    "no antialias": lambda x: F.interpolate(x, (5, 13), mode="bilinear"),
    "rounded up": lambda x: F.avg_pool2d(x, 3, 3, 0, ceil_mode=True),
    "padding not counted": lambda x: F.avg_pool2d(x, 3, 2, 1, ceil_mode=True, count_include_pad=False),
    "rounded down": lambda x: F.avg_pool2d(x, 3, 2, 1),
}


@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED)
def test_what_openvino_computes_otherwise_is_refused_there_and_right_elsewhere(case, tmp_path):
    function, said = case
    path = export_onnx(Of(function), IMAGES, tmp_path / "m.onnx")
    with pytest.raises(
        DeployError, match=rf"m\.onnx has {said} \(.*\), which OpenVINO computes differently; run it with"
    ):
        load_engine(path, runtime="openvino")
    assert _differs(path, Of(function), "onnxruntime") < 1e-5


def test_what_openvino_computes_alike_is_run(tmp_path):
    class All(nn.Module):
        def forward(self, x):
            return torch.cat([function(x).flatten(1) for function in KEPT.values()], 1)

    path = export_onnx(All(), IMAGES, tmp_path / "m.onnx")
    assert max(_differs(path, All(), runtime) for runtime in ("openvino", "onnxruntime")) < 1e-5


def test_plus_infinity_is_seen_or_refused(tmp_path):
    path = export_onnx(Of(lambda x: (1 / x.relu()).isinf().float()), IMAGES, tmp_path / "m.onnx")
    with pytest.raises(DeployError, match="has an IsInf of plus infinity"):
        load_engine(path, runtime="openvino")
    assert _differs(path, Of(lambda x: (1 / x.relu()).isinf().float()), "onnxruntime") == 0


@pytest.mark.parametrize("nested", [False, True])
def test_a_divisor_that_the_exporter_leaves_out_is_refused(nested, tmp_path):
    pooled = nn.AvgPool2d(3, 2, 1, divisor_override=5)
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sequential(pooled)) if nested else pooled
    with pytest.raises(DeployError, match=r"averages with divisor_override=5, which torch\.onnx leaves out"):
        export_onnx(model, IMAGES, tmp_path / "m.onnx")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("runtime", ["openvino", "onnxruntime"])
def test_the_logarithm_of_a_sigmoid_is_finite_where_torch_is(runtime, tmp_path):
    class All(nn.Module):
        def forward(self, x):
            seen = torch.sigmoid(x * 9)
            return torch.cat([F.logsigmoid(x * 40), seen.log(), seen, torch.sigmoid(x * -9).log() * 2], 1)

    path = export_onnx(All(), IMAGES, tmp_path / "m.onnx")
    assert _differs(path, All(), runtime) < 1e-4  # of up to 120; a runtime's sigmoid of -25 is 0
    assert _differs(export_onnx(Of(F.logsigmoid), IMAGES, tmp_path / "n.onnx"), Of(F.logsigmoid), runtime) < 1e-6


@pytest.mark.parametrize("kind", ["DOUBLE", "FLOAT16"])
@pytest.mark.parametrize("runtime", ["openvino", "onnxruntime"])
def test_an_input_that_is_cast_first_keeps_its_name(runtime, kind, tmp_path):
    nodes = [
        helper.make_node("Cast", ["image"], ["other"], to=getattr(TensorProto, kind)),
        helper.make_node("Cast", ["other"], ["back"], to=TensorProto.FLOAT),
        helper.make_node("Relu", ["back"], ["y"]),
    ]
    tensors = [[helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 4])] for name in ("image", "y")]
    graph = helper.make_graph(nodes, "g", *tensors)
    path = tmp_path / "m.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    with load_engine(path, runtime=runtime) as engine:
        assert (list(engine.inputs), list(engine.outputs)) == (["image"], ["y"])
        found = engine.run({"image": np.array([[-1, 0.5, 1, 2]], np.float32)})["y"]
    assert found.tolist() == [[0, 0.5, 1, 2]]
