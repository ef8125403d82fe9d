"""Hold a new measurement to a baseline; a failed gate stops the release."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from deploy.bench.findings import GateFinding, GateResult
from deploy.bench.matching import Match, pairs_of
from deploy.bench.quality import quality
from deploy.bench.records import Bench, Record
from deploy.bench.speed import speed
from deploy.bench.tolerances import Tolerances, check_tolerances
from deploy.errors import DeployError


def gate(
    record: Bench,
    baseline: Bench,
    *,
    latency_tolerance: float = 0.05,
    accuracy_tolerance: float = 0.01,
    tolerances: Tolerances | None = None,
    only: Collection[str] = (),
) -> GateResult:
    """Compare ``record`` with ``baseline``, record by record.

    A record is known by its name, else by the content of its file. Latency means the ratio to the dense reference that
    was timed in the same session, by best times and by medians: the smaller of the two speed-ups counts. Milliseconds
    are compared on the same machine alone. A record that only the baseline has fails, unless it is not held and of a
    runtime that the candidate timed nothing on; one that the baseline did not measure only has to exist; one that only
    the candidate has is ignored. The figures of one that is not held to the baseline (``Record.held``) are only shown;
    the baseline decides that, or the candidate where an older baseline does not say.

    Args:
        record: the candidate.
        baseline: the records to live up to.
        latency_tolerance: how much larger the ratio may be, relative to the baseline's.
        accuracy_tolerance: how much lower the accuracy may be, absolute.
        tolerances: these two and all others, in place of them.
        only: the baseline's records that are looked at; all of them by default.

    Raises:
        DeployError: the baseline measured nothing, has no record of that name, or a tolerance is negative or not a
            number.
    """
    tolerated = tolerances or Tolerances(latency=latency_tolerance, accuracy=accuracy_tolerance)
    check_tolerances(tolerated)
    if not any(old.status == "measured" for old in baseline.records):
        raise DeployError(f"The baseline {baseline.name!r} has no measured record; record one with `niwaki bench`.")
    known = [old.name for old in baseline.records]
    for name in only:
        if name not in known:
            raise DeployError(f"The baseline {baseline.name!r} has no record {name!r}; it has {', '.join(known)}.")
    lines = [
        line
        for pair in pairs_of(record, baseline)
        if not only or pair.old.name in only
        for line in _compare(pair, tolerated)
    ]
    return GateResult(passed=all(line.ok for line in lines), lines=tuple(lines))


def _compare(pair: Match, tolerances: Tolerances) -> Iterator[GateFinding]:
    old, new = pair.old, pair.new
    if new is None:
        # Times that are shown alone, on a runtime that the next run does not prefer, need not be there.
        elsewhere = old.held is False and old.runtime not in {one.runtime for one in pair.now.records}
        missing = _finding(old, "presence", None, "present", elsewhere)
        way_out = f"{old.name} is in the baseline alone; make and time it too, or name the others with --only"
        apart = f"not measured here: nothing of this bench runs on {old.runtime}, and the baseline shows it for itself"
        yield missing.model_copy(update={"note": apart if elsewhere else way_out})
        return
    yield _finding(old, "presence", "present", "present", True)
    if old.status != "measured":
        return
    if new.status != "measured":
        yield _finding(old, "measurement", new.reason, "measured", False)
        return
    past, now = _setting(old), _setting(new)
    if past != now:
        # Ratios taken at another batch size or by another runtime answer another question.
        yield _finding(old, "setting", now, past, False)
        return
    if (found := pair.same_reference(tolerances)) is not None:
        yield found
        if not found.ok:
            return
    if not _held(old, new):
        # The accuracy of a network at chance varies with the processor by more than any tolerance.
        yield GateFinding(name=old.name, what="held", value="no", baseline="no", limit="shown alone", ok=True)
        return
    yield from pair.machine(tolerances)
    yield from speed(pair, tolerances)
    yield from quality(pair, tolerances)


def _finding(old: Record, what: str, value: str | None, past: str, ok: bool) -> GateFinding:
    return GateFinding(name=old.name, what=what, value=value, baseline=past, limit=past, ok=ok)


def _held(old: Record, new: Record) -> bool:
    return (new.held if old.held is None else old.held) is not False


def _setting(record: Record) -> str:
    return f"{record.runtime} {record.precision} batch {record.batch}"
