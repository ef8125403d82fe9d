"""Images with masks of class indices: two folders for each split, matched by stem."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from compress.data.files import (
    DAMAGED,
    FORMATS,
    Decoded,
    Unreadable,
    by_stem,
    check_file,
    check_pixels,
    existing,
    first,
    held_out,
    read_all,
)
from compress.data.formats.boxes import upright_size
from compress.data.images import ImageData, ImageReader, Split
from compress.data.targets import IGNORED
from compress.errors import DataError, ImageError
from compress.files import read_bytes
from compress.recipe.data import MasksData, MaskSplit

_INDEX_MODES = {"1", "L", "P", "I;16", "I"}


class Codes:
    """Turn a file's labels into class indices, and the ignored ones into IGNORED.

    Args:
        classes: names, in the order of their indices.
        ignored: labels that are not learned.
        ids: which label is which class; by default the label is the class's index.

    Raises:
        DataError: too many classes for a byte, an ignored label is a class's, or a class has no label.
    """

    def __init__(
        self, classes: Sequence[str], ignored: int | Sequence[int], ids: Mapping[int, str] | None = None
    ) -> None:
        if not 2 <= len(classes) <= IGNORED:
            raise DataError(f"There are {len(classes)} classes of pixels; name 2 to {IGNORED} of them.")
        self.classes = tuple(classes)
        self.ignored = (ignored,) if isinstance(ignored, int) else tuple(ignored)
        if ids is None:
            self.codes = {k: k for k in range(len(classes))}
            if both := sorted({*self.codes} & {*self.ignored}):
                raise DataError(
                    f"ignore_index {both[0]} is the class '{classes[both[0]]}'; name only classes to learn, or say by "
                    "ids which label is which class."
                )
        else:
            self.codes = {label: self.classes.index(name) for label, name in ids.items() if name in self.classes}
            if unknown := next((name for name in ids.values() if name not in self.classes), None):
                raise DataError(f"ids names the class '{unknown}', which is not one of {', '.join(self.classes)}.")
        if lone := [name for k, name in enumerate(self.classes) if k not in self.codes.values()]:
            raise DataError(f"No label in ids maps to the class '{lone[0]}'; give it one, or remove it from classes.")
        self._table = np.full(1 << 16, -1, np.int16)
        self._table[list(self.ignored)] = IGNORED
        self._table[list(self.codes)] = list(self.codes.values())

    def __call__(self, mask: np.ndarray, name: object) -> np.ndarray:
        """Convert a mask (H, W) to uint8; raise DataError where it holds another label."""
        inside = (mask >= 0) & (mask < len(self._table))
        found = np.where(inside, self._table[np.where(inside, mask, 0)], -1)
        if (found < 0).any():
            ignored = ", ".join(map(str, self.ignored))
            raise DataError(
                f"{name} holds the label {int(mask[found < 0].flat[0])}, there are {len(self.classes)} classes and "
                f"ignore_index is {ignored}; correct the mask, the classes, ids or ignore_index."
            )
        return found.astype(np.uint8)


class FileMasks(Decoded[np.ndarray]):
    """Masks from files, uint8 (H, W) each."""

    def __init__(self, paths: Sequence[Path], codes: Codes) -> None:
        super().__init__()
        self.paths, self.codes = list(paths), codes

    def __len__(self) -> int:
        return len(self.paths)

    def _decode(self, index: int) -> tuple[np.ndarray, int]:
        mask = self.codes(load_mask(self.paths[index]), self.paths[index])
        return mask, mask.nbytes


def image_masks(recipe: MasksData, reader: ImageReader, seed: int) -> ImageData:
    """Read images and masks of the same stems; the palette index or grey value of a pixel is its class.

    Raises:
        DataError: a folder or a partner is missing, a mask has another size or an unknown label, too many files are
            unreadable.
    """
    root = Path(recipe.path)
    given = _named(root / recipe.classes) if isinstance(recipe.classes, str) else recipe.classes
    ids = None if recipe.ids is None else dict(sorted(recipe.ids.items()))
    classes = given or tuple(dict.fromkeys((ids or {}).values()))
    codes, unreadable = Codes(classes, recipe.ignored, ids), Unreadable(recipe.unreadable, root)
    pairs = {"train": _pairs(root, recipe.train, unreadable), "test": _pairs(root, recipe.test, unreadable)}
    if isinstance(recipe.val, float):
        folder, train = root / recipe.train.images, pairs["train"]
        pairs["train"], pairs["val"] = held_out(train, [0] * len(train), [folder], recipe.val)
    else:
        pairs["val"] = _pairs(root, recipe.val, unreadable)
    splits, notes = {}, []
    for name in ("train", "val", "test"):
        sound = [(image, mask) for image, mask in pairs[name] if _mask_opens(mask, unreadable)]
        images, kept = read_all(sound, reader, unreadable, f"{root}, split {name},")
        masks = FileMasks(kept, codes)
        counts = np.zeros(IGNORED + 1, np.int64)
        for k, path in enumerate(kept):
            held_against(masks[k], upright_size(images[k]), path)
            counts += np.bincount(masks[k].reshape(-1), minlength=IGNORED + 1)
        if name == "train":
            notes += unseen(counts, codes.classes)
        splits[name] = Split(images, masks, reader)
    return ImageData(codes.classes, splits, "segmentation", (*notes, *unreadable.checked()))


def load_mask(path: Path) -> np.ndarray:
    """The labels (H, W) that a file holds, whatever its palette.

    Raises:
        ImageError: the file is missing, damaged or implausibly large.
        DataError: it is a colour image.
    """
    try:
        check_file(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of many pixels, which are counted here
            with Image.open(path, formats=FORMATS) as image:
                check_pixels(image, path)
                image.load()
        if image.mode not in _INDEX_MODES:
            raise DataError(
                f"The mask {path} has pixels of mode {image.mode}, not class indices; save a greyscale or palette PNG."
            )
        return np.asarray(image).astype(np.int64)
    except (*DAMAGED, Image.DecompressionBombError) as error:
        raise ImageError(f"The mask {path} is missing or damaged ({error}); replace the file.") from None


def held_against(mask: np.ndarray, size: tuple[int, int], name: object) -> None:
    """Raise DataError unless a mask (H, W) has its image's (width, height)."""
    if mask.shape != (size[1], size[0]):
        raise DataError(
            f"{name} has {mask.shape[1]}x{mask.shape[0]} pixels, its image {size[0]}x{size[1]} when upright; "
            "bring both to one size."
        )


