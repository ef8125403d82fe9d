"""How the tests of every kind of data read a recipe of it, or see it refused in one sentence."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydantic import TypeAdapter

from compress import data
from compress.data import ImageReader
from compress.errors import DataError, ImageError
from compress.recipe.data import DataRecipe
from deploy.errors import DeployError
from deploy.processing import preprocess
from deploy.processing.preprocess import Preprocessing

RECIPE = TypeAdapter(DataRecipe)


def load(path):
    """As a run loads images: what cannot be read is an ImageError."""
    try:
        return preprocess.load(path)
    except DeployError as error:
        raise ImageError(str(error)) from None


READER = ImageReader(load, Preprocessing(size=(16, 16)))


def read(**recipe):
    return data.load(RECIPE.validate_python(recipe), READER, 0)


def refused(*words, **recipe):
    with pytest.raises(DataError) as caught:
        read(**recipe)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert str(word) in message, message


def picture(path, size=(24, 20), seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def counts(found):
    return {name: len(split) for name, split in found.splits.items()}


def real(name):
    root = os.environ.get("NIWAKI_DATA")
    if not root:
        pytest.skip("NIWAKI_DATA is not set")
    if not (Path(root) / name).is_dir():
        pytest.skip(f"{root} holds no {name}")
    return Path(root) / name
