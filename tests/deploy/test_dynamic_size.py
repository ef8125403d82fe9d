"""A free height and width: the network's own answer at every size, or a refusal that says why."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

import deploy.quantization.search
from deploy.engines import load_engine
from deploy.engines.base import TensorSpec
from deploy.engines.tensorrt.building import engine_from_onnx
from deploy.errors import DeployError
from deploy.exporting.lowering import lower, segmentation_logits
from deploy.exporting.parity import parity
from deploy.exporting.torch_to_onnx import export_onnx
from deploy.quantization.half import fp16_from_fp32
from deploy.quantization.int8 import int8_from_fp32
from deploy.quantization.search import fastest_int8

pytestmark = pytest.mark.heavy

SIZES = ((16, 16), (24, 40))


class Pixels(nn.Module):
    """A segmenter that goes down, joins two scales and comes up again."""

    def __init__(self):
        super().__init__()
        self.first, self.down = nn.Conv2d(1, 8, 3, 1, 1), nn.Conv2d(8, 8, 3, 2, 1)
        self.last = nn.Conv2d(16, 3, 1)

    def forward(self, x):
        fine = self.first(x).relu()
        coarse = functional.interpolate(self.down(fine), size=fine.shape[-2:], mode="bilinear", align_corners=False)
        return self.last(torch.cat([fine, coarse], 1))


@pytest.fixture(scope="module")
def networks(cnn):
    torch.manual_seed(2)
    pixels = Pixels().eval()
    return {"classifier": cnn, "logits": pixels, "classes": segmentation_logits(pixels, in_graph=True)[0]}


@pytest.fixture(scope="module")
def exported(networks, images, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sizes")
    return {
        name: export_onnx(model, torch.from_numpy(images), folder / f"{name}.fp32.onnx", dynamic_size=True)
        for name, model in networks.items()
    }


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("name", ["classifier", "logits", "classes"])
def test_two_sizes_give_what_torch_gives(name, runtime, networks, exported):
    with load_engine(exported[name], runtime=runtime) as engine:
        assert engine.inputs == {"image": TensorSpec("float32", (None, 1, None, None))}
        for size in SIZES:
            images = torch.randn(2, 1, *size, generator=torch.Generator().manual_seed(size[1]))
            if name != "classes":
                assert max(r["max_relative_error"] for r in parity(networks[name], engine, images, (1, 3))) < 1e-4
                continue
            with torch.inference_mode():
                want = networks[name](images).numpy()
            found = engine.run({"image": images.numpy()})["logits"]
            assert found.shape == (2, *size)
            assert (found == want).mean() > 0.99


def test_other_precisions_are_made_of_it_and_run_at_another_size(exported, images, tmp_path):
    made = [
        fp16_from_fp32(exported["logits"], tmp_path / "m.fp16.onnx", list(images[:4])),
        int8_from_fp32(exported["logits"], tmp_path / "m.int8.onnx", list(images[:4])),
    ]
    for path in made:
        with load_engine(path) as engine:
            assert engine.run({"image": np.zeros((1, 1, 24, 40), np.float32)})["logits"].shape == (1, 3, 24, 40)
    with pytest.raises(DeployError, match=r"takes float32\[N, 1, any, any\]"):
        int8_from_fp32(exported["logits"], tmp_path / "n.onnx", [np.zeros((3, 16, 16), np.float32)])


class Places(nn.Module):
    """As a vision transformer: one embedding for each place."""

    def __init__(self):
        super().__init__()
        self.place, self.last = nn.Parameter(torch.randn(1, 256)), nn.Linear(256, 5)

    def forward(self, x):
        return self.last(x.flatten(1) + self.place)


class Anchored(nn.Conv2d):
    one_size = "the bundle's decoding holds the anchors of one size"


@pytest.mark.parametrize(
    ("model", "shape", "says"),
    [
        (
            Places(),
            (2, 1, 16, 16),
            r"Places cannot have a free size: at 48 x 80 it fails \(.*256.*\); export it without dynamic_size",
        ),
        (
            Anchored(1, 2, 3),
            (2, 1, 16, 16),
            "Anchored cannot have a free size: the bundle's decoding holds the anchors",
        ),
        (nn.Linear(4, 5), (2, 4), r"Linear cannot have a free size: its input \[2, 4\] has no height and width"),
    ],
)
def test_a_network_of_one_size_is_refused(model, shape, says, tmp_path):
    with pytest.raises(DeployError, match=says) as caught:
        export_onnx(model.eval(), torch.randn(shape), tmp_path / "m.onnx", dynamic_size=True)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("vit_b_16", r"VisionTransformer cannot have a free size: at 256 x 288 it fails \(Wrong image height.*\)"),
        ("ssdlite320_mobilenet_v3_large", "Heads cannot have a free size: the bundle's decoding holds the anchors"),
    ],
)
def test_torchvisions_networks_of_one_size_are_refused(name, says, tmp_path):
    from torchvision import models

    model = models.get_model(name, weights=None, **({} if "vit" in name else {"weights_backbone": None})).eval()
    example = torch.rand(2, 3, *((224, 224) if "vit" in name else (320, 320)))
    lowered = lower(model, "classification" if "vit" in name else "detection", example)
    with pytest.raises(DeployError, match=says) as caught:
        export_onnx(lowered.module, example, tmp_path / "m.onnx", output_name=lowered.output_name, dynamic_size=True)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_int8_is_timed_at_the_size_of_the_calibration(exported, tmp_path, monkeypatch):
    asked = []

    def timed(engines, inputs, **_):
        asked.append({name: (array.shape, array.dtype) for name, array in inputs.items()})
        return [None, *(type("Row", (), {"share": 0.5}) for _ in engines[1:])]

    monkeypatch.setattr(deploy.quantization.search, "benchmark", timed)
    noise = np.random.default_rng(0).random((2, 1, 24, 40), dtype=np.float32)
    for images in (noise, noise[0]):
        fastest_int8(exported["logits"], tmp_path / "m.int8.onnx", [images], min_snr_db=None)
    assert asked
    assert all(one == {"image": ((1, 1, 24, 40), np.float32)} for one in asked)


def test_tensorrt_wants_one_size(exported, tmp_path):
    pytest.importorskip("tensorrt_rtx")
    with pytest.raises(DeployError, match="only the batch may be free"):
        engine_from_onnx(exported["logits"], tmp_path, target="sm86")
