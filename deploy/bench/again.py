"""Time again what a gate doubts, before it fails: in a fresh process, with the same engines."""

from __future__ import annotations

from collections.abc import Callable

from deploy.bench.findings import GateResult
from deploy.bench.records import Bench, Record
from deploy.bench.speed import ENOUGH_SITTINGS, best_ratio

Judge = Callable[[Bench], GateResult]
Sit = Callable[[], Bench]


def gate_again(record: Bench, judge: Judge, sit: Sit | None, *, most: int = ENOUGH_SITTINGS - 1) -> GateResult:
    """Judge ``record``, and while all that fails is in doubt, time once more and judge the best of both.

    Args:
        record: the candidate.
        judge: the gate.
        sit: times the same engines again; None where they are not at hand.
        most: how often it is called at most.
    """
    result = judge(record)
    repeats = 0
    while sit is not None and result.doubtful() and repeats < most:
        record = merged(record, sit())
        repeats += 1
        result = judge(record)
    return result.model_copy(update={"repeats": repeats})


def merged(record: Bench, again: Bench) -> Bench:
    """Return the records of two sittings as one: the best times of both, and percentiles of the better sitting."""
    other = {one.name: one for one in again.records}
    reference = {one.name: _least(one, other.get(one.name)) for one in record.records}
    records = []
    for one in record.records:
        new = other.get(one.name)
        if one.status != "measured" or new is None or new.status != "measured":
            records.append(one)
            continue
        records.append(_merged(one, new, (record, again), reference))
    return record.model_copy(update={"records": tuple(records)})


def _least(one: Record, other: Record | None) -> float | None:
    return min((r.min_ms for r in (one, other) if r is not None and r.min_ms is not None), default=None)


def _merged(one: Record, new: Record, benches: tuple[Bench, Bench], bests: dict[str, float | None]) -> Record:
    better = min((one, new), key=lambda r: (r.ratio_to_dense or float("inf"), r.median_ms or float("inf")))
    times = ("mean_ms", "median_ms", "p90_ms", "p99_ms", "ratio_to_dense", "ratio_interval", "repeats", "conditions")
    update = {name: getattr(better, name) for name in times}
    sittings = tuple(pair for r, bench in zip((one, new), benches, strict=True) for pair in _by_sitting(r, bench))
    update |= {"by_sitting": sittings or None, "min_ms": bests[one.name]}
    mine, base = bests[one.name], bests.get(one.reference or "")
    ratio = mine / base if mine is not None and base is not None else None
    if ratio is not None:
        ends = [*(best for best, _ in sittings), ratio]
        update |= {"ratio_of_best": ratio, "best_interval": (min(ends), max(ends))}
    if better.ratio_to_dense is not None:
        update["speedup"] = min(1 / r for r in (better.ratio_to_dense, ratio) if r is not None)
    return one.model_copy(update=update)


def _by_sitting(record: Record, bench: Bench) -> tuple[tuple[float, float], ...]:
    best = best_ratio(record, bench)
    if record.by_sitting or best is None or record.ratio_to_dense is None:
        return record.by_sitting or ()
    return ((best, record.ratio_to_dense),)
