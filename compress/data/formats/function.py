"""Data from the user's own code: ``module:function``.

The function is called with the recipe's ``arguments`` and returns a mapping with ``train``, ``val`` and ``test``. Each
is a sequence (``len``, and an index from 0) of pairs (image, target) that returns the same pair for an index each time:

- image: a ``PIL.Image.Image``; it is turned into RGB as the recipe's preprocessing says of a file: a background behind
  what is transparent, 16 bits scaled by ``bits``.
- target: an integer, the class (classification); or a numpy array (H, W) of whole numbers, the class of each pixel and
  255 for none (segmentation); or ``compress.data.Boxes`` (detection). One kind in all splits.

The classes' names are the recipe's ``classes``, else the training sequence's attribute ``classes``, else, for integers,
0 to the largest one. The function may also return a whole ``compress.data.ImageData``, whose reader becomes the run's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from compress.data.files import Decoded, Unreadable
from compress.data.formats.boxes import LeftOut, Scene, fitting, upright_size
from compress.data.formats.masks import Codes, held_against, unseen
from compress.data.images import ImageData, ImageReader, Split
from compress.data.targets import IGNORED, Boxes, TaskName
from compress.errors import DataError, ImageError
from compress.recipe.data import FunctionData
from compress.trust import trusted_function

SPLITS = ("train", "val", "test")
"""What a mapping has to hold."""
_TASKS: dict[type, TaskName] = {int: "classification", np.ndarray: "segmentation", Boxes: "detection"}


class ItemImages(Decoded[Image.Image]):
    """The images of a sequence's pairs, at the indices that could be read, as ``show`` turns them into pictures."""

    def __init__(self, items: Any, places: list[int], name: str, show: Callable[[Image.Image], Image.Image]) -> None:
        super().__init__()
        self.items, self.places, self.name, self.show = items, places, name, show

    def __len__(self) -> int:
        return len(self.places)

    def _decode(self, index: int) -> tuple[Image.Image, int]:
        image, _ = pair(self.items, self.places[index], self.name, self.show)
        return image, image.width * image.height * 3


class ItemMasks(Decoded[np.ndarray]):
    """The masks of a sequence's pairs as uint8 (H, W)."""

    def __init__(self, items: Any, places: list[int], name: str, codes: Codes) -> None:
        super().__init__()
        self.items, self.places, self.name, self.codes = items, places, name, codes

    def __len__(self) -> int:
        return len(self.places)

    def _decode(self, index: int) -> tuple[np.ndarray, int]:
        where = f"{self.name}[{self.places[index]}]"
        mask = self.codes(pair(self.items, self.places[index], self.name)[1], where)
        return mask, mask.nbytes


def from_function(recipe: FunctionData, reader: ImageReader, seed: int) -> ImageData:
    """Call the user's function and check what it returns against the contract above.

    Raises:
        DataError: it cannot be imported, refuses its arguments or returns something else, or too many images are
            unreadable.
    """
    given = _called(recipe)
    if isinstance(given, ImageData):
        return _adopted(given, reader, recipe)
    if not isinstance(given, Mapping) or not all(name in given for name in SPLITS):
        had = ", ".join(map(str, given)) if isinstance(given, Mapping) else type(given).__name__
        raise DataError(f"{recipe.function} gave {had or 'nothing'}, not a mapping with train, val and test.")
    unreadable, left_out = Unreadable(recipe.unreadable), LeftOut()
    read = {name: _read(given[name], f"{recipe.function} {name}", unreadable, reader.show) for name in SPLITS}
    kinds = {type(target) for _, targets in read.values() for target in targets}
    if len(kinds) != 1:
        names = ", ".join(sorted(kind.__name__ for kind in kinds))
        raise DataError(f"{recipe.function} gave targets of several kinds ({names}); give one kind.")
    task = _TASKS[kinds.pop()]
    classes = _classes(recipe, given["train"], [t for _, targets in read.values() for t in targets], task)
    codes = Codes(classes, IGNORED) if task == "segmentation" else None
    splits, notes = {}, []
    for name, (places, targets) in read.items():
        where = f"{recipe.function} {name}"
        images = ItemImages(given[name], places, where, reader.show)
        own: Any
        if codes is not None:
            own = ItemMasks(given[name], places, where, codes)
            counts = np.zeros(IGNORED + 1, np.int64)
            for k, place in enumerate(places):
                held_against(own[k], upright_size(images[k]), f"{where}[{place}]")
                counts += np.bincount(own[k].reshape(-1), minlength=IGNORED + 1)
            notes += unseen(counts, classes) if name == "train" else []
        elif task == "detection":
            own = [
                _checked(t, f"{where}[{p}]", upright_size(images[k]), len(classes), left_out)
                for k, (p, t) in enumerate(zip(places, targets, strict=True))
            ]
        else:
            own = torch.tensor(targets)
            if bad := next((t for t in targets if not 0 <= t < len(classes)), None):
                raise DataError(f"{where} has the class {bad}, there are {len(classes)}; correct it.")
        splits[name] = Split(images, own, reader)
    return ImageData(classes, splits, task, (*notes, *left_out.notes, *unreadable.checked()))


