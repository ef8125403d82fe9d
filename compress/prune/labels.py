"""Labels: the names of a tensor's channels while a forward pass is traced.

A tensor carries a ``Flow``: one ``Layer`` for each way in which its elements belong to channels. An activation mostly
has one, a weight has one a dimension, an outer product those of both sides.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

Labels = npt.NDArray[np.int64]

Slot = tuple[str, int]
"""A parameter or buffer by name, and one of its dimensions."""


class Layer:
    """One way in which a tensor's elements belong to channels. Made by the thousand, never changed.

    Args:
        labels: int64, as many dimensions as the tensor, size 1 in each along which the label does not change.
        zero: whether elements of a channel that is masked where it is produced are exactly zero here.
        slot: the parameter and dimension that these labels belong to, while nothing has been computed from it.

    Attributes:
        dims: the dimensions along which the label changes.
    """

    __slots__ = ("_vector", "dims", "labels", "slot", "zero")

    def __init__(self, labels: Labels, zero: bool = True, slot: Slot | None = None) -> None:
        self.labels, self.zero, self.slot = labels, zero, slot
        self.dims = tuple([d for d, n in enumerate(labels.shape) if n > 1])
        self._vector: Labels | None = None

    @property
    def vector(self) -> Labels:
        """The labels as a vector: one array for the layer's lifetime, so that slots can share it."""
        if self._vector is None:
            self._vector = self.labels.reshape(-1)
        return self._vector

    def over(self, dim: int) -> bool:
        return self.labels.shape[dim] > 1


@dataclass(slots=True, eq=False)
class Flow:
    """Channels of a tensor. Made by the thousand, never changed; not frozen, which would triple what making one takes.

    Args:
        layers: at most one for each set of dimensions.
        origin: why no channel is followed ("graph input", "unknown operator aten.sort"), else "".
        uniform: one value all over, of a size that the code asked for: it meets any channel.
        blank: whether that value is zero.
        along: what ``sizes.axes`` found of it, once that was asked for.
    """

    layers: tuple[Layer, ...] = ()
    origin: str = ""
    uniform: bool = False
    blank: bool = False
    along: tuple[Any, ...] | None = None

    def moved(self, labels: Iterable[Labels]) -> Flow:
        """The same layers, with the labels moved as the tensor's elements were."""
        layers = [Layer(new, y.zero, y.slot) for new, y in zip(labels, self.layers, strict=True) if new.size > 1]
        return Flow(tuple(layers), self.origin, self.uniform, self.blank)

    def with_zero(self, zero: bool) -> Flow:
        """The same channels, with ``zero`` set: whether a masked one is still zero."""
        if all(layer.zero == zero and layer.slot is None for layer in self.layers):
            return self
        layers = tuple([Layer(layer.labels, zero) for layer in self.layers])
        return Flow(layers, self.origin, self.uniform, self.blank)


def placed(labels: Labels, ndim: int, dim: int) -> Labels:
    """Lay a vector of labels along one of ``ndim`` dimensions."""
    shape = [1] * ndim
    shape[dim] = -1
    return labels.reshape(shape)


def reshape_labels(labels: Labels, old: tuple[int, ...], new: tuple[int, ...]) -> tuple[Labels, list[Labels]] | None:
    """Reshape broadcast labels as the tensor is reshaped from ``old`` to ``new``.

    The shapes are divided into the shortest runs with equal products; a run without channels stays unlabelled,
    a run with channels is broadcast and reshaped.

    Returns:
        The labels, and for each run that is split into several dimensions its labels in these (a rectangle that has
        to stay one); None if the shapes do not line up.
    """
    blocks = _runs(old, new)
    if blocks is None:
        return None
    shape_in: list[int] = []
    shape_out: list[int] = []
    split: list[tuple[int, int]] = []
    for i0, i1, j0, j1 in blocks:
        labelled = any(n > 1 for n in labels.shape[i0:i1])
        shape_in += old[i0:i1] if labelled else [1] * (i1 - i0)
        shape_out += new[j0:j1] if labelled else [1] * (j1 - j0)
        if labelled and sum(n > 1 for n in new[j0:j1]) > 1:
            split.append((j0, j1))
    if not split and labels.size == 1:
        return labels.reshape([1] * len(new)), []
    wide = (labels if labels.shape == tuple(shape_in) else np.broadcast_to(labels, shape_in)).reshape(shape_out)
    rectangles = []
    for j0, j1 in split:
        inner = wide[tuple(slice(None) if j0 <= d < j1 else 0 for d in range(len(new)))]
        rectangles.append(inner.reshape([n for n in inner.shape if n > 1]))
    return shrink(wide), rectangles


@lru_cache(4096)
def _runs(old: tuple[int, ...], new: tuple[int, ...]) -> tuple[tuple[int, int, int, int], ...] | None:
    """The shortest runs of ``old`` and ``new`` with equal products, each from and to; None where there are none."""
    runs = []
    i = j = 0
    while i < len(old) or j < len(new):
        i0, j0 = i, j
        a = old[i] if i < len(old) else 1
        b = new[j] if j < len(new) else 1
        i, j = min(i + 1, len(old)), min(j + 1, len(new))
        while a != b:
            if a < b:
                if i == len(old):
                    return None
                a *= old[i]
                i += 1
            else:
                if j == len(new):
                    return None
                b *= new[j]
                j += 1
        runs.append((i0, i, j0, j))
    return tuple(runs)


def shrink(labels: Labels) -> Labels:
    """Drop to size 1 each dimension along which the labels do not change."""
    start = (0,) * labels.ndim
    for d, n in enumerate(labels.shape):
        if n > 1:
            # Most change from one end to the other, which is seen at once.
            if labels.size and labels[start] != labels[(*start[:d], -1, *start[d + 1 :])]:
                continue
            first = labels[(slice(None),) * d + (slice(0, 1),)]
            if bool((labels == first).all()):
                labels = first
    return labels
