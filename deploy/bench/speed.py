"""Hold times to the baseline: by ratios to dense anywhere, by milliseconds on the same machine."""

from __future__ import annotations

from collections.abc import Iterator

from deploy.bench.findings import GateFinding
from deploy.bench.matching import Match
from deploy.bench.records import Bench, Record
from deploy.bench.tolerances import Tolerances

ENOUGH_SITTINGS = 4
"""Processes that a slow-down has to show in before it fails without doubt, where more can be had."""
_WIDEST = 3.0
_Ends = tuple[float, float]


def speed(pair: Match, tolerances: Tolerances) -> Iterator[GateFinding]:
    """Yield what is found on times: the smaller of the two speed-ups counts, so each of the two ratios is held.

    On a noisy machine medians are shown alone: they tell how the other processes were scheduled, and an engine that
    hands its work to a thread, as OpenVINO does, waits longer than one that does not. Best times stay what they are.
    """
    old, new = pair.old, pair.new
    assert new is not None
    quiet = not any(record.conditions and record.conditions.noise() for record in (old, new))
    past, now = best_ratio(old, pair.past), best_ratio(new, pair.now)
    for which, record, ends in (
        ("the baseline's", old, _ends(old, past, quiet)),
        ("its", new, _ends(new, now, quiet)),
    ):
        if ends is not None and (said := _absurd(*ends)):
            ok = "interval" in tolerances.allow
            found = pair.line(
                "interval", said, None, f"within {_WIDEST:g} times", ok, note=f"{which} ratio is not a figure"
            )
            yield found.model_copy(update={"doubtful": record is new and _few(new)})
    if past is not None and now is not None:
        held = _held(pair, "latency, best", now, past, tolerances)
        then = old.conditions and old.conditions.noise()
        if then and not held.ok:
            note = f"the baseline was timed on a noisy machine ({then}); make it anew on a quiet one"
            held = held.model_copy(update={"note": note})
        yield held
    if old.ratio_to_dense is not None:
        held = _held(pair, "latency", new.ratio_to_dense, old.ratio_to_dense, tolerances)
        if not quiet and past is not None and now is not None:
            note = "shown only: on a noisy machine best times are compared"
            held = held.model_copy(update={"ok": True, "doubtful": False, "note": note})
        yield held
    yield from _alone(pair, tolerances, quiet)


def best_ratio(record: Record, bench: Bench) -> float | None:
    """Return the ratio of best times, of an older record from the best times themselves."""
    if record.ratio_of_best is not None:
        return record.ratio_of_best
    reference = next((one for one in bench.records if one.name == record.reference), None)
    if record.min_ms is None or reference is None or reference.min_ms is None:
        return None
    return record.min_ms / reference.min_ms


def _ends(record: Record, best: float | None, quiet: bool) -> tuple[float, _Ends] | None:
    """Return the ratio that a record is judged by and its interval."""
    if best is not None and record.best_interval is not None:
        return best, record.best_interval
    if quiet and record.ratio_to_dense is not None and record.ratio_interval is not None:
        return record.ratio_to_dense, record.ratio_interval
    return None


def _absurd(ratio: float, ends: _Ends) -> str | None:
    """Return an interval that says nothing, as text: one too wide, or without the ratio in it."""
    low, high = ends
    if high > _WIDEST * low or not low / 1.05 <= ratio <= high * 1.05:
        return f"{ratio:.3g} in [{low:.3g}, {high:.3g}]"
    return None


def _few(record: Record) -> bool:
    return len(record.by_sitting or (1,)) < ENOUGH_SITTINGS


def _held(pair: Match, what: str, now: float | None, past: float, tolerances: Tolerances) -> GateFinding:
    assert pair.new is not None
    limit = past * (1 + tolerances.latency)
    ok = now is not None and now <= limit
    found = pair.line(what, now, past, limit, ok)
    return found.model_copy(update={"doubtful": not ok and now is not None and _few(pair.new)})


def _alone(pair: Match, tolerances: Tolerances, quiet: bool) -> Iterator[GateFinding]:
    """Yield what only a quiet machine can tell: milliseconds, and the slowest runs."""
    old, new = pair.old, pair.new
    assert new is not None
    noisy = "shown only: a noisy machine tells nothing about it"
    if old.min_ms is not None and new.min_ms is not None and pair.same_machine():
        limit = old.min_ms * (1 + tolerances.absolute)
        ok = new.min_ms <= limit or "absolute" in tolerances.allow or not quiet
        found = pair.line("absolute", new.min_ms, old.min_ms, limit, ok, note=None if quiet else noisy)
        yield found.model_copy(update={"doubtful": not ok and _few(new)})
    references = pair.references()
    past, now = (_tail(record, of) for record, of in zip((old, new), references, strict=True))
    if past is not None and now is not None:
        limit = past * (1 + tolerances.tail)
        ok = now <= limit or "tail" in tolerances.allow or not quiet
        found = pair.line("tail", now, past, limit, ok, note=None if quiet else noisy)
        yield found.model_copy(update={"doubtful": not ok and _few(new)})


def _tail(record: Record, reference: Record | None) -> float | None:
    """Return the 99th percentile as a share of the reference's; the reference's own as a multiple of its median."""
    if record.p99_ms is None or reference is None or reference.p99_ms is None:
        return None
    if record.name == reference.name:
        return record.p99_ms / record.median_ms if record.median_ms else None
    return record.p99_ms / reference.p99_ms
