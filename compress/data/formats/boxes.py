"""Images with boxes, from any annotation format; what is left out is counted."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from compress.data.files import Unreadable, first, read_all
from compress.data.images import ImageData, ImageReader, Split
from compress.data.targets import Boxes
from compress.errors import DataError

_ORIENTATION = 0x0112


@dataclass(frozen=True)
class Scene:
    """What an annotation says about one image.

    Args:
        path: the image.
        where: the annotation's name in an error message.
        size: (width, height) as the annotation gives it; None where it gives none.
        boxes: (x1, y1, x2, y2) in pixels.
        labels: one class index a box.
    """

    path: Path
    where: str
    size: tuple[int, int] | None
    boxes: Sequence[tuple[float, float, float, float]]
    labels: Sequence[int]


@dataclass
class LeftOut:
    """Objects that are in no target, by reason."""

    flat: list[str] = field(default_factory=list)
    cut: list[str] = field(default_factory=list)
    difficult: int = 0
    crowds: int = 0

    @property
    def notes(self) -> tuple[str, ...]:
        said = {
            f"{len(self.flat)} box(es) without area were left out: {first(self.flat)}.": len(self.flat),
            f"{len(self.cut)} box(es) crossed the image's edge and were clipped: {first(self.cut)}.": len(self.cut),
            f"{self.difficult} object(s) marked difficult were left out of every split.": self.difficult,
            f"{self.crowds} crowd region(s) were left out.": self.crowds,
        }
        return tuple(sentence for sentence, count in said.items() if count)


def upright_size(image: Image.Image) -> tuple[int, int]:
    """(width, height) once EXIF's orientation is applied."""
    turned = image.getexif().get(_ORIENTATION, 1) in (5, 6, 7, 8)
    return (image.height, image.width) if turned else image.size


def with_boxes(
    classes: tuple[str, ...],
    scenes: dict[str, list[Scene]],
    reader: ImageReader,
    unreadable: Unreadable,
    left_out: LeftOut,
) -> ImageData:
    """Make detection data; decode every image once and check its boxes against it.

    Raises:
        DataError: a box or a size does not fit its image, a split has no image or training no box, too many images
            are unreadable.
    """
    splits = {}
    for name in ("train", "val", "test"):
        images, kept = read_all([(s.path, s) for s in scenes[name]], reader, unreadable, f"The split {name}")
        targets = [fitting(scene, upright_size(images[k]), left_out) for k, scene in enumerate(kept)]
        if name == "train" and not any(len(target.labels) for target in targets):
            raise DataError("No training image has a box that can be used; there is nothing to learn.")
        splits[name] = Split(images, targets, reader)
    return ImageData(classes, splits, "detection", (*left_out.notes, *unreadable.checked()))


def fitting(scene: Scene, size: tuple[int, int], left_out: LeftOut) -> Boxes:
    """The boxes of a scene, clipped to the image, without those that have no area."""
    if scene.size is not None and scene.size != size:
        raise DataError(
            f"{scene.where} says {scene.size[0]}x{scene.size[1]} pixels, the upright {scene.path} has "
            f"{size[0]}x{size[1]}; annotate the image as it is shown."
        )
    boxes, labels = [], []
    for box, label in zip(scene.boxes, scene.labels, strict=True):
        x1, y1, x2, y2 = box
        if not all(math.isfinite(v) for v in box) or x2 < x1 or y2 < y1:
            raise DataError(f"{scene.where} has the box {tuple(box)}, whose corners do not make a box; correct it.")
        if x2 == x1 or y2 == y1:
            left_out.flat.append(scene.path.name or scene.where)
            continue
        inside = (max(x1, 0.0), max(y1, 0.0), min(x2, float(size[0])), min(y2, float(size[1])))
        if inside[0] >= inside[2] or inside[1] >= inside[3]:
            raise DataError(
                f"{scene.where} has the box {tuple(box)} outside its image of {size[0]}x{size[1]} pixels; correct it."
            )
        if inside != tuple(box):
            left_out.cut.append(scene.path.name or scene.where)
        boxes.append(inside)
        labels.append(label)
    return Boxes(np.array(boxes, np.float32).reshape(-1, 4), np.array(labels, np.int64))
