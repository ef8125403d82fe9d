"""Small networks, their model files and a bundle, made once for all tests of deploy."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deploy.processing.preprocess import Preprocessing

CLASSES = tuple("abcde")


@pytest.fixture(scope="session")
def cnn():
    """Three convolutions on (N, 1, 16, 16), 5 classes; nothing in it is zero or one by default."""
    import torch
    from torch import nn

    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, stride=2, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 5),
    )
    return _randomise(model).eval()


@pytest.fixture(scope="session")
def resnet():
    """A residual network on (N, 1, 16, 16), 5 classes, with a strided and an identity shortcut."""
    import torch
    from torch import nn

    class Block(nn.Module):
        def __init__(self, wide, out, stride):
            super().__init__()
            self.body = nn.Sequential(
                nn.Conv2d(wide, out, 3, stride, 1, bias=False),
                nn.BatchNorm2d(out),
                nn.ReLU(),
                nn.Conv2d(out, out, 3, 1, 1, bias=False),
                nn.BatchNorm2d(out),
            )
            self.short = nn.Identity() if wide == out else nn.Conv2d(wide, out, 1, stride)

        def forward(self, x):
            return torch.relu(self.body(x) + self.short(x))

    torch.manual_seed(1)
    stem = (nn.Conv2d(1, 8, 3, 1, 1), nn.ReLU())
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5))
    return _randomise(nn.Sequential(*stem, Block(8, 8, 1), Block(8, 16, 2), *head)).eval()


@pytest.fixture(scope="session")
def images():
    """32 smooth images (N, 1, 16, 16), float32, roughly of mean 0 and deviation 1."""
    rng = np.random.default_rng(0)
    coarse = rng.standard_normal((32, 1, 4, 4)).astype(np.float32)
    return np.ascontiguousarray(coarse.repeat(4, axis=2).repeat(4, axis=3))


@pytest.fixture(scope="session")
def files(tmp_path_factory, resnet, images):
    """The residual network in every precision: fp32, fp16, int8, signed."""
    import torch

    from deploy.exporting.torch_to_onnx import export_onnx
    from deploy.quantization.half import fp16_from_fp32
    from deploy.quantization.int8 import int8_from_fp32, signed_from_unsigned

    folder = tmp_path_factory.mktemp("files")
    fp32 = export_onnx(resnet, torch.from_numpy(images), folder / "model.fp32.onnx", metadata={"origin": "test"})
    int8 = int8_from_fp32(fp32, folder / "model.int8.onnx", list(images))
    return {
        "fp32": fp32,
        "fp16": fp16_from_fp32(fp32, folder / "model.fp16.onnx"),
        "int8": int8,
        "signed": signed_from_unsigned(int8, folder / "model.int8.trt.onnx"),
    }


@pytest.fixture
def preprocessing():
    return Preprocessing(size=(16, 16), mode="L", mean=(0.5,), std=(0.25,))


@pytest.fixture
def bundle_dir(tmp_path, files, preprocessing) -> Path:
    from deploy.bundle.writing import BundleSpec, write_bundle

    return write_bundle(
        tmp_path / "bundle",
        BundleSpec(
            models={key: files[key] for key in ("fp32", "int8")},
            default="int8",
            preprocessing=preprocessing,
            classes=CLASSES,
            metrics={"accuracy": 0.9},
            latency={"median_ms": 1.0},
            provenance={"recipe": "test"},
        ),
    )


@pytest.fixture
def keys(tmp_path) -> Path:
    """A folder with three pairs of key files: mine.pem, mine.pub, and so for other and device."""
    pytest.importorskip("cryptography", reason="the package cryptography is not installed")
    from pems import write_pair

    folder = tmp_path / "keys"
    folder.mkdir()
    for seed, name in enumerate(("mine", "other", "device"), start=1):
        write_pair(folder, name, seed)
    return folder


@pytest.fixture
def picture(tmp_path) -> Path:
    path = tmp_path / "picture.png"
    pixels = np.random.default_rng(3).integers(0, 256, (40, 30, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def _randomise(model):
    import torch
    from torch import nn

    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.3)
                module.running_var.uniform_(0.5, 1.5)
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(0, 0.3)
    return model
