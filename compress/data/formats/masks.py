"""Images with masks of class indices: two folders for each split, matched by stem."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
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
    """Turn a file's labels into class indices: 0 to classes - 1 stay as they are, the ignored one becomes IGNORED.

    Raises:
        DataError: too many classes for a byte, or the ignored label is a class's.
    """

    def __init__(self, classes: Sequence[str], ignored: int) -> None:
        if not 2 <= len(classes) <= IGNORED:
            raise DataError(f"There are {len(classes)} classes of pixels; name 2 to {IGNORED} of them.")
        if ignored < len(classes):
            raise DataError(f"ignore_index {ignored} is the class '{classes[ignored]}'; name only classes to learn.")
        self.classes, self.ignored = tuple(classes), ignored

    def __call__(self, mask: np.ndarray, name: object) -> np.ndarray:
        """Convert a mask (H, W) to uint8; raise DataError where it holds another label."""
        wrong = (mask != self.ignored) & ((mask < 0) | (mask >= len(self.classes)))
        if wrong.any():
            raise DataError(
                f"{name} holds the label {int(mask[wrong].flat[0])}, there are {len(self.classes)} classes and "
                f"ignore_index is {self.ignored}; mend the mask, the classes or ignore_index."
            )
        return np.where(mask == self.ignored, IGNORED, mask).astype(np.uint8)


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
    classes = _named(root / recipe.classes) if isinstance(recipe.classes, str) else recipe.classes
    codes, unreadable = Codes(classes, recipe.ignore_index), Unreadable(recipe.unreadable, root)
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
    return ImageData(codes.classes, splits, "segmentation", (*notes, *unreadable.notes))


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
                f"The mask {path} has pixels of mode {image.mode}, not class indices; save grey or palette PNG."
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
        raise DataError(f"The file of classes {path} names something twice; a line is a class.")
    return names


def _pairs(root: Path, split: MaskSplit, unreadable: Unreadable) -> list[tuple[Path, Path]]:
    images = by_stem(existing(root / split.images, "the split's images"))
    masks = by_stem(existing(root / split.masks, "the split's masks"))
    unreadable.unread((root / split.images).iterdir())
    if alone := sorted(set(images) ^ set(masks)):
        raise DataError(
            f"{root / split.images} and {root / split.masks} differ in {len(alone)} name(s) ({first(alone)}); give "
            "each image a mask of the same stem."
        )
    if not images:
        raise DataError(f"{root / split.images} holds no image; add some.")
    return [(images[stem], masks[stem]) for stem in images]
