"""Where code selects channels by position, which a cut of the first or last channel alone would show."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from compress.prune.labels import Flow, Labels

Pick = tuple[Labels, int]
"""Labels of a tensor, and the dimension along which code selects."""

_PLACE = {"slice": 1, "select": 1, "index_select": 1, "gather": 1, "unbind": 1, "split": 2, "split_with_sizes": 2}
"""Operator -> which argument is the dimension that it picks along; 0 is meant where there is none."""

PICKS = frozenset(f"aten.{name}" for name in (*_PLACE, "index", "roll"))
"""Operators that select by position."""


def picked(name: str, args: tuple[Any, ...], flow: Flow) -> list[Pick]:
    """The channels among which an operator of ``PICKS`` selects.

    Args:
        name: without the overload, such as ``aten.select``.
        args: by position.
        flow: of the first input.
    """
    if not flow.layers:
        return []
    ndim = args[0].dim()
    dims = [d % ndim for d in _dims(name.removeprefix("aten."), args)]
    return [(layer.labels, d) for layer in flow.layers for d in dims if layer.over(d)]


def shifts(picks: list[Pick], unit_of: npt.NDArray[np.int64], free: npt.NDArray[np.bool_]) -> bool:
    """Whether a cut can move what is picked to another position, or to none.

    It cannot where all positions hold the same units, as query, key and value of one head do: they go together.

    Args:
        picks: of one network.
        unit_of: label -> unit.
        free: unit -> whether it may go.
    """
    for labels, d in picks:
        units = unit_of[labels]
        units = np.where(free[units], units, -1)
        if (units != units.take([0], axis=d)).any():
            return True
    return False


def _dims(name: str, args: tuple[Any, ...]) -> Iterable[int]:
    if name == "index":
        first = 0
        for index in args[1]:
            # A mask stands for as many dimensions as it has.
            covered = index.dim() if index is not None and index.dtype in (torch.bool, torch.uint8) else 1
            yield from () if index is None else range(first, first + covered)
            first += covered
    elif name == "roll":
        # Without dimensions it rolls the tensor as if it had one.
        yield from args[2] if len(args) > 2 and args[2] else range(args[0].dim())
    else:
        place = _PLACE[name]
        yield args[place] if len(args) > place else 0
