"""CIFAR-10 and its published ResNets, as the papers' tables take them."""

from __future__ import annotations

from torch import nn

from benchmarks.criteria import cifar
from benchmarks.papers.mnist import Digits

TRAIN = 30_000
"""Training images with exact pixels that the project's data holds."""


def read_cifar10(images: int | None = None) -> Digits:
    """Read the first so many training images and the 1,000 test images with exact pixels.

    Args:
        images: of the training, and at most of the test; None for all.

    Raises:
        DataError: a file is missing.
    """
    train, test = cifar.first(images or TRAIN), cifar.test()
    return Digits(train.images, train.labels, test.images[:images], test.labels[:images])


def published(depth: int) -> nn.Module:
    """The ResNet of so many layers with its weights."""
    return cifar.network(depth)
