"""Hold what was timed in one process."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from deploy.bench.conditions import Conditions
from deploy.bench.warmup import Warm


@dataclass(frozen=True)
class Sitting:
    """What was timed in one process.

    Attributes:
        times: milliseconds of every run, (engines, rounds, runs in a block).
        warm: how each engine was warmed up.
        conditions: how busy the machine was.
    """

    times: np.ndarray
    warm: tuple[Warm, ...]
    conditions: Conditions
