"""What the exporter's optimiser takes for nothing is in the file, and parity sees where it is not."""

import numpy as np
import pytest
import torch
from torch import nn

from deploy.engines import load_engine
from deploy.errors import DeployError
from deploy.exporting.parity import INPUTS, parity
from deploy.exporting.torch_to_onnx import export_onnx

pytestmark = pytest.mark.heavy


class Computes(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def rms(x):
    return (x / (x.square().mean(1, keepdim=True) + 1e-8).sqrt()).mean((2, 3))


FUNCTIONS = {
    "rms": rms,
    "a smaller addition": lambda x: x / (x.abs() + 1e-12),
    "on the left": lambda x: 1.0 / (1e-9 + x.square()),
    "a subtraction": lambda x: (-x.abs() - 1e-9).reciprocal(),
    "a product of two": lambda x: x / (x.abs() + torch.tensor(1e-4) * torch.tensor(1e-5)),
    "nearly one": lambda x: x * 1.000005 - x,
    "divided by nearly one": lambda x: x / 1.000005 - x,
    "clips apart": lambda x: x.clamp(0, 1).clamp(2, 3),
    "a clip below zero, then ReLU": lambda x: x.clamp(-3, -1).relu() + 1,
    "ReLU, then a clip below zero": lambda x: x.relu().clamp(-3, -1),
    "exact": lambda x: (x + 0) * 1 - 0 + (x / 1),
    "a norm": lambda x: nn.functional.normalize(x, dim=1),
    "a layer norm": lambda x: (x - x.mean(1, True)) / (x.var(1, keepdim=True, correction=0) + 1e-12).sqrt(),
    "a logarithm": lambda x: (x.abs() + 1e-10).log(),
    "padded": lambda x: nn.functional.conv2d(nn.functional.pad(x, (1, 1, 1, 1), value=1e-9), torch.ones(1, 3, 3, 3)),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_no_rewrite_of_the_exporter_changes_a_value(name, tmp_path):
    model, generator = Computes(FUNCTIONS[name]).eval(), torch.Generator().manual_seed(0)
    example = torch.randn(2, 3, 8, 8, generator=generator)
    with load_engine(export_onnx(model, example, tmp_path / "m.onnx")) as engine:
        for scale in (0.0, 1.0, 1e-4):
            found = engine.run({"image": (example * scale).numpy()})["logits"]
            expected = model(example * scale).numpy()
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6 * (scale or 1) * np.abs(expected).max())


def test_an_addition_that_adds_nothing_is_still_removed(tmp_path):
    onnx = pytest.importorskip("onnx")
    path = export_onnx(Computes(FUNCTIONS["exact"]), torch.ones(2, 3, 8, 8), tmp_path / "m.onnx")
    file = onnx.load(path)
    assert [node.op_type for node in file.graph.node] == ["Add"]
    assert {one.domain for one in file.opset_import} == {""}


def test_parity_fails_where_one_is_finite_and_the_other_is_not(tmp_path):
    example = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    assert {"zeros", "black borders", "constant", "saturated"} <= set(INPUTS)
    unguarded = Computes(lambda x: (x / x.square().mean(1, keepdim=True).sqrt()).mean((2, 3)))
    with load_engine(export_onnx(unguarded, example, tmp_path / "m.onnx")) as engine:
        assert parity(Computes(rms), engine, example)[0]["max_relative_error"] < 1e-4  # nothing to see so far
        for kind in ("zeros", "black borders"):
            with pytest.raises(DeployError, match=f"inputs '{kind}'.*NaN or infinity where the model gives numbers"):
                parity(Computes(rms), engine, example, inputs=(kind,))
    with load_engine(export_onnx(Computes(rms), example, tmp_path / "g.onnx")) as engine:
        with pytest.raises(DeployError, match="numbers where the model gives NaN or infinity"):
            parity(unguarded, engine, example, inputs=("zeros",))
        rows = parity(Computes(rms), engine, example, inputs=tuple(INPUTS))
        assert max(row["max_relative_error"] for row in rows) < 1e-4
