"""Decide, once, which precision ships and on which runtime it goes first: by measured time at equal accuracy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from deploy.errors import DeployError

Runtime = Literal["onnxruntime", "openvino"]
MARGIN = 0.95
"""What replaces fp32, or ONNX Runtime, takes less than this of its time: less gain is within the noise."""
EQUAL = 0.01
"""How far below fp32 a precision may lie, a share of 1, where nobody says otherwise."""

_Share = Annotated[float, Field(ge=0, le=1)]
_NAMES: dict[Runtime, str] = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}


class Timed(BaseModel):
    """One file on one runtime.

    Attributes:
        precision: ``fp32``, ``fp16`` or ``int8``.
        runtime: what ran it.
        share: its time as a share of the fp32 file's on ONNX Runtime, in turns with it.
        accuracy: on validation data, a share of 1; None where it was not measured.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    precision: str
    runtime: Runtime
    share: Annotated[float, Field(gt=0, le=1e12)]
    accuracy: _Share | None = None


class ShipDecision(BaseModel):
    """What ships, and every figure that it was chosen by; ledger, terminal, report and bundle tell this and no other.

    Attributes:
        precision: of the model that the bundle prefers.
        runtime: what runs it first on a CPU.
        asked: what the recipe says, ``auto`` or a precision.
        reason: why, in one sentence.
        timed: all that was measured.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    precision: str
    runtime: Runtime
    asked: str
    reason: str
    timed: tuple[Timed, ...]

    def __str__(self) -> str:
        return f"ships {self.precision} on {_NAMES[self.runtime]} first: {self.reason}"


def choose(
    timed: Sequence[Timed], asked: str = "auto", *, max_drop: float = EQUAL, runtime: Runtime | None = None
) -> ShipDecision:
    """Choose what ships.

    Of each precision the runtime goes first that is faster, OpenVINO only where it takes less than ``MARGIN`` of ONNX
    Runtime's time. Asked for ``auto``, the fastest precision ships that is as accurate as fp32, but none that takes
    ``MARGIN`` or more of fp32's time.

    Args:
        timed: the files, fp32 on ONNX Runtime among them.
        asked: ``auto``, or the precision that ships whatever was measured.
        max_drop: how far the accuracy may lie below that of fp32, a share of 1.
        runtime: the only one that counts; by default the faster.

    Raises:
        DeployError: fp32 on ONNX Runtime, or what was asked for, was not measured.
    """
    best = {one.precision: _fastest(timed, one.precision, runtime) for one in timed}
    if "fp32" not in best or asked not in ("auto", *best):
        missing = "fp32" if "fp32" not in best else asked
        raise DeployError(f"Nothing ships as {missing}, which was not timed; {', '.join(best) or 'nothing'} was.")
    fp32 = best["fp32"]
    others = [one for name, one in best.items() if name != "fp32"]
    slow = [one for one in others if one.share >= MARGIN * fp32.share]
    wrong = [one for one in others if one not in slow and _drop(one, fp32) > max_drop + 1e-12]
    rest = [fp32, *(one for one in others if one not in (*slow, *wrong))]
    chosen = min(rest, key=lambda one: one.share) if asked == "auto" else best[asked]
    # What it was chosen for comes first.
    said = [_said(one, fp32) for one in sorted(others, key=lambda one: one is not chosen)]
    reason = "; ".join(said or ["no other precision was asked for"])
    if asked != "auto":
        against = "" if chosen in rest else ", though fp32 would be the better choice"
        reason = f"the recipe asks for {asked}{against}; {reason}"
    elif chosen is fp32 and others:
        reason = "; ".join(_passed_over(one, fp32, max_drop, slow=one in slow) for one in others)
    return ShipDecision(
        precision=chosen.precision, runtime=chosen.runtime, asked=asked, reason=reason, timed=tuple(timed)
    )


def _fastest(timed: Sequence[Timed], precision: str, runtime: Runtime | None) -> Timed:
    """Return the runtime that goes first for a precision."""
    own = {one.runtime: one for one in timed if one.precision == precision}
    wanted: Runtime = runtime or "onnxruntime"
    if wanted not in own:
        raise DeployError(f"{precision} was not timed by {_NAMES[wanted]}; install it, or name another runtime.")
    if runtime is not None:
        return own[runtime]
    ours, theirs = own["onnxruntime"], own.get("openvino")
    return theirs if theirs is not None and theirs.share < MARGIN * ours.share else ours


def _drop(one: Timed, fp32: Timed) -> float:
    return 0.0 if one.accuracy is None or fp32.accuracy is None else fp32.accuracy - one.accuracy


def _passed_over(one: Timed, fp32: Timed, max_drop: float, *, slow: bool) -> str:
    """Say why a precision does not ship although it was timed."""
    share = f"{one.precision} on {_NAMES[one.runtime]} takes {one.share / fp32.share:.2f} of its time"
    if slow:
        return f"{share}, where less than {MARGIN:g} would be a gain"
    lost = 100 * _drop(one, fp32)
    return f"{share}, but is {lost:.1f} points less accurate on validation data, where {100 * max_drop:g} may be lost"


def _said(one: Timed, fp32: Timed) -> str:
    """Say one precision's time and accuracy against fp32's."""
    where = f" on {_NAMES[one.runtime]}"
    time = f"{one.precision}{where} takes {one.share / fp32.share:.2f} of the time of fp32 on {_NAMES[fp32.runtime]}"
    if one.accuracy is None or fp32.accuracy is None:
        return time
    return f"{time}, {100 * one.accuracy:.1f} % against {100 * fp32.accuracy:.1f} % on validation data"
