"""Splits of images with targets, and the batches that training and evaluation take from them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from compress.data.augment import AUGMENTATIONS
from compress.data.geometry import Geometry, fitted
from compress.data.seeds import hash_seed
from compress.data.targets import Target, TaskName

CACHE_BYTES = 1 << 30
"""Prepared or decoded images of one split are kept in memory up to this size."""


@dataclass(frozen=True)
class Batch:
    """Images as the network reads them, and their targets.

    Args:
        images: float32 (N, C, H, W).
        targets: class indices (N,), masks (N, H, W), or for each image ``boxes`` (n, 4) and ``labels`` (n,) in a dict.
        index: int64 (N,), the index of each image in its split.
        variant: which augmented variant of the images this is; with the seed it determines all that was drawn.
        soft: shares of the classes (N, classes), where images were mixed.
    """

    images: Tensor
    targets: Any
    index: Tensor
    variant: int = 0
    soft: Tensor | None = None

    def __len__(self) -> int:
        return len(self.images)

    def parts(self, count: int) -> list[Batch]:
        """Divide the batch into equal parts."""
        if count == 1:
            return [self]
        size = len(self) // count
        cuts = [slice(k * size, (k + 1) * size) for k in range(count)]
        soft = [None] * count if self.soft is None else [self.soft[c] for c in cuts]
        return [
            Batch(self.images[c], self.targets[c], self.index[c], self.variant, s)
            for c, s in zip(cuts, soft, strict=True)
        ]

    def to(self, device: torch.device, *, channels_last: bool = True) -> Batch:
        """Copy the batch to a device; from pinned memory the copy does not block this process."""
        layout = torch.channels_last if channels_last else torch.contiguous_format
        images = self.images.to(device, memory_format=layout, non_blocking=True)
        return self._changed(images, lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Batch:
        """Copy the batch to memory that a GPU can read; called by the loader."""
        return self._changed(self.images.pin_memory(), Tensor.pin_memory)

    def _changed(self, images: Tensor, change: Callable[[Tensor], Tensor]) -> Batch:
        if isinstance(self.targets, Tensor):
            targets: Any = change(self.targets)
        else:
            targets = [{name: change(t) for name, t in one.items()} for one in self.targets]
        soft = None if self.soft is None else change(self.soft)
        return Batch(images, targets, self.index, self.variant, soft)


def _as_it_is(image: Image.Image) -> Image.Image:
    return image


@dataclass(frozen=True)
class ImageReader:
    """How an image file becomes a network's input: the same functions that a bundle uses.

    Args:
        load: path -> decoded image; it raises ImageError for a file that cannot be read.
        prepare: image -> float32 array of shape (C, H, W).
        geometry: upright image -> the part of it that ``prepare`` takes, and the size of that part; masks and boxes
            follow it.
        show: image that somebody decoded -> what ``load`` would return of it; it raises ImageError too.
    """

    load: Callable[[Path], Image.Image]
    prepare: Callable[[Image.Image], np.ndarray]
    geometry: Callable[[Image.Image], Geometry] | None = None
    show: Callable[[Image.Image], Image.Image] = _as_it_is


class Images(Protocol):
    """A sequence of images, possibly decoded on demand."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Image.Image: ...


