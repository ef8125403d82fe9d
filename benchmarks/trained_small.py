"""Networks with hard-swish, SiLU and squeeze-and-excitation, trained on CIFAR-10: what int8 finds hard.

python -m benchmarks.trained_small mobilenet_v3_small --folder OUT --minutes 12

``mobilenet_v3_small`` and ``efficientnet_b0`` are torchvision's, at 64 px; ``mobilenet_v3`` and ``efficientnet`` have
eight and nine blocks, for 32 px.

The images are those of ``NIWAKI_DATA/cifar10``; the last 4,000 of the 30,000 that train are held out. Minutes are those
of one thread's processor time, and a training that was ended goes on from its last hundred steps.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from torch import Tensor, nn

SIDE, SHEET, HELD_OUT = 32, 1000, 4000
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
BATCH, RATE, DECAY, SMOOTHING = 128, 3e-3, 0.02, 0.1
# Small images first: a step at half the side takes a quarter of the time (Tan and Le, EfficientNetV2, 2021).
GROWING = ((0.5, 32), (0.75, 48), (1.0, 64))
_KEPT = 100  # steps between two checkpoints


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


def prepared(images: np.ndarray, side: int) -> np.ndarray:
    """Return uint8 (N, H, W, 3) as the networks read it: float32 (N, 3, side, side), enlarged by bilinear weights."""
    enlarged = np.stack([np.asarray(Image.fromarray(one).resize((side, side), _BILINEAR)) for one in images])
    return np.ascontiguousarray(_scaled(enlarged).transpose(0, 3, 1, 2))


def _scaled(images: np.ndarray) -> np.ndarray:
    return (images.astype(np.float32) / 255 - np.float32(MEAN)) / np.float32(STD)


_BILINEAR = Image.Resampling.BILINEAR


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


def mobilenet_v3_small() -> nn.Module:
    """Build torchvision's for ten classes."""
    from torchvision.models import mobilenet_v3_small as build

    model: nn.Module = build(num_classes=10)
    return model


def efficientnet_b0() -> nn.Module:
    """Build torchvision's for ten classes, its classifier drawn by the number of inputs.

    torchvision draws it by the number of classes: for ten the first logits are ten times as large as for a thousand,
    the first gradients in the hundreds, and AdamW, which remembers them, learns next to nothing.
    """
    import torch
    from torchvision.models import efficientnet_b0 as build

    model: nn.Module = build(num_classes=10)
    for linear in model.modules():
        if isinstance(linear, torch.nn.Linear):
            linear.reset_parameters()
    return model


@dataclass(frozen=True)
class Trained:
    """How to build a network, and the sides of its images in pixels: until which share of the time, how many."""

    build: Callable[[], nn.Module]
    sides: tuple[tuple[float, int], ...] = ((1.0, SIDE),)

    @property
    def side(self) -> int:
        """The side that it is trained for."""
        return self.sides[-1][1]


NETWORKS: Mapping[str, Trained] = MappingProxyType(
    {
        "mobilenet_v3": Trained(mobilenet_v3),
        "efficientnet": Trained(efficientnet),
        "mobilenet_v3_small": Trained(mobilenet_v3_small, GROWING),
        "efficientnet_b0": Trained(efficientnet_b0, GROWING),
    }
)


def train(name: str, minutes: float, kept: Path, seed: int = 0) -> nn.Module:
    """Train one of ``NETWORKS`` for that long: AdamW, one cycle, growing images, shifts and flips.

    Args:
        name: of the network.
        minutes: of processor time, so that a busy machine changes how long it takes and not what it gives.
        kept: a safetensors file that holds where a training stands; one that is there goes on.
        seed: of weights, order and augmentation.
    """
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(seed)
    model = NETWORKS[name].build().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=DECAY)
    before = _restore(kept, model, optimizer)
    torch.manual_seed(seed + int(before * 1000))
    pixels, labels = (torch.from_numpy(part) for part in cifar10("train"))
    images = torch.from_numpy(_scaled(pixels[:-HELD_OUT].numpy())).permute(0, 3, 1, 2)  # channels last in memory
    loss_of = torch.nn.CrossEntropyLoss(label_smoothing=SMOOTHING)
    start, step, total = time.process_time(), 0, 0.0
    model.train()
    while (used := before + (time.process_time() - start) / 60) < minutes:
        share = used / minutes
        for group in optimizer.param_groups:
            group["lr"] = RATE * max(min(1.0, share / 0.05), 0.02) * (0.5 + 0.5 * np.cos(np.pi * share))
        side = next(side for until, side in NETWORKS[name].sides if share < until)
        chosen = torch.randint(len(images), (BATCH,))
        loss = loss_of(model(_enlarged(_shifted(images[chosen]), side)), labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        step, total = step + 1, total + float(loss.detach())
        if step % _KEPT == 0:
            _keep(kept, model, optimizer, used)
            print(f"{name}: {side} px, loss {total / _KEPT:.3f}, {100 * share:.0f} % of the time", flush=True)
            total = 0.0
    settle(model, images, NETWORKS[name].side)
    return model.eval().to(memory_format=torch.contiguous_format)


def _keep(path: Path, model: nn.Module, optimizer: Any, minutes: float) -> None:
    from safetensors.torch import save_file

    tensors = {f"model.{name}": tensor.contiguous() for name, tensor in model.state_dict().items()}
    for place, moments in optimizer.state_dict()["state"].items():
        tensors |= {f"adam.{place}.{name}": tensor.contiguous() for name, tensor in moments.items()}
    part = path.with_name(f".{path.name}.part")
    save_file(tensors, part, metadata={"minutes": str(minutes)})
    part.replace(path)


def _restore(path: Path, model: nn.Module, optimizer: Any) -> float:
    """Bring a training to where ``path`` says that it stood; return the minutes that it had."""
    from safetensors import safe_open

    if not path.is_file():
        return 0.0
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (no mapping)
        minutes = float(file.metadata()["minutes"])
    model.load_state_dict({name[6:]: tensor for name, tensor in tensors.items() if name.startswith("model.")})
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith("adam."):
            place, moment = name[5:].split(".")
            state.setdefault(int(place), {})[moment] = tensor
    optimizer.load_state_dict(optimizer.state_dict() | {"state": state})
    return minutes


def _enlarged(images: Tensor, side: int) -> Tensor:
    from torch.nn.functional import interpolate

    return images if side == SIDE else interpolate(images, (side, side), mode="bilinear")


def settle(model: nn.Module, images: Tensor, side: int, batches: int = 20) -> None:
    """Take BatchNorm statistics anew: over a few hundred steps, averages with torchvision's momentum of 0.01 lag."""
    from compress import prune

    prune.recalibrated(model, (_enlarged(part, side) for part in images[: batches * BATCH].split(BATCH)))


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
    parser.add_argument("--minutes", type=float, default=12, help="of one thread's processor time")
    options = parser.parse_args(arguments)
    import torch
    from safetensors.torch import save_file

    from deploy.exporting.torch_to_onnx import export_onnx

    options.folder.mkdir(parents=True, exist_ok=True)
    model = train(options.network, options.minutes, options.folder / f"{options.network}.training.safetensors")
    save_file(model.state_dict(), options.folder / f"{options.network}.safetensors")
    pixels, labels = cifar10("train")
    held = torch.from_numpy(prepared(pixels[-HELD_OUT:], NETWORKS[options.network].side))
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
