"""Small networks with hard-swish, SiLU and squeeze-and-excitation, trained on CIFAR-10: what int8 finds hard.

python -m benchmarks.trained_small mobilenet_v3 --folder OUT --minutes 12

The images are those of ``NIWAKI_DATA/cifar10``; the last 4,000 of the 30,000 that train are held out.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from torch import Tensor, nn

SIDE, SHEET, HELD_OUT = 32, 1000, 4000
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
BATCH, RATE, DECAY, SMOOTHING = 128, 4e-3, 0.02, 0.1
# What remains of an epoch's estimate may be off by as much, for the machine is shared.
_LAST_SHARE = 0.02


def cifar10(split: str) -> tuple[np.ndarray, np.ndarray]:
    """Read ``train`` (30,000 images) or ``test`` (1,000): uint8 (N, 32, 32, 3) and int64 (N,).

    Raises:
        FileNotFoundError: ``NIWAKI_DATA`` does not hold the images.
    """
    folder = Path(os.environ.get("NIWAKI_DATA", "/nowhere")) / "cifar10"
    labels = np.load(folder / "labels.npz")["train" if split == "train" else "test_lossless"]
    sheets = sorted(folder.glob("train_*.webp" if split == "train" else "test_lossless_*.webp"))
    images = []
    for sheet in sheets:
        pixels = np.asarray(Image.open(sheet).convert("RGB"))
        rows = pixels.shape[0] // SIDE
        tiles = pixels.reshape(rows, SIDE, -1, SIDE, 3).transpose(0, 2, 1, 3, 4)
        images.append(tiles.reshape(-1, SIDE, SIDE, 3))
    pixels = np.concatenate(images)
    return pixels, labels[: len(pixels)].astype(np.int64)


def prepared(images: np.ndarray) -> np.ndarray:
    """Return uint8 (N, H, W, 3) as the network reads it: float32 (N, 3, H, W)."""
    scaled = (images.astype(np.float32) / 255 - np.float32(MEAN)) / np.float32(STD)
    return np.ascontiguousarray(scaled.transpose(0, 3, 1, 2))


def mobilenet_v3() -> nn.Module:
    """Build a MobileNetV3 of ten blocks for 32 px: hard-swish, hard-sigmoid gates, kernels of 3 and 5."""
    from torchvision.models.mobilenetv3 import InvertedResidualConfig, MobileNetV3

    block = partial(InvertedResidualConfig, dilation=1, width_mult=1.0)
    rows = [
        (16, 3, 16, 16, True, "RE", 1),
        (16, 3, 64, 24, False, "RE", 2),
        (24, 3, 72, 24, False, "RE", 1),
        (24, 5, 96, 40, True, "HS", 2),
        (40, 5, 160, 40, True, "HS", 1),
        (40, 5, 120, 48, True, "HS", 1),
        (48, 5, 192, 64, True, "HS", 1),
        (64, 5, 256, 64, True, "HS", 1),
    ]
    return MobileNetV3([block(*row) for row in rows], last_channel=256, num_classes=10)


def efficientnet() -> nn.Module:
    """Build an EfficientNet of nine blocks for 32 px: SiLU, sigmoid gates, stochastic depth."""
    from torchvision.models.efficientnet import EfficientNet, MBConvConfig

    rows = [
        (1, 3, 1, 32, 16, 1),
        (4, 3, 2, 16, 24, 2),
        (4, 5, 1, 24, 40, 2),
        (4, 3, 2, 40, 64, 2),
        (4, 5, 1, 64, 80, 2),
    ]
    return EfficientNet([MBConvConfig(*row) for row in rows], dropout=0.1, stochastic_depth_prob=0.05, num_classes=10)


NETWORKS: Mapping[str, Callable[[], nn.Module]] = MappingProxyType(
    {"mobilenet_v3": mobilenet_v3, "efficientnet": efficientnet}
)


def train(name: str, minutes: float, start_from: Path | None = None, seed: int = 0) -> nn.Module:
    """Train one of ``NETWORKS`` for that long: AdamW, one cycle over the time, shifts and flips.

    Args:
        name: of the network.
        minutes: how long.
        start_from: weights to go on with, a safetensors file; by default random ones.
        seed: of weights, order and augmentation.
    """
    import torch
    from safetensors.torch import load_file

    torch.manual_seed(seed)
    model = NETWORKS[name]()
    if start_from is not None:
        model.load_state_dict(load_file(start_from))
    model = model.to(memory_format=torch.channels_last)
    pixels, labels = (torch.from_numpy(part) for part in cifar10("train"))
    images = torch.from_numpy(prepared(pixels[:-HELD_OUT].numpy())).contiguous(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=DECAY)
    loss_of = torch.nn.CrossEntropyLoss(label_smoothing=SMOOTHING)
    start, epoch = time.monotonic(), 0
    model.train()
    while (passed := (time.monotonic() - start) / 60 / minutes) < 1 - _LAST_SHARE:
        total, seen = 0.0, 0
        for chosen in torch.randperm(len(images)).split(BATCH):
            passed = min(1.0, (time.monotonic() - start) / 60 / minutes)
            for group in optimizer.param_groups:
                group["lr"] = RATE * max(min(1.0, passed / 0.05), 0.02) * (0.5 + 0.5 * np.cos(np.pi * passed))
            loss = loss_of(model(_shifted(images[chosen])), labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += float(loss.detach()) * len(chosen)
            seen += len(chosen)
            if passed >= 1:
                break
        epoch += 1
        print(f"{name}: epoch {epoch}, loss {total / seen:.3f}, {100 * passed:.0f} % of the time", flush=True)
    settle(model, images)
    return model.eval().to(memory_format=torch.contiguous_format)


def settle(model: nn.Module, images: Tensor, batches: int = 20) -> None:
    """Take BatchNorm statistics anew: over a few hundred steps, averages with torchvision's momentum of 0.01 lag."""
    import torch

    model.eval()
    norms = [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    with torch.no_grad():
        for part in images[: batches * BATCH].split(BATCH):
            model(part)
    model.eval()


def _shifted(images: Tensor) -> Tensor:
    """Shift a batch (N, C, 32, 32) by up to 3 pixels each way and flip half of it."""
    import torch

    padded = torch.nn.functional.pad(images, (3, 3, 3, 3), mode="reflect")
    top, left = (int(torch.randint(0, 7, ())) for _ in range(2))
    cut = padded[..., top : top + SIDE, left : left + SIDE]
    flip = torch.rand(len(cut)) < 0.5
    return torch.where(flip[:, None, None, None], cut.flip(-1), cut)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("network", choices=sorted(NETWORKS))
    parser.add_argument("--folder", type=Path, required=True, help="where NAME.safetensors and NAME.fp32.onnx go")
    parser.add_argument("--minutes", type=float, default=12)
    parser.add_argument("--start", type=Path, help="weights to go on with, a safetensors file")
    options = parser.parse_args(arguments)
    import torch
    from safetensors.torch import save_file

    from deploy.exporting.torch_to_onnx import export_onnx

    model = train(options.network, options.minutes, options.start)
    options.folder.mkdir(parents=True, exist_ok=True)
    save_file(model.state_dict(), options.folder / f"{options.network}.safetensors")
    pixels, labels = cifar10("train")
    held = torch.from_numpy(prepared(pixels[-HELD_OUT:]))
    with torch.no_grad():
        right = [
            (model(part).argmax(1).numpy() == want).sum()
            for part, want in zip(held.split(500), np.split(labels[-HELD_OUT:], HELD_OUT // 500), strict=True)
        ]
    print(f"{options.network}: {100 * sum(right) / HELD_OUT:.2f} % of {HELD_OUT} held-out images")
    export_onnx(model, held[:2], options.folder / f"{options.network}.fp32.onnx")
    return 0


if __name__ == "__main__":
    sys.exit(main())
