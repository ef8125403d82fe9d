"""Decode files on demand, keep the first of them in memory, and count those that cannot be read."""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np
from PIL import Image

from compress.data.images import CACHE_BYTES, ImageData, ImageReader
from compress.errors import DataError, ImageError

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""What an image file may be, as bundles have it; Pillow would start Ghostscript for an EPS."""

SEVERAL = "niwaki.several"
"""The key that marks, in ``Image.info``, the first of several frames or pages, as bundles have it."""
_MOST_PIXELS, _PIXELS_PER_BYTE = 1 << 25, 32  # as bundles have it; photographs have less than 10 pixels a byte

DAMAGED = (
    ArithmeticError,
    AttributeError,
    EOFError,
    ImportError,  # where a library took over Image.open and looks for another of its packages
    LookupError,
    OSError,
    SyntaxError,
    TypeError,
    ValueError,
    struct.error,
)
"""What Pillow's decoders raise on damaged data."""

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".ppm", ".pgm", ".tif", ".tiff"}
TEXTS = {
    ".cfg",
    ".csv",
    ".db",
    ".htm",
    ".html",
    ".ini",
    ".json",
    ".log",
    ".md",
    ".py",
    ".toml",
    ".txt",
    ".xml",
    ".yaml",
    ".yml",
}
"""Endings of what lies beside images and is none."""
T = TypeVar("T")


def check_file(path: Path) -> None:
    """Refuse what is not a regular file, such as a pipe, which would be waited for without end; raise OSError."""
    if not path.is_file():
        raise OSError("there is no such file" if not path.exists() else "it is not a regular file")


def check_pixels(image: Image.Image, path: Path) -> None:
    """Refuse an image that would take far more memory than its file is large, before it is decoded.

    Raises:
        ImageError: it does.
    """
    size = path.stat().st_size
    if image.width * image.height > max(_MOST_PIXELS, _PIXELS_PER_BYTE * size):
        raise ImageError(
            f"{path} claims that its {size} bytes are {image.width} x {image.height} pixels, which is too large to be "
            "opened safely; scale it down first."
        )


class Decoded(Generic[T]):
    """A sequence that is decoded on demand; its first gigabyte is kept in memory."""

    def __init__(self) -> None:
        self._kept: dict[int, T] = {}
        self._bytes = 0

    def __getitem__(self, index: int) -> T:
        if index in self._kept:
            return self._kept[index]
        found, size = self._decode(index)
        if self._bytes + size <= CACHE_BYTES:
            self._kept[index] = found
            self._bytes += size
        return found

    def _decode(self, index: int) -> tuple[T, int]:
        """Decode the entry at ``index``; return it and its size in bytes."""
        raise NotImplementedError


class FileImages(Decoded[Image.Image]):
    """Images as RGB, from files."""

    def __init__(self, paths: Sequence[Path], reader: ImageReader) -> None:
        super().__init__()
        self.paths = list(paths)
        self.reader = reader

    def __len__(self) -> int:
        return len(self.paths)

    def _decode(self, index: int) -> tuple[Image.Image, int]:
        image = self.reader.load(self.paths[index])
        image = image if image.mode == "RGB" else image.convert("RGB")
        return image, image.width * image.height * 3

    def append(self, path: Path) -> Image.Image:
        """Add a file and return its image; if ``reader.load`` raises, nothing is added."""
        self.paths.append(path)
        try:
            return self[len(self.paths) - 1]
        except Exception:
            self.paths.pop()
            raise


