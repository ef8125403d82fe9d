"""What a gate found, line by line, and its verdict."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class GateFinding(BaseModel):
    """One comparison of the candidate with the baseline.

    Attributes:
        name: the record.
        what: ``presence``, ``measurement``, ``setting``, ``reference``, ``interval``, ``latency`` (by medians),
            ``latency, best``, ``absolute``, ``tail``, ``size``, ``memory``, ``accuracy``, ``parity``; ``machine`` for
            what else differs between the two and is said, not judged; or ``held`` for a record whose figures are
            shown and not held to the baseline.
        value: the candidate's value; None where it has none.
        baseline: the baseline's value.
        limit: the worst value that passes.
        ok: whether the comparison passes.
        doubtful: whether another sitting could turn it.
        note: a sentence on it, where there is something to say.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    what: str
    value: float | str | None
    baseline: float | str | None
    limit: float | str | None
    ok: bool
    doubtful: bool = False
    note: str | None = None


class GateResult(BaseModel):
    """The verdict and every finding behind it; ``repeats`` is how often was timed again before it was given."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    passed: bool
    lines: tuple[GateFinding, ...]
    repeats: int = 0

    def failed(self) -> tuple[GateFinding, ...]:
        """Return what stops the release."""
        return tuple(line for line in self.lines if not line.ok)

    def doubtful(self) -> bool:
        """Tell whether timing again could change the verdict to a pass: all that fails is in doubt."""
        failed = self.failed()
        return bool(failed) and all(line.doubtful for line in failed)
