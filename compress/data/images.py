"""Splits of labelled images, and the batches that training and evaluation take from them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from compress.data.augment import AUGMENTATIONS

Batch = tuple[Tensor, Tensor]

CACHE_BYTES = 1 << 30
"""Prepared or decoded images of one split are kept in memory up to this size."""


@dataclass(frozen=True)
class ImageReader:
    """How an image file becomes a network's input: the very functions that a bundle uses.

    Args:
        load: path -> decoded image.
        prepare: image -> float32 array of shape (C, H, W).
    """

    load: Callable[[Path], Image.Image]
    prepare: Callable[[Image.Image], np.ndarray]


class Images(Protocol):
    """A sequence of images that may be decoded when asked for."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Image.Image: ...


@dataclass(frozen=True)
class Split:
    """Images, their labels (int64, shape (N,)) and how they are prepared."""

    images: Images
    labels: Tensor
    reader: ImageReader

    def __len__(self) -> int:
        return len(self.images)

    def inputs(self, start: int, stop: int) -> Tensor:
        """Prepared images start..stop as float32 of shape (N, C, H, W)."""
        if self._prepared is not None:
            return self._prepared[start:stop]
        return self._prepare(start, stop)

    @cached_property
    def _prepared(self) -> Tensor | None:
        size = self._prepare(0, 1).nbytes * len(self) if len(self) else 0
        return self._prepare(0, len(self)) if 0 < size <= CACHE_BYTES else None

    def _prepare(self, start: int, stop: int) -> Tensor:
        arrays = [self.reader.prepare(self.images[i]) for i in range(start, min(stop, len(self)))]
        # What is first read while evaluating is kept, and trained on later.
        with torch.inference_mode(False):
            return torch.from_numpy(np.stack(arrays))

    def batches(self, size: int) -> Iterator[Batch]:
        """All images in order."""
        for start in range(0, len(self), size):
            yield self.inputs(start, start + size), self.labels[start : start + size]

    def training_batches(self, size: int, augment: str, seed: int, epoch: int) -> Iterator[Batch]:
        """One epoch in an order, and with an augmentation, that (seed, epoch, index) alone decide.

        The last images that do not fill a batch are left out, unless they are all there is.
        """
        generator = torch.Generator().manual_seed(hash_seed(seed, epoch))
        order = torch.randperm(len(self), generator=generator)
        size = min(size, len(self))
        for k in range(len(self) // size):
            index = order[k * size : (k + 1) * size]
            inputs = AUGMENTATIONS[augment](self, index, hash_seed(seed, epoch, k))
            yield inputs, self.labels[index]

    def gather(self, index: Tensor) -> Tensor:
        """Prepared images at `index`."""
        if self._prepared is not None:
            return self._prepared[index]
        return torch.cat([self._prepare(int(i), int(i) + 1) for i in index])


@dataclass(frozen=True)
class ImageData:
    """Named splits (`train`, `val`, `test`) over the same classes."""

    classes: tuple[str, ...]
    splits: Mapping[str, Split]

    def example(self, count: int = 8) -> Tensor:
        """The first prepared training images, shape (count, C, H, W)."""
        return self.splits["train"].inputs(0, count)


def hash_seed(*parts: int) -> int:
    """One 63-bit seed from several numbers."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> 1)