class Targets(Protocol):
    """A sequence of masks or ``Boxes``, possibly decoded on demand."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Target: ...


@dataclass(frozen=True)
class Split:
    """Images, their targets and how they are prepared.

    Args:
        images: decoded on demand.
        targets: class indices as int64 (N,), or any sequence of masks or ``Boxes``.
        reader: turns an image into an input.
    """

    images: Images
    targets: Tensor | Targets
    reader: ImageReader

    def __len__(self) -> int:
        return len(self.images)

    @property
    def labels(self) -> Tensor:
        """Class indices, int64 (N,); for classification."""
        assert isinstance(self.targets, Tensor)
        return self.targets

    @cached_property
    def size(self) -> tuple[int, int]:
        """(height, width) of the inputs."""
        _, height, width = self.reader.prepare(self.images[0]).shape
        return height, width

    def sample(self, index: int) -> tuple[Image.Image, Target]:
        """One decoded image and its target; the image is upright where the target refers to places in it."""
        target = self.targets[index]
        if isinstance(target, Tensor):
            return self.images[index], int(target)
        upright = ImageOps.exif_transpose(self.images[index])
        return upright, target

    def inputs(self, start: int, stop: int) -> Tensor:
        """Prepared images start..stop as float32 of shape (N, C, H, W)."""
        # Asking for a few is no reason to prepare all.
        if (ready := self.__dict__.get("_prepared")) is not None:
            return ready[start:stop]
        return self._prepare(range(start, min(stop, len(self))))

    def get_ready(self, augment: str) -> None:
        """Prepare the images that are used without augmentation, so that processes started later share them."""
        if AUGMENTATIONS[augment].image is None and len(self):
            self.gather(torch.tensor([0]))

    @cached_property
    def _prepared(self) -> Tensor | None:
        size = self._prepare(range(1)).nbytes * len(self) if len(self) else 0
        return self._prepare(range(len(self))) if 0 < size <= CACHE_BYTES else None

    def _prepare(self, index: Sequence[int]) -> Tensor:
        arrays = [self.reader.prepare(self.images[i]) for i in index]
        # What is first read during evaluation is kept and trained on later.
        with torch.inference_mode(False):
            return torch.from_numpy(np.stack(arrays))

    def gather(self, index: Tensor) -> Tensor:
        """Prepared images at ``index``."""
        if self._prepared is not None:
            return self._prepared[index]
        return self._prepare(index.tolist())

    def batch(self, index: Tensor, augment: str = "none", seed: int = 0, variant: int = 0) -> Batch:
        """The images at ``index``, each augmented as (seed, variant, index) alone determine.

        Args:
            index: int64 (N,).
            augment: a name in AUGMENTATIONS.
            seed: the seed of the augmentation.
            variant: usually the epoch.
        """
        change = AUGMENTATIONS[augment]
        seeds = [hash_seed(seed, variant, i) for i in index.tolist()]
        if isinstance(self.targets, Tensor):
            if change.image is None:
                images = self.gather(index)
            else:
                size = self.size
                drawn = [
                    change.image(self.images[i], None, size, s)[0] for i, s in zip(index.tolist(), seeds, strict=True)
                ]
                images = torch.from_numpy(np.stack([self.reader.prepare(image) for image in drawn]))
            targets: Any = self.targets[index]
        else:
            images, targets = self._with_targets(index, augment, seeds)
        if change.inputs is not None:
            images = change.inputs(images, seeds)
        return Batch(images, targets, index, variant)

    def _with_targets(self, index: Tensor, augment: str, seeds: Sequence[int]) -> tuple[Tensor, Any]:
        """Images with masks or boxes that went through the same augmentation and the same resize."""
        change, arrays, rows = AUGMENTATIONS[augment], [], []
        assert self.reader.geometry is not None
        for i, seed in zip(index.tolist(), seeds, strict=True):
            image, target = self.sample(i)
            if change.image is not None:
                image, target = change.image(image, target, self.size, seed)
                arrays.append(self.reader.prepare(image))
            rows.append(fitted(target, self.reader.geometry(image)))
        images = torch.from_numpy(np.stack(arrays)) if arrays else self.gather(index)
        return images, torch.stack(rows) if isinstance(rows[0], Tensor) else rows

    def batches(self, size: int) -> Iterator[Batch]:
        """All images in order, without augmentation."""
        for start in range(0, len(self), size):
            yield self.batch(torch.arange(start, min(start + size, len(self))))


@dataclass(frozen=True)
class ImageData:
    """Named splits (``train``, ``val``, ``test``) over the same classes.

    Args:
        classes: names, in the order of their indices.
        splits: by name.
        task: what the targets are for.
        notes: what was left out while reading, one sentence each.
    """

    classes: tuple[str, ...]
    splits: Mapping[str, Split]
    task: TaskName = "classification"
    notes: tuple[str, ...] = ()

    def example(self, count: int = 8) -> Tensor:
        """The first prepared training images, shape (count, C, H, W)."""
        return self.splits["train"].inputs(0, count)
