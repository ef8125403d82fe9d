"""ImageFolder trees: a folder for each split, and in it a folder for each class."""

from __future__ import annotations

from pathlib import Path

import torch

from compress.data.files import Unreadable, existing, held_out, is_image, read_all
from compress.data.images import ImageData, ImageReader, Split
from compress.errors import DataError
from compress.recipe.data import FolderData


def image_folder(recipe: FolderData, reader: ImageReader, seed: int) -> ImageData:
    """Read ``path/train/CLASS/IMAGE`` and the like; decode every image once, so that damage is found now.

    Raises:
        DataError: a folder is missing, a class has no image, splits differ in classes, too many images are unreadable.
    """
    root = Path(recipe.path)
    unreadable = Unreadable(recipe.unreadable, root)
    train, classes = _listed(root / recipe.train, unreadable)
    test, test_classes = _listed(root / recipe.test, unreadable)
    if test_classes != classes:
        raise DataError(
            f"{root / recipe.test} has the classes {', '.join(test_classes)}, {root / recipe.train} has "
            f"{', '.join(classes)}; give both the same class folders."
        )
    if isinstance(recipe.val, str):
        val, val_classes = _listed(root / recipe.val, unreadable)
        if val_classes != classes:
            raise DataError(f"{root / recipe.val} has other classes than {root / recipe.train}.")
    else:
        names = [root / recipe.train / name for name in classes]
        train, val = held_out(train, [label for _, label in train], names, recipe.val)
    splits = {}
    for name, items in (("train", train), ("val", val), ("test", test)):
        images, labels = read_all(items, reader, unreadable, f"{root}, split {name},")
        splits[name] = Split(images, torch.tensor(labels), reader)
    if recipe.unlabelled is not None:
        folder = existing(root / recipe.unlabelled, "target.unlabelled")
        files = sorted(folder.rglob("*"))
        unreadable.unread(files)
        found = [(path, -1) for path in files if is_image(path)]
        images, labels = read_all(found, reader, unreadable, folder)
        splits["unlabelled"] = Split(images, torch.tensor(labels), reader)
    return ImageData(classes, splits, notes=unreadable.notes)


def _listed(folder: Path, unreadable: Unreadable) -> tuple[list[tuple[Path, int]], tuple[str, ...]]:
    existing(folder, "path and the names of the splits")
    names = sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    if len(names) < 2:
        raise DataError(f"{folder} has {len(names)} class folder(s); put each class's images in its own folder.")
    items: list[tuple[Path, int]] = []
    unreadable.unread(folder.iterdir())
    for label, name in enumerate(names):
        files = sorted((folder / name).rglob("*"))
        unreadable.unread(files)
        own = [path for path in files if is_image(path)]
        if not own:
            held = sorted({path.suffix.lower() or "no ending" for path in files if path.is_file()})
            other = f", only files of {', '.join(held)}" if held else ""
            raise DataError(f"The class folder {folder / name} holds no image{other}; add some, or remove the folder.")
        items += [(path, label) for path in own]
    return items, tuple(names)
