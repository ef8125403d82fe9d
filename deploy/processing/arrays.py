"""Take images in whatever holds them: arrays, tensors, lists of either, or a loader of batches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from deploy.errors import DeployError

KEYS = ("image", "images", "pixel_values", "input", "inputs", "x")
"""What a batch in a mapping may call its images, the likeliest first."""


def arrays_of(images: Any, most: int | None = None) -> list[np.ndarray]:
    """Return preprocessed images as float32 arrays, each (C, H, W) or a batch (N, C, H, W), as they came.

    Args:
        images: an array or a tensor of images, a list of them, or a loader: anything that gives batches. A batch is
            an array, a tensor, a tuple that begins with one, an object that has ``images``, or a mapping that has them
            under one of ``KEYS``.
        most: how many images are taken at most; a loader is not read further. None takes all.

    Raises:
        DeployError: something else is among them, pixels of 0 to 255 for example, or there are none.
    """
    found: list[np.ndarray] = []
    left = most
    for batch in batches_of(images):
        array = array_in(batch)
        if left is not None:
            array = array[:left] if array.ndim == 4 else array
            left -= len(array) if array.ndim == 4 else 1
        found.append(array)
        if left is not None and left <= 0:
            break
    if not found:
        raise DeployError("There are 0 images; give at least one, better a hundred.")
    return found


def first_batch(images: Any, most: int | None = None) -> np.ndarray:
    """Return the first images (N, C, H, W) of what ``arrays_of`` takes, at most ``most``; raise as it does."""
    array = array_in(next(batches_of(images), None))
    array = array if array.ndim == 4 else array[None]
    return array if most is None else array[:most]


def batches_of(images: Any) -> Iterator[Any]:
    """Yield the parts of what was given: itself where it is one batch.

    Raises:
        DeployError: it has no parts.
    """
    if is_array(images) or isinstance(images, Mapping) or hasattr(images, "images"):
        yield images
    elif isinstance(images, Iterable) and not isinstance(images, str | bytes):
        yield from images
    else:
        raise DeployError(
            f"Images came as {type(images).__name__}; give an array, a tensor, a list of them or a loader."
        )


def is_array(value: Any) -> bool:
    """Tell whether ``value`` is an array or a tensor."""
    # A tensor is told by what it can do, for this folder runs without torch.
    return isinstance(value, np.ndarray) or (hasattr(value, "detach") and hasattr(value, "numpy"))


def array_in(batch: Any) -> np.ndarray:
    """Return the images of a batch, which ``arrays_of`` describes, as float32; raise as it does."""
    inner = batch
    if isinstance(batch, Mapping):
        inner = next((batch[key] for key in KEYS if key in batch), None)
    elif isinstance(batch, tuple | list) and batch:
        inner = batch[0]
    elif not is_array(batch) and hasattr(batch, "images"):
        inner = batch.images
    if not is_array(inner):
        keys = f" with the keys {', '.join(map(str, batch))[:120]}" if isinstance(batch, Mapping) else ""
        raise DeployError(
            f"A batch is a {type(batch).__name__}{keys}, in which no images are found; give arrays or tensors, tuples "
            f"that begin with them, or mappings that have them as {', '.join(KEYS)}."
        )
    array = inner if isinstance(inner, np.ndarray) else inner.detach().cpu().numpy()
    if array.dtype.kind != "f":
        raise DeployError(
            f"Images came as {array.dtype}{list(array.shape)}; prepare them as the network reads them, in float32."
        )
    return np.ascontiguousarray(array, dtype=np.float32)
