"""Labels: what a tensor's channels are called while a forward pass is watched.

A `Flow` stands for an activation: an integer array that broadcasts to the tensor's shape, size 1 in each
dimension that carries no channel. A `Weight` stands for a parameter or buffer: one label array a dimension.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

Labels = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Flow:
    """Channels of an activation.

    Args:
        labels: int64, broadcasts to the tensor's shape; None when no channel is followed through it.
        origin: why there are no labels ("graph input", "unknown operator aten.sort"), else "".
        zero: whether a channel that is masked where it is produced is exactly zero here.
    """

    labels: Labels | None
    origin: str = ""
    zero: bool = True

    def with_labels(self, labels: Labels) -> Flow:
        return replace(self, labels=labels)


@dataclass(frozen=True)
class Weight:
    """A parameter or buffer by name, with `dims[i]` the dimension of the stored tensor seen at place i."""

    name: str
    shape: tuple[int, ...]
    dims: tuple[int, ...]


def reshape_labels(labels: Labels, old: tuple[int, ...], new: tuple[int, ...]) -> Labels | None:
    """Reshapes broadcast labels as the tensor is reshaped from `old` to `new`.

    The shapes are cut into the shortest runs with equal products; a run without channels stays unlabelled,
    a run with channels is written out in full and reshaped. None when the shapes do not line up.
    """
    blocks: list[tuple[int, int, int, int]] = []
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
        blocks.append((i0, i, j0, j))
    shape_in: list[int] = []
    shape_out: list[int] = []
    for i0, i1, j0, j1 in blocks:
        labelled = any(n > 1 for n in labels.shape[i0:i1])
        shape_in += old[i0:i1] if labelled else [1] * (i1 - i0)
        shape_out += new[j0:j1] if labelled else [1] * (j1 - j0)
    return shrink(np.broadcast_to(labels, shape_in).reshape(shape_out))


def shrink(labels: Labels) -> Labels:
    """Drops to size 1 each dimension along which the labels do not change."""
    for d, n in enumerate(labels.shape):
        if n > 1:
            first = labels.take([0], axis=d)
            if bool((labels == first).all()):
                labels = first
    return labels
