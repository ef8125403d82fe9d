"""CSV files of paths and class names, one for each split."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import torch

from compress.data.files import Unreadable, held_out, read_all
from compress.data.images import ImageData, ImageReader, Split
from compress.errors import DataError
from compress.files import LIST_BYTES, read_bytes
from compress.recipe.data import CsvData


def csv_table(recipe: CsvData, reader: ImageReader, seed: int) -> ImageData:
    """Read a column of image paths, relative to the CSV file, and one of class names.

    The classes are the training file's labels, sorted as numbers if all are whole numbers, else as text.

    Raises:
        DataError: a file is missing or not CSV, lacks a column or holds an unknown label, or too many images are
            unreadable.
    """
    root = Path(recipe.path)
    rows = {"train": _rows(root / recipe.train, recipe), "test": _rows(root / recipe.test, recipe)}
    if isinstance(recipe.val, str):
        rows["val"] = _rows(root / recipe.val, recipe)
    classes = _sorted({label for _, label in rows["train"]})
    if len(classes) < 2:
        raise DataError(f"{root / recipe.train} has the one label '{classes[0]}'; there is nothing to tell apart.")
    index = {name: k for k, name in enumerate(classes)}
    for split, found in rows.items():
        if unknown := next((label for _, label in found if label not in index), None):
            raise DataError(
                f"{root / str(getattr(recipe, split))} has the label '{unknown}', which {root / recipe.train} lacks; "
                "correct the label, or add images of it there."
            )
    items = {split: [(path, index[label]) for path, label in found] for split, found in rows.items()}
    if not isinstance(recipe.val, str):
        names = [f"The class '{name}' of {root / recipe.train}" for name in classes]
        labels = [label for _, label in items["train"]]
        items["train"], items["val"] = held_out(items["train"], labels, names, recipe.val)
    unreadable, splits = Unreadable(recipe.unreadable, root), {}
    for split in ("train", "val", "test"):
        images, kept = read_all(items[split], reader, unreadable, f"{root}, split {split},")
        splits[split] = Split(images, torch.tensor(kept), reader)
    return ImageData(classes, splits, notes=unreadable.checked())


def _sorted(labels: set[str]) -> tuple[str, ...]:
    # Compared as text: Python refuses to read a number of thousands of digits.
    if all(label.isascii() and label.isdigit() for label in labels):
        return tuple(sorted(labels, key=lambda label: (len(label.lstrip("0")), label.lstrip("0"), label)))
    return tuple(sorted(labels))


def _rows(path: Path, recipe: CsvData) -> list[tuple[Path, str]]:
    """Path and label of each row; blank rows are skipped."""
    if not path.is_file():
        raise DataError(f"There is no CSV file {path}; check path and the names of the splits in the recipe.")
    wanted = (recipe.image_column, recipe.label_column)
    try:
        with io.StringIO(read_bytes(path, LIST_BYTES).decode("utf-8-sig"), newline="") as file:
            table = csv.DictReader(file, strict=True)
            for column in wanted:
                if column not in (table.fieldnames or ()):
                    raise DataError(
                        f"{path} has no column '{column}' (it has {', '.join(table.fieldnames or ()):.160}); "
                        "name the columns in image_column and label_column."
                    )
            found = []
            for row in table:
                image, label = ((row[column] or "").strip() for column in wanted)
                if not image or not label:
                    raise DataError(f"{path}, line {table.line_num}: the path or the label is empty; fill it in.")
                found.append((path.parent / image, label))
    except (csv.Error, UnicodeDecodeError, OSError) as error:
        raise DataError(f"{path} is not a CSV file in UTF-8 ({error}); write it again.") from None
    if not found:
        raise DataError(f"{path} has no row below its first line; add images.")
    return found
