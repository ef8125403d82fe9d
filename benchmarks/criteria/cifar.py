"""CIFAR-10 and the trained ResNets of it that the study cuts."""

from __future__ import annotations

import io
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor, nn

from compress.errors import DataError
from compress.models.cifar_resnet import cifar_resnet
from compress.models.weights import read_weights

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""What the weights were trained with."""

SELECTION = (1000, 10_000, 2000)
"""JPEG twins of test images: from, to, and how many of them are drawn. None of them is a twin of the lossless ones."""

SHEETS, ALL = 8, 30
"""Sheets of 1,000 training images that calibration images are drawn from, and how many there are."""

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Images:
    """Prepared images [N, 3, 32, 32] and their labels [N]."""

    images: Tensor
    labels: Tensor


def data_folder(name: str) -> Path:
    """Return a folder of NIWAKI_DATA; raises DataError where there is none."""
    home = os.environ.get("NIWAKI_DATA")
    if home is None or not (Path(home) / name).is_dir():
        raise DataError(f"NIWAKI_DATA is '{home or ''}', which holds no {name}; set it to the folder of the data.")
    return Path(home) / name


def calibration(images: int, seed: int) -> Images:
    """Draw training images with exact pixels."""
    folder = data_folder("cifar10")
    pixels = np.concatenate([_sheet(folder / f"train_{k:02}.webp") for k in range(SHEETS)])
    chosen = np.random.default_rng(seed).permutation(len(pixels))[:images]
    return _prepared(pixels[chosen], np.load(folder / "labels.npz")["train"][chosen])


def training(first: int, end: int) -> Images:
    """The training images of the sheets from `first` to before `end`."""
    folder = data_folder("cifar10")
    pixels = np.concatenate([_sheet(folder / f"train_{k:02}.webp") for k in range(first, end)])
    return _prepared(pixels, np.load(folder / "labels.npz")["train"][1000 * first : 1000 * end])


def first(images: int) -> Images:
    """The first so many training images with exact pixels."""
    return _prepared(*pixels(images))


def pixels(images: int) -> tuple[Pixels, npt.NDArray[np.int64]]:
    """Those images as they are, uint8 [N, 32, 32, 3], and their labels."""
    folder = data_folder("cifar10")
    found = np.concatenate([_sheet(folder / f"train_{k:02}.webp") for k in range(-(-images // 1000))])[:images]
    return found, np.load(folder / "labels.npz")["train"][: len(found)]


def test_pixels() -> tuple[Pixels, npt.NDArray[np.int64]]:
    """The first 1,000 test images as they are, and their labels."""
    folder = data_folder("cifar10")
    return _sheet(folder / "test_lossless_00.webp"), np.load(folder / "labels.npz")["test_lossless"]


def selection() -> Images:
    """The images by which the study chooses: JPEG twins, on which the networks are about nine points worse."""
    low, high, count = SELECTION
    chosen = np.sort(np.random.default_rng(0).choice(np.arange(low, high), count, replace=False))
    with np.load(data_folder("cifar10") / "test_jpeg75_10000.npz") as file:
        blob, offsets, labels = file["bytes"].tobytes(), file["offsets"], file["labels"]
    decoded = [_jpeg(blob[offsets[k] : offsets[k + 1]]) for k in chosen]
    return _prepared(np.stack(decoded), labels[chosen])


def test() -> Images:
    """The first 1,000 test images with exact pixels."""
    return _prepared(*test_pixels())


def network(depth: int) -> nn.Module:
    """ResNet-20 or ResNet-56 with its weights, in eval mode; its shortcuts pad with zeros."""
    path = data_folder("cifar10_resnet_weights") / f"resnet{depth}_cifar10.pth"
    state = {name.replace("linear.", "fc."): tensor for name, tensor in read_weights(path).items()}
    model = cifar_resnet(depth, 16, shortcut="pad")
    model.load_state_dict(state)
    return model.eval()


def _sheet(path: Path) -> Pixels:
    """1,000 images, 25 to a row, as [N, 32, 32, 3]."""
    with Image.open(path) as image:
        tiles = np.asarray(image.convert("RGB"))
    rows = tiles.shape[0] // 32
    return tiles.reshape(rows, 32, 25, 32, 3).transpose(0, 2, 1, 3, 4).reshape(-1, 32, 32, 3)


def _jpeg(content: bytes) -> Pixels:
    with Image.open(io.BytesIO(content)) as image:
        return np.asarray(image.convert("RGB"))


def _prepared(pixels: Pixels, labels: npt.NDArray[np.int64]) -> Images:
    x = torch.from_numpy(np.ascontiguousarray(pixels)).permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    return Images(((x - mean) / std).contiguous(), torch.from_numpy(labels.astype(np.int64)))
