"""Images with labels, masks or boxes, in named splits: one dict from the kind of data to the function that reads it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from compress.data.augment import check
from compress.data.files import shared
from compress.data.formats.coco import coco_boxes
from compress.data.formats.digits import handwritten_digits, rendered_digits
from compress.data.formats.folder import image_folder
from compress.data.formats.function import from_function
from compress.data.formats.masks import image_masks
from compress.data.formats.table import csv_table
from compress.data.formats.voc import voc_boxes
from compress.data.formats.yolo import yolo_boxes
from compress.data.images import ImageData, ImageReader, Split
from compress.data.targets import Boxes
from compress.recipe.data import (
    CocoData,
    CsvData,
    DataRecipe,
    FolderData,
    FunctionData,
    HandwrittenDigits,
    MasksData,
    RenderedDigits,
    VocData,
    YoloData,
)

MAKERS: dict[type, Callable[..., ImageData]] = {
    CocoData: coco_boxes,
    CsvData: csv_table,
    FolderData: image_folder,
    FunctionData: from_function,
    HandwrittenDigits: handwritten_digits,
    MasksData: image_masks,
    RenderedDigits: rendered_digits,
    VocData: voc_boxes,
    YoloData: yolo_boxes,
}


def load(recipe: DataRecipe, reader: ImageReader, seed: int) -> ImageData:
    """Read the data that a recipe asks for; raise DataError when it is missing, empty or damaged."""
    found = MAKERS[type(recipe)](recipe, reader, seed)
    return replace(found, notes=(*shared(found), *found.notes))


__all__ = ["MAKERS", "Boxes", "ImageData", "ImageReader", "Split", "check", "load"]
