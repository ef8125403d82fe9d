"""What reads a guarded value keeps its precision: in fp16 a guard of 1e-12 is zero."""

import numpy as np
import onnx
import pytest
import torch
from onnx.reference import ReferenceEvaluator
from torch import nn

from deploy.engines import load_engine
from deploy.exporting.torch_to_onnx import export_onnx
from deploy.onnx.wire import scan
from deploy.quantization.half import fp16_from_fp32

pytestmark = pytest.mark.heavy


class Guarded(nn.Module):
    def __init__(self, guard, bias=False):
        super().__init__()
        torch.manual_seed(0)
        self.before, self.after, self.guard = nn.Conv2d(3, 4, 3, bias=bias), nn.Conv2d(4, 2, 3), guard

    def forward(self, x):
        return self.after(self.guard(self.before(x))).mean((2, 3))


def by_pow(x):
    mean = x.mean(1, keepdim=True)
    return (x - mean) / ((x - mean).pow(2).mean(1, keepdim=True) + 1e-12).pow(0.5)


GUARDS = {
    "normalize": lambda x: nn.functional.normalize(x, dim=1),
    "layer norm with pow": by_pow,
    "rms": lambda x: x * (x.square().mean(1, keepdim=True) + 1e-8).rsqrt(),
    "clamp": lambda x: x / x.norm(dim=1, keepdim=True).clamp(min=1e-9),
    "logarithm": lambda x: (x.relu() + 1e-10).log() * 0.1,
    "maximum": lambda x: x / torch.maximum(x.abs().sum(1, keepdim=True), torch.tensor(1e-11)),
    "guard of a multiple": lambda x: x * (x.square().mean(1, keepdim=True) * 2 + 1e-12).rsqrt(),
    "multiple of a guard": lambda x: x / ((x.square().mean(1, keepdim=True) * 0.5 + 1e-12) * 2).sqrt(),
    "subtracted": lambda x: x / ((-x.square().mean(1, keepdim=True) - 1e-12) * -1).sqrt(),
    "chosen": lambda x: x / torch.where(x.abs() < 1e-9, torch.full_like(x, 1e-9), x.abs()),
    "negative power": lambda x: x * (x.square().mean(1, keepdim=True) + 1e-12).pow(-0.5),
    "on both sides": lambda x: (x.square() + 1e-10) / (x.square().sum(1, keepdim=True) + 1e-10),
    "an inverse beyond fp16": lambda x: x * (x.square().sum((1, 2, 3), keepdim=True).sqrt() + 1e-7).reciprocal(),
    "layer norm": lambda x: nn.functional.layer_norm(x, x.shape[1:], eps=1e-12),
    "the largest of guarded": lambda x: x / (x.abs() + 1e-10).amax(1, keepdim=True),
    "the least of guarded": lambda x: x.abs().amin(1, keepdim=True) / (x.abs() + 1e-10).amin(1, keepdim=True) * x,
    "a sum with another": lambda x: x / (x.abs().mean(1, keepdim=True) + 1e-10 + x.square().mean(1, keepdim=True)),
    "bounded above": lambda x: x / torch.minimum(x.abs() + 1e-10, torch.tensor(1.0)),
    "split and joined": lambda x: x / torch.cat((x.abs() + 1e-10).chunk(2, 1), 1),
    "a power by its logarithm": lambda x: x * (-0.5 * (x.square().mean(1, keepdim=True) + 1e-12).log()).exp(),
}


@pytest.mark.parametrize("calibrated", [True, False])
@pytest.mark.parametrize("name", GUARDS)
def test_a_blank_image_is_finite_in_fp16(name, calibrated, tmp_path):
    model, rng = Guarded(GUARDS[name]).eval(), np.random.default_rng(0)
    images = rng.standard_normal((4, 3, 8, 8)).astype(np.float32)
    path = export_onnx(model, torch.from_numpy(images), tmp_path / "m.onnx")
    half = fp16_from_fp32(path, tmp_path / "h.onnx", list(images) if calibrated else None)
    blank, faint, framed = np.zeros_like(images), images * np.float32(1e-4), images.copy()
    framed[:, :, :3] = 0
    for feed in (images, blank, faint, framed):
        wanted = model(torch.from_numpy(feed)).detach().numpy()
        with load_engine(half) as engine:
            found = engine.run({"image": feed})["logits"]
        # The reference computes in fp16 what the file says is fp16; CPU runtimes compute in fp32 in secret.
        with np.errstate(all="ignore"):
            (exact,) = ReferenceEvaluator(onnx.load(half)).run(None, {"image": feed})
        for values in (found, exact):
            np.testing.assert_allclose(values, wanted, atol=0.02 * max(1.0, float(np.abs(wanted).max())))
    assert scan(half).properties["niwaki.kept_fp32"]


def test_a_small_number_that_guards_nothing_keeps_nothing(tmp_path):
    model = Guarded(lambda x: x + 1e-9, bias=True).eval()
    images = np.random.default_rng(0).standard_normal((4, 3, 8, 8)).astype(np.float32)
    path = export_onnx(model, torch.from_numpy(images), tmp_path / "m.onnx")
    assert "niwaki.kept_fp32" not in scan(fp16_from_fp32(path, tmp_path / "h.onnx", list(images))).properties


def test_number_2_what_only_a_saturated_image_overflows_stays_in_fp32(tmp_path):
    convolution = nn.Conv2d(3, 1, 16, bias=False)
    nn.init.constant_(convolution.weight, 30.0)
    images = np.random.default_rng(0).standard_normal((4, 3, 16, 16)).astype(np.float32)
    model = nn.Sequential(convolution, nn.Tanh(), nn.Flatten()).eval()
    path = export_onnx(model, torch.from_numpy(images), tmp_path / "m.onnx")
    half = fp16_from_fp32(path, tmp_path / "h.onnx", list(images))
    saturated = np.full_like(images, images.max())
    sums = convolution(torch.from_numpy(np.stack([*images, *saturated]))).abs().flatten(1).amax(1)
    assert sums[:4].max() < 6e4 < 65504 < sums[4:].min()
    (exact,) = ReferenceEvaluator(onnx.load(half)).run(None, {"image": saturated})
    np.testing.assert_allclose(exact, 1.0)
    assert "Conv" in scan(half).properties["niwaki.kept_fp32"]
