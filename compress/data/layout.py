"""Which folder is which split: people call them train, training, val, valid, test and so on."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from compress.errors import DataError

NAMES = MappingProxyType(
    {
        "train": ("train", "training", "trn"),
        "val": ("val", "valid", "validation", "dev"),
        "test": ("test", "testing", "tst"),
    }
)
"""What a split is usually called, the likeliest first; letters may be large or small."""

SHARE = 0.2
"""How much of the training images is held out where a split has no folder."""


@dataclass(frozen=True)
class Splits:
    """Where each split lies.

    Args:
        train: its folder.
        val, test: its folder, or the share of the training images that is held out.
        notes: what was not as the recipe says, one sentence each.
    """

    train: Path
    val: Path | float
    test: Path | float
    notes: tuple[str, ...] = field(default=())


def named(root: Path, split: str) -> Path | None:
    """Return the folder of a split under one of its usual names; None where there is none."""
    inside = {path.name.lower(): path for path in sorted(root.iterdir(), reverse=True) if path.is_dir()}
    return next((inside[name] for name in NAMES[split] if name in inside), None)


def find_splits(root: Path, train: str, val: str | float, test: str | float) -> Splits:
    """Find the folders of the splits: as the recipe names them, else under another usual name.

    A recipe's name that is none of the usual ones is meant as it stands. Where there is no folder of training images
    but those of the classes, they are the training images. A test without a folder takes that of the validation, which
    then is a share of the training images, as is each split that has no folder at all.

    Args:
        root: what holds them.
        train, val, test: names of folders, or shares of the training images.

    Raises:
        DataError: there is no such folder, and no other one that could be meant.
    """
    if not root.is_dir():
        raise DataError(f"There is no folder {root}; check target.path in the recipe.")
    notes: list[str] = []
    usual = {name for names in NAMES.values() for name in names}

    def found(split: str, name: str) -> Path | None:
        if (root / name).is_dir():
            return root / name
        if name.lower() not in usual:
            raise DataError(f"There is no folder {root / name}; check path and the names of the splits in the recipe.")
        other = named(root, split)
        if other is not None:
            notes.append(f"There is no folder {name}: {other.name} is the {split} split.")
        return other

    learned = found("train", train)
    if learned is None:
        # Class folders alone; anything else is no data set.
        others = [path for path in root.iterdir() if path.is_dir() and path.name.lower() in usual]
        if others or not any(path.is_dir() and not path.name.startswith(".") for path in root.iterdir()):
            raise DataError(f"There is no folder {root / train}; put the training images there, or name it in train.")
        learned = root
        notes.append(f"There is no folder {train}: the class folders of {root.name} are the training images.")
    held: Path | float | None = found("val", val) if isinstance(val, str) else val
    tested: Path | float | None = test if isinstance(test, float) else found("test", test)
    if tested is None and isinstance(held, Path) and learned != root:
        tested, held = held, SHARE
        notes.append(f"There is no folder {test}: {tested.name} is the test split, validation a share of {train}.")
    elif tested is None:
        other = named(root, "val") if learned != root else None
        tested = SHARE if other is None else other
        what = f"{SHARE:.0%} of the training images are" if other is None else f"{other.name} is"
        notes.append(f"There is no folder {test}: {what} the test split.")
    if held is None:
        held = SHARE
        notes.append(f"There is no folder {val}: {SHARE:.0%} of the training images are the val split.")
    return Splits(learned, held, tested, tuple(notes))