def pair(
    items: Any, place: int, name: str, show: Callable[[Image.Image], Image.Image] | None = None
) -> tuple[Image.Image, Any]:
    """Read one image, as RGB where it is to be shown, and its target as int, array or Boxes.

    Raises:
        ImageError: the sequence cannot read it, or ``show`` refuses it.
        DataError: it is not such a pair.
    """
    try:
        image, target = items[place]
    except (OSError, SyntaxError, RuntimeError) as error:
        raise ImageError(f"{name}[{place}] cannot be read ({error}); replace the file.") from None
    except (TypeError, ValueError, LookupError) as error:
        raise DataError(f"{name}[{place}] is not a pair of image and target ({error}).") from None
    if not isinstance(image, Image.Image):
        raise DataError(f"{name}[{place}] has a {type(image).__name__} for an image; give a PIL image.")
    whole = isinstance(target, torch.Tensor) and target.ndim == 0 and not target.is_floating_point()
    if whole or (isinstance(target, (int, np.integer)) and not isinstance(target, bool)):
        target = int(target)
    elif not isinstance(target, Boxes) and not (
        isinstance(target, np.ndarray) and target.ndim == 2 and np.issubdtype(target.dtype, np.integer)
    ):
        raise DataError(
            f"{name}[{place}] has a {type(target).__name__} for a target; give an int, a numpy array (H, W) of whole "
            "numbers or compress.data.Boxes."
        )
    if show is not None:
        try:
            image = show(image)
            image = image if image.mode == "RGB" else image.convert("RGB")
        except ImageError as error:
            raise ImageError(f"{name}[{place}]: {error}") from None
        except (OSError, SyntaxError) as error:  # a file that was opened and not yet decoded
            raise ImageError(f"{name}[{place}] cannot be read ({error}); replace the file.") from None
    return image, target


def _called(recipe: FunctionData) -> Any:
    # Whoever reads a recipe from a file holds it against what the user trusts.
    function = trusted_function(recipe.function, [recipe.function.partition(":")[0]], "data function", DataError)
    try:
        return function(**recipe.arguments)
    except (
        ArithmeticError,
        AssertionError,
        AttributeError,
        LookupError,
        OSError,
        RuntimeError,
        TypeError,
        ValueError,
    ) as e:
        reason = " ".join(f"{type(e).__name__}: {e}".split())[:200]
        raise DataError(f"The data function '{recipe.function}' refuses {recipe.arguments} ({reason}).") from None


def _adopted(given: ImageData, reader: ImageReader, recipe: FunctionData) -> ImageData:
    """Check that the targets are of the data set's task and classes, and give it the run's reader."""
    if not all(name in given.splits and len(given.splits[name]) for name in SPLITS):
        raise DataError(f"{recipe.function} gave ImageData without images in train, val and test; give all three.")
    kinds: dict[str, type] = {"classification": torch.Tensor, "segmentation": np.ndarray, "detection": Boxes}
    if given.task not in kinds or not given.classes or not all(isinstance(c, str) for c in given.classes):
        raise DataError(
            f"{recipe.function} gave ImageData of the task {given.task!r} with the classes {given.classes!r:.80}; name "
            f"one of {', '.join(kinds)}, and classes in words."
        )
    for name, split in given.splits.items():
        first = split.targets if given.task == "classification" else split.targets[0]
        if len(split.targets) != len(split) or not isinstance(first, kinds[given.task]):
            raise DataError(
                f"{recipe.function} {name} has {len(split)} images and {len(split.targets)} targets of the type "
                f"{type(first).__name__}; {given.task} needs one {kinds[given.task].__name__} an image."
            )
        if isinstance(first, torch.Tensor) and not 0 <= int(first.min()) <= int(first.max()) < len(given.classes):
            raise DataError(
                f"{recipe.function} {name} has classes from {int(first.min())} to {int(first.max())}, "
                f"there are {len(given.classes)}; correct it."
            )
    return replace(given, splits={name: replace(split, reader=reader) for name, split in given.splits.items()})


def _read(
    items: Any, name: str, unreadable: Unreadable, show: Callable[[Image.Image], Image.Image]
) -> tuple[list[int], list[Any]]:
    """The indices that can be read, and their targets; a mask is left empty, since it is read again on demand."""
    try:
        count = len(items)
    except TypeError:
        raise DataError(f"{name} is a {type(items).__name__} without a length; give a sequence of pairs.") from None
    places, targets = [], []
    for place in range(count):
        try:
            _, target = pair(items, place, name, show)
        except ImageError as error:
            unreadable.add(f"{name}[{place}]", error)
        else:
            places.append(place)
            targets.append(target[:0] if isinstance(target, np.ndarray) else target)
    if not places:
        unreadable.checked()
        raise DataError(f"{name} gives no image that can be read; add some.")
    return places, targets


def _classes(recipe: FunctionData, train: Any, targets: list[Any], task: TaskName) -> tuple[str, ...]:
    own = recipe.classes or getattr(train, "classes", None)
    if own is not None:
        return tuple(str(name) for name in own)
    if task == "classification":
        return tuple(map(str, range(max(max(targets) + 1, 2))))
    raise DataError(f"{recipe.function} gives {task} data without names; list them in classes.")


def _checked(target: Boxes, where: str, size: tuple[int, int], classes: int, left_out: LeftOut) -> Boxes:
    boxes, labels = np.asarray(target.boxes, np.float64).reshape(-1, 4), np.asarray(target.labels).reshape(-1)
    if len(boxes) != len(labels) or (len(labels) and not 0 <= labels.min() <= labels.max() < classes):
        raise DataError(
            f"{where} has {len(boxes)} boxes with the labels {labels.tolist()[:8]}; there are {classes} classes."
        )
    rows = [(float(a), float(b), float(c), float(d)) for a, b, c, d in boxes]
    return fitting(Scene(path=Path(), where=where, size=None, boxes=rows, labels=labels.tolist()), size, left_out)
