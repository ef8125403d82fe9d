"""Define how much worse than its baseline a record may be."""

from __future__ import annotations

import math
from typing import Literal, get_args

from pydantic import BaseModel, ConfigDict

from deploy.errors import DeployError

Aspect = Literal["reference", "threads", "absolute", "tail", "size", "memory", "parity", "accuracy", "interval"]
ASPECTS: tuple[str, ...] = get_args(Aspect)


class Tolerances(BaseModel):
    """How much worse a record may be, each a number of 0 or more.

    Attributes:
        latency: how much larger the ratio to dense may be, relative to the baseline's.
        accuracy: how much lower the accuracy may be, absolute.
        absolute: how much larger the milliseconds may be, relatively; held on the same machine alone, where neither
            sitting was noisy.
        tail: how much larger the ratio of 99th percentiles to dense may be, relatively. It is a few runs that are
            compared, so this is for faults of a kind, such as a pause in every hundredth run.
        size: how much larger the file may be, relatively.
        memory: how much larger the peak memory may be, relatively.
        parity: how much lower the signal to noise against the network may be, in decibels.
        allow: aspects that are shown and not held.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    latency: float = 0.05
    accuracy: float = 0.01
    absolute: float = 0.25
    tail: float = 4.0
    size: float = 0.10
    memory: float = 0.25
    parity: float = 10.0
    allow: frozenset[str] = frozenset()


def check_tolerances(tolerances: Tolerances) -> None:
    """Refuse tolerances that are negative or no number, and aspects that there are not.

    Raises:
        DeployError: one is.
    """
    for name, value in tolerances:
        if name != "allow" and not (math.isfinite(value) and value >= 0):
            raise DeployError(f"{name}_tolerance is {value}; give a number that is 0 or more.")
    for name in sorted(tolerances.allow - set(ASPECTS)):
        raise DeployError(f"There is nothing called {name!r} to allow; choose among {', '.join(ASPECTS)}.")
