"""Name a data set by the hash of what is in it."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import numpy as np

from compress.data.files import FileImages
from compress.data.images import ImageData, Images
from compress.data.targets import Boxes
from compress.errors import DataError


def data_hash(data: ImageData) -> str:
    """Return the SHA-256 of the classes and, split by split, of every image and its target in their order.

    Where a file lies, and what it is called, changes nothing; of an image in a file its bytes count, of another one its
    pixels.

    Raises:
        DataError: an image or a target cannot be read.
    """
    found = hashlib.sha256(json.dumps([data.task, *data.classes]).encode())
    for name, split in sorted(data.splits.items()):
        found.update(json.dumps([name, len(split)]).encode())
        for index in range(len(split)):
            try:
                found.update(_image(split.images, index))
                found.update(_target(split.targets[index]))
            except OSError as error:
                raise DataError(f"Image {index} of {name} cannot be read ({error}); restore it.") from error
    return found.hexdigest()


def _image(images: Images, index: int) -> bytes:
    if isinstance(images, FileImages):
        return hashlib.sha256(images.paths[index].read_bytes()).digest()
    return _array(np.asarray(images[index]))


def _target(target: Any) -> bytes:
    if isinstance(target, Boxes):
        return _array(target.boxes) + _array(target.labels)
    return _array(np.asarray(target))


def _array(values: np.ndarray) -> bytes:
    """Hash the type, the shape and the numbers of an array."""
    head = f"{values.dtype.str}{values.shape}".encode()
    return hashlib.sha256(head + np.ascontiguousarray(values).tobytes()).digest()
