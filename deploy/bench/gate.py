"""Hold a new measurement to a baseline; a failed gate stops the release."""

from __future__ import annotations

import math

from pydantic import BaseModel, ConfigDict

from deploy.bench.records import Bench, Record
from deploy.errors import DeployError


class GateFinding(BaseModel):
    """One comparison of the candidate with the baseline.

    Attributes:
        name: the record.
        what: ``presence``, ``setting``, ``measurement``, ``latency``, ``accuracy``; or ``held`` instead of the last two
            where they are shown but not judged.
        value: the candidate's value; None where it has none.
        baseline: the baseline's value.
        limit: the worst value that passes.
        ok: whether the comparison passes.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    what: str
    value: float | str | None
    baseline: float | str | None
    limit: float | str | None
    ok: bool


class GateResult(BaseModel):
    """The verdict and every finding behind it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    passed: bool
    lines: tuple[GateFinding, ...]


def gate(
    record: Bench, baseline: Bench, *, latency_tolerance: float = 0.10, accuracy_tolerance: float = 0.01
) -> GateResult:
    """Compare ``record`` with ``baseline``, record by record.

    Latency means the ratio to the dense reference that was timed in the same session; milliseconds of two sessions
    or two machines are never compared. A record that only the baseline has fails; one that the baseline did not
    measure only has to exist; one that only the candidate has is ignored. The figures of one that is not held to the
    baseline (``Record.held``) are only shown; the baseline decides that, or the candidate where an older baseline does
    not say.

    Args:
        record: the candidate.
        baseline: the records to live up to.
        latency_tolerance: how much larger the ratio may be, relative to the baseline's.
        accuracy_tolerance: how much lower the accuracy may be, absolute.

    Raises:
        DeployError: the baseline measured nothing, or a tolerance is negative or not a number.
    """
    for label, value in (
        ("latency_tolerance", latency_tolerance),
        ("accuracy_tolerance", accuracy_tolerance),
    ):
        if not (math.isfinite(value) and value >= 0):
            raise DeployError(f"{label} is {value}; give a number that is 0 or more.")
    if not any(old.status == "measured" for old in baseline.records):
        raise DeployError(f"The baseline {baseline.name!r} has no measured record; record one with `niwaki bench`.")
    candidates = {new.name: new for new in record.records}
    lines: list[GateFinding] = []
    for old in baseline.records:
        lines += _compare(old, candidates.get(old.name), latency_tolerance, accuracy_tolerance)
    return GateResult(passed=all(line.ok for line in lines), lines=tuple(lines))


def _compare(old: Record, new: Record | None, latency_tolerance: float, accuracy_tolerance: float) -> list[GateFinding]:
    def finding(what: str, value: float | str | None, past: float | str, limit: float | str, ok: bool) -> GateFinding:
        return GateFinding(name=old.name, what=what, value=value, baseline=past, limit=limit, ok=ok)

    if new is None:
        return [finding("presence", None, "present", "present", False)]
    lines = [finding("presence", "present", "present", "present", True)]
    if old.status != "measured":
        return lines
    if new.status != "measured":
        return [*lines, finding("measurement", new.reason, "measured", "measured", False)]
    past, now = _setting(old), _setting(new)
    if past != now:
        # Ratios taken at another batch size or against another reference answer another question.
        return [*lines, finding("setting", now, past, past, False)]
    if not _held(old, new):
        # The accuracy of a network at chance varies with the processor by more than any tolerance.
        return [*lines, finding("held", "no", "no", "shown alone", True)]
    if old.ratio_to_dense is not None:
        limit = old.ratio_to_dense * (1 + latency_tolerance)
        ok = new.ratio_to_dense is not None and new.ratio_to_dense <= limit
        lines.append(finding("latency", new.ratio_to_dense, old.ratio_to_dense, limit, ok))
    if old.accuracy is not None:
        limit = old.accuracy - accuracy_tolerance
        # The slack keeps 0.97 against 0.98 at a tolerance of 0.01 from depending on a rounding error.
        ok = new.accuracy is not None and new.accuracy >= limit - 1e-12
        lines.append(finding("accuracy", new.accuracy, old.accuracy, limit, ok))
    return lines


def _held(old: Record, new: Record) -> bool:
    return (new.held if old.held is None else old.held) is not False


def _setting(record: Record) -> str:
    return f"{record.runtime} {record.precision} batch {record.batch} against {record.reference}"