def unseen(counts: np.ndarray, classes: Sequence[str]) -> list[str]:
    """Note the classes without a training pixel; raise DataError when fewer than two have any."""
    absent = [name for k, name in enumerate(classes) if not counts[k]]
    if len(absent) >= len(classes) - 1:
        raise DataError(
            f"The training masks hold no pixel of {first(absent)}; check classes and ignore_index (a foreground of 255 "
            "is not class 1)."
        )
    return [f"No training mask has a pixel of {first(absent)}."] if absent else []


def _mask_opens(path: Path, unreadable: Unreadable) -> bool:
    try:
        load_mask(path)
    except ImageError as error:
        unreadable.add(path, error)
        return False
    return True


def _named(path: Path) -> tuple[str, ...]:
    try:
        names = tuple(line.strip() for line in read_bytes(path).decode().split("\n") if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"The file of classes {path} cannot be read ({error}); check classes in the recipe.") from None
    if len(set(names)) != len(names):
        raise DataError(f"The file of classes {path} names something twice; write one class per line.")
    return names


def _pairs(root: Path, split: MaskSplit, unreadable: Unreadable) -> list[tuple[Path, Path]]:
    images = by_stem(existing(root / split.images, "the split's images"))
    masks = by_stem(existing(root / split.masks, "the split's masks"))
    unreadable.unread((root / split.images).iterdir())
    if alone := sorted(set(images) ^ set(masks)):
        raise DataError(
            f"{root / split.images} and {root / split.masks} differ in {len(alone)} name(s) ({first(alone)}); give "
            "each image a mask with the same stem."
        )
    if not images:
        raise DataError(f"{root / split.images} holds no image; add some.")
    return [(images[stem], masks[stem]) for stem in images]
