"""Two small sets out of CIFAR-10: four animals as a target of transfer, four other classes as a source of its own."""

from __future__ import annotations

import numpy as np
from PIL import Image

from benchmarks.criteria import cifar

CLASSES = (2, 3, 4, 5)
"""Bird, cat, deer and dog."""
TRAIN, VAL = 100, 50
"""Images of each class."""
OTHERS = (6, 7, 8, 9)
"""Frog, horse, ship and truck: as many classes as the target has."""
OTHERS_TRAIN = 400
"""Images of each class of the source, from which its network learns, is cut and learns again."""

Labelled = list[tuple[Image.Image, int]]


def pictures() -> dict[str, Labelled]:
    """The target: training and validation from the first training images, the test from those with exact pixels.

    All are 32 pixels wide.

    Raises:
        DataError: CIFAR-10 is missing.
    """
    return _pictures(CLASSES, TRAIN)


def others() -> dict[str, Labelled]:
    """The source, split in the same way; of its test nothing is read off.

    Raises:
        DataError: CIFAR-10 is missing.
    """
    return _pictures(OTHERS, OTHERS_TRAIN)


def _pictures(classes: tuple[int, ...], count: int) -> dict[str, Labelled]:
    pixels, labels = cifar.pixels(6000)
    train: Labelled = []
    val: Labelled = []
    for place, label in enumerate(classes):
        own = [(Image.fromarray(pixels[k]), place) for k in np.flatnonzero(labels == label)[: count + VAL]]
        train += own[:count]
        val += own[count:]
    pixels, labels = cifar.test_pixels()
    chosen = np.flatnonzero(np.isin(labels, classes))
    return {
        "train": train,
        "val": val,
        "test": [(Image.fromarray(pixels[k]), classes.index(labels[k])) for k in chosen],
    }
