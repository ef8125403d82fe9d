"""ImageFolder trees: one folder a split, one folder a class."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from compress.data.images import CACHE_BYTES, ImageData, ImageReader, Split
from compress.errors import DataError
from compress.recipe import FolderData

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".ppm", ".pgm", ".tif", ".tiff"}


class FileImages:
    """Images decoded when asked for; the first gigabyte of them is kept."""

    def __init__(self, paths: Sequence[Path], reader: ImageReader) -> None:
        self.paths = paths
        self.reader = reader
        self._decoded: dict[int, Image.Image] = {}
        self._bytes = 0

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Image.Image:
        if index in self._decoded:
            return self._decoded[index]
        image = self.reader.load(self.paths[index])
        image = image if image.mode == "RGB" else image.convert("RGB")
        size = image.width * image.height * 3
        if self._bytes + size <= CACHE_BYTES:
            self._decoded[index] = image
            self._bytes += size
        return image


def image_folder(recipe: FolderData, reader: ImageReader, seed: int) -> ImageData:
    """Reads `path/train/CLASS/IMAGE` and the like; every image is decoded once, so that damage shows now.

    Raises:
        DataError: a folder is missing, a class has no image, splits differ in classes.
        Exception: what `reader.load` raises for a damaged image.
    """
    root = Path(recipe.path)
    train, classes = _listed(root / recipe.train)
    test, test_classes = _listed(root / recipe.test)
    if test_classes != classes:
        raise DataError(
            f"{root / recipe.test} has the classes {', '.join(test_classes)}, {root / recipe.train} has "
            f"{', '.join(classes)}; give both the same class folders."
        )
    if isinstance(recipe.val, str):
        val, val_classes = _listed(root / recipe.val)
        if val_classes != classes:
            raise DataError(f"{root / recipe.val} has other classes than {root / recipe.train}.")
    else:
        train, val = _held_out(train, recipe.val, classes, root / recipe.train)
    splits = {}
    for name, items in (("train", train), ("val", val), ("test", test)):
        images = FileImages([path for path, _ in items], reader)
        for index in range(len(images)):
            images[index]
        splits[name] = Split(images, torch.tensor([label for _, label in items]), reader)
    return ImageData(classes, splits)


def _listed(folder: Path) -> tuple[list[tuple[Path, int]], tuple[str, ...]]:
    if not folder.is_dir():
        raise DataError(f"There is no folder {folder}; check target.path and the names of its splits.")
    names = sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    if len(names) < 2:
        raise DataError(f"{folder} has {len(names)} class folder(s); put each class's images in its own folder.")
    items: list[tuple[Path, int]] = []
    for label, name in enumerate(names):
        own = sorted(p for p in (folder / name).rglob("*") if _is_image(p))
        if not own:
            raise DataError(f"The class folder {folder / name} holds no image; add some, or remove the folder.")
        items += [(path, label) for path in own]
    return items, tuple(names)


def _is_image(path: Path) -> bool:
    """By its ending; hidden files are some system's own, a broken link is an error that shows when it is read."""
    known = path.suffix.lower() in SUFFIXES and not path.name.startswith(".")
    return known and (path.is_file() or path.is_symlink())


def _held_out(
    items: list[tuple[Path, int]], share: float, classes: Sequence[str], folder: Path
) -> tuple[list[tuple[Path, int]], list[tuple[Path, int]]]:
    """Takes a share of each class out of the training images; the same ones every time."""
    order = np.random.default_rng(0).permutation(len(items))
    train: list[tuple[Path, int]] = []
    val: list[tuple[Path, int]] = []
    for label in sorted({label for _, label in items}):
        own = [items[i] for i in order if items[i][1] == label]
        count = max(1, round(share * len(own)))
        if count >= len(own):
            raise DataError(
                f"{folder / classes[label]} has only {len(own)} image(s), of which no validation split can be taken; "
                "add some, or give target.val a folder."
            )
        val += own[:count]
        train += own[count:]
    return train, val
