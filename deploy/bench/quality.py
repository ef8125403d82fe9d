"""Hold to the baseline what is no time: accuracy, parity, size and memory."""

from __future__ import annotations

from collections.abc import Iterator

from deploy.bench.findings import GateFinding
from deploy.bench.matching import Match
from deploy.bench.records import Record
from deploy.bench.tolerances import Tolerances

ROUNDING_DB = 80.0
"""What rounding in fp32 leaves; from here on more or less of it means nothing."""


def quality(pair: Match, tolerances: Tolerances) -> Iterator[GateFinding]:
    """Yield what is found on accuracy, parity, size and memory, as far as the baseline tells of them."""
    old, new = pair.old, pair.new
    assert new is not None
    same_file = old.sha256 is not None and old.sha256 == new.sha256
    if old.accuracy is not None:
        yield _accuracy(pair, new, tolerances, same_file)
    if old.file_bytes and new.file_bytes is not None:
        limit = old.file_bytes * (1 + tolerances.size)
        ok = new.file_bytes <= limit or "size" in tolerances.allow
        yield pair.line("size", float(new.file_bytes), float(old.file_bytes), limit, ok)
    was, now = (r.cold.peak_rss_bytes if r.cold else None for r in (old, new))
    if was and now and pair.same_processor():
        limit = was * (1 + tolerances.memory)
        ok = now <= limit or "memory" in tolerances.allow
        yield pair.line("memory", float(now), float(was), limit, ok)
    if (past := worst_snr(old)) is not None:
        yield _parity(pair, new, past, tolerances, same_file)


def worst_snr(record: Record) -> float | None:
    """Return the lowest signal to noise of a record's parity with its network, in decibels."""
    said = [row.get("snr_db") for row in record.parity or ()]
    values = [value for value in said if isinstance(value, int | float)]
    return min(values, default=None)


def _accuracy(pair: Match, new: Record, tolerances: Tolerances, same_file: bool) -> GateFinding:
    past = pair.old.accuracy
    assert past is not None
    limit = past - tolerances.accuracy
    if new.accuracy is None and same_file:
        return pair.line("accuracy", past, past, limit, True, note="not measured again: it is the same file")
    # The slack keeps 0.97 against 0.98 at a tolerance of 0.01 from depending on a rounding error.
    ok = (new.accuracy is not None and new.accuracy >= limit - 1e-12) or "accuracy" in tolerances.allow
    note = "not measured: give `niwaki bench` the labelled images by --data" if new.accuracy is None else None
    return pair.line("accuracy", new.accuracy, past, limit, ok, note=note)


def _parity(pair: Match, new: Record, past: float, tolerances: Tolerances, same_file: bool) -> GateFinding:
    now, limit = worst_snr(new), min(past - tolerances.parity, ROUNDING_DB)
    if now is None and same_file:
        return pair.line("parity", past, past, limit, True, note="not measured again: it is the same file")
    ok = (now is not None and now >= limit) or "parity" in tolerances.allow
    note = "not measured: only a run compares a file with its network" if now is None else None
    return pair.line("parity", now, past, limit, ok, note=note)
