"""One block of a random network as plain data, and how its choices are made."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

Shape = tuple[int, int, int]
"""Channels, height, width."""

WIDTHS = (8, 6, 12, 10, 16, 9)
MOST = 24
"""Channels above which blocks that make more of them are narrowed first."""


@dataclass(frozen=True, repr=False)
class B:
    """One block: its kind, two choices, and the blocks inside it."""

    kind: str
    a: int = 0
    b: int = 0
    inner: tuple[B, ...] = ()
    other: tuple[B, ...] = ()

    def __repr__(self) -> str:
        values = [getattr(self, f.name) for f in fields(self)]
        while values[-1] in (0, ()):
            values.pop()
        return f"B({', '.join(map(repr, values))})"


Build = Callable[[Shape, Sequence[B]], tuple[nn.Module, Shape]]


def pick(options: Sequence[Any], n: int) -> Any:
    return options[n % len(options)]


def divisor(c: int, n: int) -> int:
    """A number of groups that divides c, above 1 where there is one."""
    return pick([g for g in (2, 3, 4, 5) if c % g == 0] or [1], n)


def sized(y: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    return y if y.shape[2:] == like.shape[2:] else F.interpolate(y, size=tuple(like.shape[2:]))


def fitted(t: Shape, c: int) -> nn.Module:
    return nn.Identity() if t[0] == c else nn.Conv2d(t[0], c, 1)
