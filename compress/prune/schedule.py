"""Schedules: how much of the way to the budget is cut by which round."""

from __future__ import annotations

from typing import Literal

Schedule = Literal["linear", "cubic", "exponential"]


def left_after(turn: int, rounds: int, target: float, schedule: Schedule) -> float:
    """Return the share of the MACs that is left after ``turn`` of ``rounds`` cuts; after the last it is ``target``.

    ``linear`` takes the same amount each time; ``cubic`` takes most at first and ever less, as gradual pruning does
    (Zhu and Gupta, To Prune or Not to Prune, 2017); ``exponential`` takes the same share of what is left each time
    (Frankle and Carbin, The Lottery Ticket Hypothesis, 2019).
    """
    done = turn / rounds
    if schedule == "exponential":
        return target**done
    ahead = (1 - done) ** (3 if schedule == "cubic" else 1)
    return target + (1 - target) * ahead
