"""Run an engine until its times settle, and check what it returns on the way."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from deploy.engines.base import Engine
from deploy.errors import DeployError

_WINDOW = 5
_SETTLED = 0.97  # a window that is not faster than the one before it by 3 %
_MOST_SECONDS = 3.0
_MOST_TIMES = 10  # as many runs as were asked for


@dataclass(frozen=True)
class Warm:
    """An engine that has run for a while.

    Attributes:
        runs: how many untimed runs it took.
        seconds: of one run, the median of the last window, which one hiccup does not move.
        steady: whether the times had settled when the limit was reached.
    """

    runs: int
    seconds: float
    steady: bool


def warm_up(engine: Engine, feeds: Mapping[str, np.ndarray], runs: int) -> Warm:
    """Run at least ``runs`` times, and on until a window is no faster than the one before it.

    Raises:
        DeployError: the engine returns values that are not finite or that differ between runs on the same input.
    """
    first = engine.run(feeds)
    for key, value in first.items():
        if not np.isfinite(value).all():
            raise DeployError(f"{engine.name} gives NaN or infinity in {key!r}; its times would mean nothing.")
    # The runtime may reuse the memory that holds its first output.
    first = {key: value.copy() for key, value in first.items()}
    taken: list[float] = []
    began = time.perf_counter()
    steady = False
    while len(taken) < runs - 1 or not steady:
        if len(taken) >= runs - 1 and (
            time.perf_counter() - began > _MOST_SECONDS or len(taken) >= _MOST_TIMES * max(runs, _WINDOW)
        ):
            break
        start = time.perf_counter()
        again = engine.run(feeds)
        taken.append(time.perf_counter() - start)
        steady = _settled(taken)
    for key, value in first.items():
        if not np.array_equal(value, again[key]):
            raise DeployError(f"{engine.name} gives other values in {key!r} each time it runs on the same input.")
    return Warm(len(taken) + 1, statistics.median(taken[-_WINDOW:]), steady)


def _settled(taken: list[float]) -> bool:
    """Tell whether the last window is no faster than the one before; too few runs for two windows count as settled."""
    if len(taken) < 2 * _WINDOW:
        return True
    last, before = min(taken[-_WINDOW:]), min(taken[-2 * _WINDOW : -_WINDOW])
    return last >= _SETTLED * before
