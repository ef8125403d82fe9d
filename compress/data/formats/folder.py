"""ImageFolder trees: a folder for each split, and in it a folder for each class."""

from __future__ import annotations

from pathlib import Path

import torch

from compress.data.files import Unreadable, existing, held_out, is_image, read_all
from compress.data.images import ImageData, ImageReader, Split
from compress.data.layout import find_splits
from compress.errors import DataError
from compress.recipe.data import FolderData


def image_folder(recipe: FolderData, reader: ImageReader, seed: int) -> ImageData:
    """Read ``path/train/CLASS/IMAGE`` and the like; decode every image once, so that damage is found now.

    Raises:
        DataError: a folder is missing, a class has no image, splits differ in classes, too many images are unreadable.
    """
    root = Path(recipe.path)
    where = find_splits(root, recipe.train, recipe.val, recipe.test)
    unreadable = Unreadable(recipe.unreadable, root)
    train, classes = _listed(where.train, unreadable)
    parts = {"train": train}
    for name, place in (("test", where.test), ("val", where.val)):
        if isinstance(place, Path):
            parts[name], own = _listed(place, unreadable)
            if own != classes:
                raise DataError(
                    f"{place} has the classes {', '.join(own)}, {where.train} has {', '.join(classes)}; give both the "
                    "same class folders."
                )
        else:
            names = [where.train / one for one in classes]
            parts["train"], parts[name] = held_out(parts["train"], [k for _, k in parts["train"]], names, place)
    splits = {}
    for name in ("train", "val", "test"):
        images, labels = read_all(parts[name], reader, unreadable, f"{root}, split {name},")
        splits[name] = Split(images, torch.tensor(labels), reader)
    if recipe.unlabelled is not None:
        folder = existing(root / recipe.unlabelled, "target.unlabelled")
        files = sorted(folder.rglob("*"))
        unreadable.unread(files)
        found = [(path, -1) for path in files if is_image(path)]
        images, labels = read_all(found, reader, unreadable, folder)
        splits["unlabelled"] = Split(images, torch.tensor(labels), reader)
    return ImageData(classes, splits, notes=(*where.notes, *unreadable.checked()))


def _listed(folder: Path, unreadable: Unreadable) -> tuple[list[tuple[Path, int]], tuple[str, ...]]:
    existing(folder, "path and the names of the splits")
    names = sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    if len(names) < 2:
        if names:
            raise DataError(f"{folder} has one class alone, {names[0]}; a classifier tells at least two apart.")
        raise DataError(f"{folder} has no class folders; put each class's images in a folder of its own.")
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
