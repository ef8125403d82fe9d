"""MNIST from its idx files, as tensors."""

from __future__ import annotations

import gzip
import hashlib
import os
import struct
from math import prod
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from compress.errors import DataError

DIGESTS = {
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}
"""MD5 of the four files, unpacked, as they have always been published."""


class Digits(NamedTuple):
    """Images float32 [N, C, H, W], MNIST's [N, 1, 28, 28] from 0 to 1, and labels int64 [N], for training and test."""

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor

    def normalised(self, mean: float, std: float) -> Digits:
        """The same with the mean taken away and divided by the deviation."""
        scaled = {"train_images": (self.train_images - mean) / std, "test_images": (self.test_images - mean) / std}
        return self._replace(**scaled)


def read_mnist(folder: Path | None = None, images: int | None = None) -> Digits:
    """Read MNIST.

    Args:
        folder: what holds the four files, packed or not; None takes ``mnist`` under NIWAKI_DATA.
        images: only the first so many of training and test.

    Raises:
        DataError: a file is missing or is not the published one.
    """
    if folder is None:
        home = os.environ.get("NIWAKI_DATA")
        if home is None:
            raise DataError("NIWAKI_DATA names no folder, so MNIST cannot be found; set it to one that holds mnist/.")
        folder = Path(home) / "mnist"
    parts = [read_idx(_content(folder, name, digest), name) for name, digest in DIGESTS.items()]
    train, train_labels, test, test_labels = (part[:images] for part in parts)
    return Digits(_scaled(train), train_labels.long(), _scaled(test), test_labels.long())


def read_idx(content: bytes, name: str) -> Tensor:
    """Read an idx file of bytes: two zeros, the type 8, the number of dimensions, their sizes, the values.

    Raises:
        DataError: it is another file, or cut short.
    """
    if len(content) < 4 or content[:3] != b"\0\0\x08" or not 1 <= content[3] <= 4 or len(content) < 4 + 4 * content[3]:
        raise DataError(f"{name} is no idx file of bytes; fetch it again.")
    start = 4 + 4 * content[3]
    sizes = struct.unpack(f">{content[3]}I", content[4:start])
    if len(content) != start + prod(sizes):
        raise DataError(
            f"{name} holds {len(content) - start} values, not the {prod(sizes)} of its header; fetch it again."
        )
    return torch.frombuffer(bytearray(content[start:]), dtype=torch.uint8).reshape(sizes)


def _content(folder: Path, name: str, digest: str) -> bytes:
    plain, packed = folder / name, folder / f"{name}.gz"
    if plain.is_file():
        content = plain.read_bytes()
    elif packed.is_file():
        content = gzip.decompress(packed.read_bytes())
    else:
        raise DataError(f"There is no {name} in {folder}; put MNIST's four files there.")
    if hashlib.md5(content, usedforsecurity=False).hexdigest() != digest:
        raise DataError(f"{name} in {folder} is not the published file; fetch it again.")
    return content


def _scaled(images: Tensor) -> Tensor:
    return images[:, None].float() / 255
