"""Boxes in COCO's layout: a folder of images and a JSON file for each split."""

from __future__ import annotations

from pathlib import Path
from typing import NotRequired

from pydantic import TypeAdapter, ValidationError
from typing_extensions import TypedDict

from compress.data.files import Unreadable, existing, held_out
from compress.data.formats.boxes import LeftOut, Scene, with_boxes
from compress.data.images import ImageData, ImageReader
from compress.errors import DataError
from compress.files import LIST_BYTES, read_bytes
from compress.recipe.data import CocoData, CocoSplit
from compress.validation import explain


class _Image(TypedDict):
    id: int
    file_name: str
    width: NotRequired[int]
    height: NotRequired[int]


class _Object(TypedDict):
    image_id: int
    category_id: int
    bbox: tuple[float, float, float, float]
    iscrowd: NotRequired[int]


class _Category(TypedDict):
    id: int
    name: str


class _File(TypedDict):
    images: list[_Image]
    annotations: list[_Object]
    categories: list[_Category]


_FILE = TypeAdapter(_File)


def coco_boxes(recipe: CocoData, reader: ImageReader, seed: int) -> ImageData:
    """Read COCO's JSON; categories become classes in the order of their ids.

    Crowd regions are left out. Images without an object stay: they show what is not an object.

    Raises:
        DataError: a file is missing, is not COCO JSON or refers to what it does not hold; or splits differ in their
            categories.
    """
    root, left_out = Path(recipe.path), LeftOut()
    categories, train = _read(root, recipe.train, left_out)
    test_categories, test = _read(root, recipe.test, left_out)
    others = [(recipe.test, test_categories)]
    if isinstance(recipe.val, float):
        file = root / recipe.train.annotations
        train, val = held_out(train, [0] * len(train), [file], recipe.val)
    else:
        val_categories, val = _read(root, recipe.val, left_out)
        others.append((recipe.val, val_categories))
    for split, found in others:
        if found != categories:
            raise DataError(
                f"{root / split.annotations} has other categories than {root / recipe.train.annotations}; "
                "give all splits the same ids and names."
            )
    classes = tuple(categories[key] for key in sorted(categories))
    scenes = {"train": train, "val": val, "test": test}
    return with_boxes(classes, scenes, reader, Unreadable(recipe.unreadable, root), left_out)


def _read(root: Path, split: CocoSplit, left_out: LeftOut) -> tuple[dict[int, str], list[Scene]]:
    """Categories by id, and the scenes in the order of the file's images."""
    folder, path = existing(root / split.images, "the split's images"), root / split.annotations
    found = _parsed(path)
    categories = {c["id"]: c["name"] for c in found["categories"]}
    images = {image["id"]: image for image in found["images"]}
    if len(categories) != len(found["categories"]) or len(images) != len(found["images"]):
        raise DataError(f"{path} has two categories or two images with one id; give each its own.")
    if not categories or not images or len(set(categories.values())) != len(categories):
        raise DataError(f"{path} has no image, no category or two categories of one name; correct it.")
    classes = {key: place for place, key in enumerate(sorted(categories))}
    boxes: dict[int, list[tuple[float, float, float, float]]] = {key: [] for key in images}
    labels: dict[int, list[int]] = {key: [] for key in images}
    for number, item in enumerate(found["annotations"]):
        image, category, (x, y, width, height) = item["image_id"], item["category_id"], item["bbox"]
        if image not in images or category not in classes:
            key, value = ("category_id", category) if image in images else ("image_id", image)
            raise DataError(
                f"{path}, annotation {number} has the {key} {value}, which the file does not hold; correct it."
            )
        if item.get("iscrowd", 0):
            left_out.crowds += 1
            continue
        if width < 0 or height < 0:
            raise DataError(f"{path}, annotation {number} has the bbox {item['bbox']} of negative size; correct it.")
        boxes[image].append((x, y, x + width, y + height))
        labels[image].append(classes[category])
    scenes = []
    for image, entry in images.items():
        size = (entry.get("width", 0), entry.get("height", 0))
        where = f"{path}, image {entry['file_name']},"
        seen = size if min(size) > 0 else None
        scenes.append(Scene(folder / entry["file_name"], where, seen, boxes[image], labels[image]))
    return categories, scenes


def _parsed(path: Path) -> _File:
    try:
        return _FILE.validate_json(read_bytes(path, LIST_BYTES))
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); check path and the splits in the recipe.") from None
    except ValidationError as error:
        raise DataError(f"{path} is not a COCO annotation ({explain(error, whole='the file')}); correct it.") from None