class Unreadable:
    """The files of a data set that cannot be read: they are left out, counted and named, up to a limit.

    Args:
        limit: how many may be left out, as a recipe says; None for none where there is no recipe.
        root: the notes name files relative to it, since a ledger names no folder of a machine.
    """

    def __init__(self, limit: int | None, root: Path | None = None) -> None:
        self.limit, self.root = limit, root
        self.names: list[str] = []
        self.first: ImageError | None = None
        self.several: list[str] = []
        self.endings: Counter[str] = Counter()

    def add(self, name: Path | str, error: ImageError) -> None:
        """Count one file."""
        self.names.append(self._shown(name))
        self.first = self.first or error

    def check_frames(self, path: Path, image: Image.Image) -> None:
        """Count an image that is the first of several frames or pages of its file."""
        if image.info.get(SEVERAL):
            self.several.append(self._shown(path))

    def unread(self, files: Iterable[Path]) -> None:
        """Count, by their endings, the files that may be images and are not read; hidden ones and texts are none."""
        others = (p for p in files if not is_image(p) and p.suffix.lower() not in TEXTS and p.is_file())
        others = (p for p in others if not p.name.startswith("."))
        self.endings.update(path.suffix.lower() or "no ending" for path in others)

    def _shown(self, name: Path | str) -> str:
        inside = isinstance(name, Path) and self.root is not None and name.is_relative_to(self.root)
        return str(name.relative_to(self.root)) if inside else str(name)  # type: ignore[union-attr, arg-type]

    def checked(self) -> tuple[str, ...]:
        """Say, once all is read, what was left out and what was read in part.

        Raises:
            DataError: more is left out than may be.
        """
        if len(self.names) > (self.limit or 0):
            which = f"{first(self.names)}; the first: " if len(self.names) > 1 else ""
            allowed = "" if self.limit is None else f" and 'unreadable' allows {self.limit}"
            left_out = (
                f"unreadable: {len(self.names)} beside the path (such as --set target.unreadable={len(self.names)})"
            )
            way = "" if self.limit is None else f", or leave them out by {left_out}"
            raise DataError(
                f"{len(self.names)} image(s) cannot be read{allowed}; mend or delete them{way}: {which}{self.first}"
            )
        endings = [f"{ending} ({count})" for ending, count in self.endings.most_common()]
        said = {
            f"{len(self.names)} unreadable image(s) were left out: {first(self.names)}.": self.names,
            f"Of {len(self.several)} file(s) with several frames or pages the first was read: {first(self.several)}.": (
                self.several
            ),
            f"{self.endings.total()} file(s) were not read, since only {', '.join(sorted(SUFFIXES))} are read: "
            f"{first(endings)}.": endings,
        }
        return tuple(sentence for sentence, found in said.items() if found)


def first(names: Sequence[str], count: int = 5) -> str:
    """The first few names."""
    more = len(names) - count
    return ", ".join(names[:count]) + (f" and {more} more" if more > 0 else "")


def read_all(
    items: Sequence[tuple[Path, T]], reader: ImageReader, unreadable: Unreadable, where: object
) -> tuple[FileImages, list[T]]:
    """Decode every image once, so that damage is found now; an unreadable one is left out with what belongs to it.

    Raises:
        DataError: too many images are unreadable, or none is left.
    """
    images, kept = FileImages([], reader), []
    for path, own in items:
        try:
            unreadable.check_frames(path, images.append(path))
        except ImageError as error:
            unreadable.add(path, error)
        else:
            kept.append(own)
    if not kept:
        unreadable.checked()
        raise DataError(f"{where} gives no image that can be read; add some.")
    return images, kept


def shared(data: ImageData) -> tuple[str, ...]:
    """Note where the test split shares files with what is learned from, which makes its figures too good."""
    notes, test = [], getattr(data.splits.get("test"), "images", None)
    for split in ("train", "unlabelled"):
        learned = getattr(data.splits.get(split), "images", None)
        if not isinstance(learned, FileImages) or not isinstance(test, FileImages):
            continue
        common = sorted({p.resolve() for p in learned.paths} & {p.resolve() for p in test.paths})
        names = [f"{path.parent.parent.name}/{path.parent.name}/{path.name}" for path in common]
        if names:
            notes.append(f"{len(names)} image(s) of test are in {split} too: {first(names)}.")
    return tuple(notes)


def existing(folder: Path, key: str) -> Path:
    """Return the folder; raise DataError if it is none."""
    if not folder.is_dir():
        raise DataError(f"There is no folder {folder}; check {key} in the recipe.")
    return folder


def is_image(path: Path) -> bool:
    """Judge by the suffix; hidden files belong to some system, and a broken link fails when it is read."""
    known = path.suffix.lower() in SUFFIXES and not path.name.startswith(".")
    return known and (path.is_file() or path.is_symlink())


def by_stem(folder: Path) -> dict[str, Path]:
    """The images of a folder by stem; raise DataError when two have the same."""
    found: dict[str, Path] = {}
    for path in sorted(p for p in folder.iterdir() if is_image(p)):
        if path.stem in found:
            raise DataError(f"{found[path.stem]} and {path.name} have the same stem; keep one of them.")
        found[path.stem] = path
    return found


def held_out(items: Sequence[T], groups: Sequence[int], names: Sequence[object], share: float) -> tuple[list[T], ...]:
    """Move a share of each group from the training items to a validation split, the same ones every time.

    Args:
        items: the training items.
        groups: the group of each item.
        names: the groups' names, for the error message.
        share: share of each group, above 0 and below 1; at least one item is taken.

    Returns:
        The items that stay, and those that are held out.

    Raises:
        DataError: a group would be left empty.
    """
    order = np.random.default_rng(0).permutation(len(items))
    train: list[T] = []
    val: list[T] = []
    for group in sorted(set(groups)):
        own = [items[i] for i in order if groups[i] == group]
        count = max(1, round(share * len(own)))
        if count >= len(own):
            raise DataError(
                f"{names[group]} has only {len(own)} image(s), of which no validation split can be taken; "
                "add some, or name a validation split in val."
            )
        val += own[:count]
        train += own[count:]
    return train, val
