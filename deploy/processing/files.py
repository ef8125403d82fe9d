"""List the images that a user names: files, and folders of them at any depth."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from deploy.errors import DeployError
from deploy.processing.preprocess import Preprocessing

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".ppm", ".pgm", ".tif", ".tiff", ".gif"})


def image_files(paths: Sequence[str | Path]) -> list[Path]:
    """Return the files among ``paths`` as they are, and the images of each folder, sorted; hidden ones are left out.

    A folder without images stays among several paths, so that the others have their answers.

    Raises:
        DeployError: the only path is a folder that holds no image.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        if not os.path.isdir(path):  # noqa: PTH112 - False too for a name that no file system takes
            found.append(path)  # what it is shows when it is read
            continue
        inside = sorted(
            one
            for one in path.rglob("*")
            if one.suffix.lower() in SUFFIXES and one.is_file() and not _hidden(one.relative_to(path))
        )
        if not inside and len(paths) == 1:
            raise DeployError(f"The folder {path} holds no image; name a folder with images, or files.")
        found += inside or [path]
    return found


def prepared(paths: Sequence[Path], preprocessing: Preprocessing) -> list[np.ndarray]:
    """Read each image and prepare it, float32 (C, H, W); raise DeployError where one cannot be read."""
    return [preprocessing(preprocessing.load(path)) for path in paths]


def drawn(paths: Sequence[Path], most: int, seed: int) -> list[Path]:
    """Return at most ``most`` of the paths, drawn with ``seed`` and in their order."""
    if len(paths) <= most:
        return list(paths)
    chosen = np.random.default_rng(seed).choice(len(paths), most, replace=False)
    return [paths[i] for i in sorted(chosen.tolist())]


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)
