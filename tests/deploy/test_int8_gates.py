"""int8 of networks with hard-swish, SiLU and squeeze-and-excitation: their gates are found, and may stay in fp32."""

import numpy as np
import onnx
import pytest
import torch
from torch import nn
from torchvision.ops import SqueezeExcitation

from deploy.errors import DeployError
from deploy.exporting.torch_to_onnx import export_onnx
from deploy.onnx.file import read
from deploy.quantization.agreement import Agreement
from deploy.quantization.int8 import METHODS, int8_from_fp32, operators

pytestmark = pytest.mark.heavy
GATES = {"mobilenet": (nn.ReLU, nn.Hardsigmoid), "efficientnet": (nn.SiLU, nn.Sigmoid)}


@pytest.fixture(scope="module", params=GATES)
def gated(request, tmp_path_factory):
    torch.manual_seed(0)
    inner, outer = GATES[request.param]
    swish = nn.Hardswish if request.param == "mobilenet" else nn.SiLU
    body = [nn.Conv2d(3, 8, 3), swish(), SqueezeExcitation(8, 4, activation=inner, scale_activation=outer)]
    model = nn.Sequential(*body, nn.Conv2d(8, 8, 1), swish(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
    path = tmp_path_factory.mktemp(request.param) / "gated.onnx"
    return export_onnx(model.eval(), torch.randn(2, 3, 12, 12), path)


def test_number_8_a_gate_is_its_pooling_its_layers_and_its_product(gated):
    model = read(gated)
    found = set(operators(model, "gates"))
    kinds = [node.op_type for node in model.graph.node if node.name in found]
    # The pooling before the classifier weighs nothing, and the other convolutions are no part of a gate.
    assert kinds.count("Conv") == 2 and "Gemm" not in kinds and kinds[-1] == "Mul"
    assert sum(kind in ("GlobalAveragePool", "ReduceMean") for kind in kinds) == 1


def test_number_8_gates_stay_in_fp32_and_a_method_is_one_of_those_known(gated, tmp_path):
    images = list(np.random.default_rng(0).standard_normal((6, 3, 12, 12)).astype(np.float32))
    whole = int8_from_fp32(gated, tmp_path / "whole.onnx", images, method="exact")
    kept = int8_from_fp32(gated, tmp_path / "kept.onnx", images, keep_fp32=("gates",), method="smooth")
    named = set(operators(read(gated), "gates"))
    read_in_int8 = []
    for path in (whole, kept):
        graph = onnx.load(path).graph
        restored = {node.output[0] for node in graph.node if node.op_type == "DequantizeLinear"}
        read_in_int8.append([n.name for n in graph.node if n.name in named and restored & set(n.input)])
    # NNCF itself may leave a gate's convolutions alone, but not what they weigh.
    assert read_in_int8[0] and not read_in_int8[1]
    assert all(Agreement.read(path).snr_db > 10 for path in (whole, kept))
    with pytest.raises(DeployError, match=f"no method 'best'; choose among {', '.join(METHODS)}"):
        int8_from_fp32(gated, tmp_path / "x.onnx", images, method="best")
