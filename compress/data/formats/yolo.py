"""Boxes in YOLO's layout: a text file for each image, and a ``data.yaml`` that names folders and classes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from PIL import Image

from compress.data.files import DAMAGED, FORMATS, Unreadable, held_out, is_image
from compress.data.formats.boxes import LeftOut, Scene, upright_size, with_boxes
from compress.data.images import ImageData, ImageReader
from compress.data.layout import NAMES, SHARE
from compress.errors import DataError, ImageError
from compress.files import LIST_BYTES, read_bytes
from compress.recipe.data import YoloData
from compress.recipe.yaml_text import parsed, told

_FILES = ("data.yaml", "data.yml", "dataset.yaml")


def yolo_boxes(recipe: YoloData, reader: ImageReader, seed: int) -> ImageData:
    """Read ``data.yaml``, images, and for each ``labels/.../NAME.txt`` beside ``images/.../NAME.jpg``.

    A line is a class and the centre, width and height of a box as shares of the image, or a class and the corners of
    an outline, whose box is taken. An image without a file, or with an empty one, shows nothing. A split that nothing
    names is a share of the training images; a test that nothing names takes the validation's images.

    Raises:
        DataError: a file or a folder is missing or damaged, or a class is unknown.
    """
    file = _file(Path(recipe.path))
    about = _about(file) if file else {}
    root = file.parent if file else Path(recipe.path)
    classes = recipe.classes or _classes(about, file or root)
    notes: list[str] = []
    unreadable, left_out = Unreadable(recipe.unreadable, root), LeftOut()
    asked = {name: getattr(recipe, name) for name in ("train", "val", "test")}
    places = {name: _place(root, about, name, one, unreadable) for name, one in asked.items()}
    train = places["train"]
    if train is None or isinstance(train, float):
        raise DataError(f"{file or root} names no training images; give train, a folder of images.")
    if places["test"] is None and isinstance(places["val"], list):
        places["test"], places["val"] = places["val"], SHARE
        notes.append(f"{root.name} has no test split: its val images are tested on, val is a share of train.")
    images: dict[str, list[Path]] = {"train": train}
    for name in ("test", "val"):
        place = places[name]
        if isinstance(place, list):
            images[name] = place
            continue
        if place is None:
            notes.append(f"{root.name} has no {name} split: {SHARE:.0%} of the training images are.")
        images["train"], images[name] = held_out(
            images["train"], [0] * len(images["train"]), [root], SHARE if place is None else place
        )
    scenes = {
        name: [scene for path in own if (scene := _scene(path, classes, unreadable)) is not None]
        for name, own in images.items()
    }
    found = with_boxes(classes, scenes, reader, unreadable, left_out)
    return ImageData(found.classes, found.splits, found.task, (*notes, *found.notes))


def _file(path: Path) -> Path | None:
    """The ``data.yaml``: what was named, or the one that the folder holds; None where it holds none."""
    if path.is_file():
        return path
    if not path.is_dir():
        raise DataError(f"There is no {path}; name a data.yaml, or the folder that holds one, in path.")
    return next((path / name for name in _FILES if (path / name).is_file()), None)


def _about(file: Path) -> Mapping[str, Any]:
    try:
        found = parsed(read_bytes(file).decode())
    except (yaml.YAMLError, ValueError, OSError, RecursionError) as error:
        raise DataError(f"{file} is not YAML ({told(error)}); correct it.") from None
    if not isinstance(found, dict):
        raise DataError(f"{file} holds {type(found).__name__}, not a mapping with train, val and names.")
    return found


def _classes(about: Mapping[str, Any], file: Path) -> tuple[str, ...]:
    """The names of the classes, from a list, or from a mapping whose keys are their indices."""
    names = about.get("names")
    if isinstance(names, dict) and all(isinstance(key, int) for key in names):
        names = [names.get(k) for k in range(len(names))]
    if not isinstance(names, list) or not names or not all(isinstance(name, str | int) for name in names):
        raise DataError(f"{file} does not name the classes; give names there, or classes in the recipe.")
    classes = tuple(str(name) for name in names)
    if len(set(classes)) != len(classes):
        raise DataError(f"{file} names a class twice; give each another name.")
    return classes


def _place(
    root: Path, about: Mapping[str, Any], split: str, asked: str | float | None, unreadable: Unreadable
) -> list[Path] | float | None:
    """The images of a split: of what the recipe names, else the file, else a folder of a usual name."""
    if isinstance(asked, float):
        return asked
    named = asked or about.get(split) or (about.get("valid") if split == "val" else None)
    if named is None:
        usual = [root / part for name in NAMES[split] for part in (f"images/{name}", f"{name}/images")]
        folder = next((one for one in usual if one.is_dir()), None)
        return None if folder is None else _images(folder, unreadable)
    several = named if isinstance(named, list) else [named]
    if not all(isinstance(one, str) for one in several):
        raise DataError(f"{split} of {root} is {str(named)[:80]}; name a folder of images, or a list of them.")
    above = about.get("path")
    homes = [root / above, root] if isinstance(above, str) else [root]
    found: list[Path] = []
    for one in several:
        # Downloads name their folders from somewhere else: ../train/images beside a data.yaml in the same folder.
        ways = [home / way for home in homes for way in (one, one.removeprefix("../"))]
        place = next((way for way in ways if way.exists()), None)
        if place is None:
            raise DataError(f"There is no {ways[0]}, which the split {split} names; check path and {split}.")
        found += _images(place, unreadable)
    return found


def _images(place: Path, unreadable: Unreadable) -> list[Path]:
    """The images of a folder at any depth, or those that a text file lists; what else a folder holds is counted."""
    if place.is_dir():
        files = sorted(place.rglob("*"))
        unreadable.unread(files)
        found = [path for path in files if is_image(path)]
    else:
        try:
            lines = read_bytes(place, LIST_BYTES).decode().splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"The list {place} cannot be read ({error}); check the splits.") from None
        found = [place.parent / line.strip() for line in dict.fromkeys(lines) if line.strip()]
    if not found:
        raise DataError(f"{place} holds no image; add some, or name another folder.")
    return found


def _labels(image: Path) -> Path:
    """Where the boxes of an image stand: under ``labels`` in the place of the last ``images``, else beside it."""
    parts = list(image.parts)
    places = [k for k, part in enumerate(parts[:-1]) if part == "images"]
    if places:
        parts[places[-1]] = "labels"
    return Path(*parts).with_suffix(".txt")


def _scene(image: Path, classes: tuple[str, ...], unreadable: Unreadable) -> Scene | None:
    """An image and its boxes in pixels; None where it cannot be read, which is counted."""
    file = _labels(image)
    try:
        with Image.open(image, formats=FORMATS) as opened:
            width, height = upright_size(opened)
    except (*DAMAGED, Image.DecompressionBombError) as error:
        unreadable.add(image, ImageError(f"{image} is missing or damaged ({error}); replace the file."))
        return None
    if not file.exists():
        return Scene(image, str(file), None, [], [])
    try:
        lines = read_bytes(file).decode().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file} cannot be read ({error}); correct it.") from None
    boxes, labels = [], []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        label, (x1, y1, x2, y2) = _box(line, f"{file}, line {number},", classes)
        boxes.append((x1 * width, y1 * height, x2 * width, y2 * height))
        labels.append(label)
    return Scene(image, str(file), None, boxes, labels)


def _box(line: str, where: str, classes: tuple[str, ...]) -> tuple[int, tuple[float, float, float, float]]:
    """The class of a line, and its box as shares of the image."""
    try:
        label, *rest = (float(part) for part in line.split())
    except ValueError:
        raise DataError(f"{where} holds {line.strip()[:60]!r}, not a class and numbers; correct it.") from None
    if not label.is_integer() or not 0 <= label < len(classes):
        raise DataError(
            f"{where} is of class {label:g}, and there are {len(classes)}; correct it, or name all classes."
        )
    if len(rest) == 4:
        x, y, w, h = rest
        corners = [x - w / 2, x + w / 2], [y - h / 2, y + h / 2]
    elif len(rest) >= 6 and len(rest) % 2 == 0:
        corners = rest[::2], rest[1::2]
    else:
        raise DataError(f"{where} has {len(rest)} numbers after the class; give 4, or the corners of an outline.")
    if not all(math.isfinite(value) and -0.5 <= value <= 1.5 for part in corners for value in part):
        raise DataError(f"{where} is not in shares of the image from 0 to 1 ({line.strip()[:60]}); divide by its size.")
    (xs, ys) = corners
    return int(label), (min(xs), min(ys), max(xs), max(ys))
