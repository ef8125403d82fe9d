"""Images with labels, in named splits. One dict from the recipe's `kind` to the function that makes them."""

from __future__ import annotations

from collections.abc import Callable

from compress.data.digits import handwritten_digits, rendered_digits
from compress.data.folder import image_folder
from compress.data.images import ImageData, ImageReader
from compress.recipe import DataRecipe, FolderData, HandwrittenDigits, RenderedDigits

MAKERS: dict[type, Callable[..., ImageData]] = {
    FolderData: image_folder,
    HandwrittenDigits: handwritten_digits,
    RenderedDigits: rendered_digits,
}


def load(recipe: DataRecipe, reader: ImageReader, seed: int) -> ImageData:
    """Makes the data that a recipe asks for; raises DataError when it is missing, empty or damaged."""
    return MAKERS[type(recipe)](recipe, reader, seed)


__all__ = ["MAKERS", "ImageData", "ImageReader", "load"]
