"""Trial cuts: follow a cut network, to find the sizes that its code fixes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.overrides import TorchFunctionMode

from compress.errors import said_by
from compress.prune.architecture import walk
from compress.prune.dispatch import COPIES, LabelDispatch, Observations, OpCall, Operator, Source, numbers
from compress.prune.frames import running
from compress.prune.grouping import Grouping
from compress.prune.labels import Flow, Labels, Layer, Slot, shrink
from compress.prune.rules import MOVES, Call, Role, tensors
from compress.prune.sizes import Want, axes, wanted, whole_numbers

REACH = 100
"""Calls before one that fails among which the size that it follows is looked for."""

SIZED = frozenset(f"aten.{name}" for name in ("view", "expand", "split_with_sizes", "slice", "repeat"))
"""Operators that are given sizes."""

LAST = np.iinfo(np.int64).min
"""The label of a channel that may be any."""

FOLLOWS_SIZE = "fixed size: a number follows the size"
ANOTHER_WAY = "fixed size: the network takes another way after a cut"


@dataclass(frozen=True, eq=False)
class Blame:
    """Units that could not be cut as they were, the reason, and the call and module where it showed.

    Args:
        units: those that reach the call.
        reason: what went wrong.
        call: its number in the pass.
        module: path of the innermost module whose method was running.
        wants: the sizes that the call should have been given.
        ties: sizes that it was given, each with what that follows instead.
        line: the line of code, as ``file.py:12``.
        suspects: units of other channels whose size it may have been given, where no blame before has free ones.
        close: where it has no free units itself, those free ones of the call before it that were cut last.
    """

    units: npt.NDArray[np.int64]
    reason: str
    call: int
    module: str
    wants: tuple[Want, ...] = ()
    ties: tuple[tuple[Labels, Labels], ...] = ()
    line: str = ""
    suspects: tuple[npt.NDArray[np.int64], ...] = ()
    close: npt.NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))


class Reshapes(TorchFunctionMode):
    """Let a trial go on after a reshape that is refused before the dispatcher hears of it."""

    def __init__(self, trial: TrialDispatch) -> None:
        super().__init__()
        self._trial = trial

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func not in _RESHAPES:
            return func(*args) if kwargs is None else func(*args, **kwargs)
        try:
            return func(*args, **(kwargs or {}))
        except RuntimeError as error:
            return self._trial.reshaped(args[0], [*args[1:], *(kwargs or {}).values()], error)


_RESHAPES = frozenset((torch.Tensor.reshape, torch.reshape))


class StoppedError(Exception):
    """A cut network takes another path than the whole one, so that what follows says nothing."""


class TrialDispatch(LabelDispatch):
    """Follow a cut network: each call has to give the labels that the whole network's gave, cut.

    Args:
        state: stand-ins of the cut network.
        observed: what passes over the whole network showed.
        grouping: its units.
        kept: which of these stay.
        model: the cut network, to say where something went wrong.
        hasty: stop at the first thing that goes wrong, without a word of whom it concerns.
    """

    def __init__(
        self, state: dict[str, torch.Tensor], observed: Observations, grouping: Grouping, kept: npt.NDArray[np.bool_],
        heads: str, model: torch.nn.Module, *, hasty: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(state, Observations(), heads)
        self.whole, self.grouping, self.model, self.hasty = observed, grouping, model, hasty
        self.stays = kept[grouping.unit_of]
        self.blames: list[Blame] = []
        self.paths: dict[int, str] | None = None
        self.strangers = 0
        self.foreign: npt.NDArray[np.bool_] | None = None
        self.expected: list[OpCall] = []
        self.at = 0
        self.lefts: dict[tuple[int, tuple[int, ...]], tuple[Flow, tuple[int, ...]] | None] = {}
        self.cuts: dict[int, tuple[Labels | None, tuple[int, ...]]] = {}
        self.along: dict[int, int] = {}
        self.closest: dict[int, npt.NDArray[np.int64]] = {}
        self.told = False

    def begin(self, calls: list[OpCall]) -> None:
        self.expected, self.at = calls, 0

    def slot(self, slot: Slot, size: int) -> Labels:
        labels = self.whole.slots.get(slot)
        if labels is None:
            raise StoppedError
        return labels[self.stays[labels]]

    def fresh(self, size: int) -> Labels:
        # Which they are is not known, only that they are some that no parameter has.
        if size == 1:
            # The only one that is left of some channels has no label any more either.
            return np.full(1, LAST, dtype=np.int64)
        self.strangers += size
        return np.arange(-self.strangers, size - self.strangers, dtype=np.int64)

    def run(self, func: Any, op: Operator, args: Any, kwargs: Any, quick: bool) -> Any:
        try:
            return super().run(func, op, args, kwargs, quick)
        except (RuntimeError, IndexError, ValueError, TypeError) as error:
            return self._should(self._next(op.name), error, args)

    def _should(self, call: OpCall, error: Exception, args: Any) -> Any:
        """What a failing call should have returned, so that one pass finds all that fail."""
        if self.hasty:
            self._blame(args, "fixed size", call, args)
        left = [self._left(call, k) for k in range(len(call.flows))]
        self._blame(args, f"fixed size: {said_by(error, 160)}", call, args)
        if any(part is None for part in left) or not all(t.is_meta for t in tensors(args)):
            raise StoppedError from None
        like = tensors(args)[0].dtype if tensors(args) else None
        outs = [torch.empty(part[1], device="meta", dtype=like) for part in left if part is not None]
        return outs[0] if len(outs) == 1 else tuple(outs)

    def reshaped(self, x: torch.Tensor, shape: Any, error: Exception) -> torch.Tensor:
        """What a reshape that fails before any operator runs should have returned."""
        if self.at >= len(self.expected) or self.expected[self.at].name != "aten.view":
            self.missing(f"fixed size: {said_by(error, 160)}")
            raise StoppedError from None
        call = self.expected[self.at]
        out = self._should(call, error, (x, shape))
        left = self._left(call, 0)
        assert left is not None
        self._keep(out, left[0])
        self.set_sources([out], self.at)
        self.at += 1
        return out

    def after(
        self, op: Operator, args: Any, kwargs: Any, out: Any, outs: list[torch.Tensor], sources: tuple[Source, ...]
    ) -> None:
        if op.name in COPIES:
            self.label(op, args, kwargs, out, outs)
            self.sources[id(outs[0])] = sources[0]
            return
        call = self._next(op.name)
        if len(outs) != len(call.flows) or sources != call.sources:
            self._blame(args, ANOTHER_WAY, call, args)
            raise StoppedError
        wrong = ""
        own = numbers(op, args, kwargs)
        if op.name == "aten.native_group_norm" and args[6] == 1:
            # Of one group that is left the channels are counted like those of each of several.
            own += (args[4],) * (len(call.numbers) - len(own))
        if call.numbers != own:
            wrong = FOLLOWS_SIZE
        # With the expected inputs, only an operator that moves by positions which the code names can go wrong.
        moved = self.label(op, args, kwargs, out, outs) if op.name in MOVES else None
        for k, (tensor, flow) in enumerate(zip(outs, call.flows, strict=True)):
            if flow.origin and flow.origin.startswith("output of"):
                # Nothing is known of it, before the cut or after it.
                self._keep(tensor, flow)
                continue
            left = self._left(call, k)
            if left is None or not self._agrees(tensor, None if moved is None else moved[k], flow, *left):
                wrong = wrong or "fixed size: channels meet in other ways after a cut"
            # What follows is judged separately.
            self._keep(tensor, flow if left is None else left[0])
        if wrong:
            self._blame((args, outs), wrong, call, args)
        if self.blank and moved is None and op.name.endswith("_"):
            # What shares the memory is no longer zero all over.
            self._written(outs[0])
        self.set_sources(outs, self.at)
        self.at += 1

    def _next(self, name: str) -> OpCall:
        if self.at >= len(self.expected) or self.expected[self.at].name != name:
            self.missing(ANOTHER_WAY)
            raise StoppedError
        return self.expected[self.at]

    def missing(self, reason: str, module: str | None = None) -> None:
        """Blame what the call that should have come next works on: it did not come."""
        if self.at < len(self.expected):
            self._blame((), reason, self.expected[self.at], (), module)

    def _agrees(self, tensor: torch.Tensor, moved: Flow | None, whole: Flow, left: Flow, size: tuple[int, ...]) -> bool:
        """Whether a tensor has the sizes of the whole network's after the cut, and, if it was moved, the channels."""
        if whole.uniform and not whole.layers:
            return True
        if tensor.shape != size:
            # One value that was expanded takes any size; what it meets is judged separately.
            real = zip(tensor.shape, tensor.stride(), strict=True)
            if tensor.dim() != len(size) or any(n != m and step for (n, step), m in zip(real, size, strict=True)):
                return False
        if moved is None:
            return True
        if len(moved.layers) == len(left.layers) == 1 and moved.layers[0].dims == left.layers[0].dims:
            return self._equal(moved.layers[0].labels, left.layers[0].labels)
        own, expected = _by_dims(moved.layers), _by_dims(left.layers)
        if own.keys() != expected.keys():
            # If one channel is left, one side may know already that its labels no longer change.
            own, expected = self._as_units(own.values()), self._as_units(expected.values())
        if own.keys() != expected.keys():
            return False
        return all(self._equal(own[dims], labels) for dims, labels in expected.items())

    def _equal(self, own: Labels, expected: Labels) -> bool:
        if own is expected:
            return True
        if own.shape != expected.shape:
            return False
        other = own != expected
        if not other.any():
            return True
        other &= own != LAST
        if not other.any():
            return True
        if self.foreign is None:
            self.foreign = np.zeros(self.whole.count, dtype=bool)
            for labels in self.whole.fresh:
                self.foreign[labels] = True
        return bool((own[other] < 0).all() and self.foreign[expected[other]].all())

    def _left(self, call: OpCall, k: int) -> tuple[Flow, tuple[int, ...]] | None:
        """What is left of a call's k-th output, flow and size; None if it is no longer a rectangle."""
        # An activation or a norm passes its flow on.
        key = (id(call.flows[k]), call.shapes[k])
        if key not in self.lefts:
            self.lefts[key] = self._flow_left(call.flows[k], list(call.shapes[k]))
        return self.lefts[key]

    def _flow_left(self, flow: Flow, size: list[int]) -> tuple[Flow, tuple[int, ...]] | None:
        layers = []
        several = len(flow.layers) > 1 and len({layer.dims for layer in flow.layers}) < len(flow.layers)
        together: dict[tuple[int, ...], npt.NDArray[np.bool_]] = {}
        for layer in flow.layers if several else ():
            # An element stays where all the channels stay that lie along the same dimensions.
            kept = self.stays[layer.labels]
            together[layer.dims] = together[layer.dims] & kept if layer.dims in together else kept
        for layer in flow.layers:
            labels, cut = _rectangle(layer.labels, together[layer.dims]) if several else self._cut_labels(layer.labels)
            if labels is None:
                return None
            for d in layer.dims:
                size[d] = cut[d]
            if labels.size > 1:
                layers.append(Layer(labels, layer.zero))
        return Flow(tuple(layers), flow.origin, flow.uniform, flow.blank), tuple(size)

    def _as_units(self, every: Iterable[Labels]) -> dict[tuple[tuple[int, ...], int], Labels]:
        layers = [Layer(shrink(np.where(labels < 0, labels, self.grouping.unit_of[labels]))) for labels in every]
        return _by_dims([layer for layer in layers if layer.labels.size > 1])

    def _cut_labels(self, labels: Labels) -> tuple[Labels | None, tuple[int, ...]]:
        """What is left of the whole network's labels, None if it is no rectangle, and the length of each dimension."""
        key = id(labels)
        if key not in self.cuts:
            kept = self.stays[labels]
            if kept.all():
                self.cuts[key] = labels, labels.shape
            elif labels.size == max(labels.shape):
                # Along one dimension whatever is left is a rectangle.
                row = labels.reshape(-1)[kept.reshape(-1)]
                shape = tuple([1 if n == 1 else len(row) for n in labels.shape])
                self.cuts[key] = row.reshape(shape), shape
            else:
                self.cuts[key] = _rectangle(labels, kept)
        return self.cuts[key]

    def _blame(self, values: Any, reason: str, call: OpCall, args: Any, module: str | None = None) -> None:
        """Blame the units that reach a call for what went wrong in it."""
        if self.hasty:
            self.blames.append(Blame(np.empty(0, np.int64), reason, self.at, ""))
            raise StoppedError
        inputs = [self._whole(source) for source in call.sources]
        parts = [np.empty(0, np.int64)]
        known = [self.flows[id(t)] for t in tensors(values) if id(t) in self.flows]
        for flow in (*known, *call.flows, *([] if known else inputs)):
            parts += [layer.labels.reshape(-1) for layer in flow.layers]
        mine = self.grouping.touching(self.grouping.unit_of[np.concatenate(parts)])
        self.told = self.told or not self.grouping.trace.protected_units[mine].all()
        wants = tuple(w for w in wanted(call, inputs) if self._stays(w.labels) < w.size)
        # Channels that meet are told by the rules; only a size that is asked for may be that of others.
        ties = tuple(self._followed(wants, whole_numbers(args))) if call.name in SIZED else ()
        own, line = running() if module is None else (None, "")
        path = self._path(own) if module is None else module
        # Others are suspected only where nothing free is blamed.
        asked = call.name in SIZED and not self.told
        suspects = tuple(self._suspects(call, whole_numbers(args))) if asked else ()
        close = np.empty(0, np.int64) if self.told else self._close()
        self.blames.append(Blame(np.flatnonzero(mine), reason, self.at, path, wants, ties, line, suspects, close))

    def _close(self) -> npt.NDArray[np.int64]:
        """Free units, some of them cut, of the closest call before the present one that has any."""
        free = ~self.grouping.trace.protected_units
        for before in reversed(self.expected[max(self.at - REACH, 0) : self.at]):
            for flow in before.flows:
                for layer in flow.layers:
                    if id(layer.labels) not in self.closest:
                        units = np.unique(self.grouping.unit_of[layer.labels])
                        cut = not self.stays[layer.labels].all()
                        self.closest[id(layer.labels)] = units[free[units]] if cut else units[:0]
                    if len(self.closest[id(layer.labels)]):
                        return self.closest[id(layer.labels)]
        return np.empty(0, np.int64)

    def _suspects(self, call: OpCall, given: set[int]) -> Iterator[npt.NDArray[np.int64]]:
        """Free units along an axis met before, of a size of what the call should have made, and of one it was given."""
        sizes = {n for shape in call.shapes for n in shape if n > 1}
        known: set[int] = set()
        alike: set[bytes] = set()
        for before in reversed(self.expected[max(self.at - REACH, 0) : self.at]):
            for flow in {id(flow): flow for flow in before.flows}.values():
                for axis in axes(flow):
                    if axis.size not in sizes or id(axis) in known:
                        continue
                    known.add(id(axis))
                    if id(axis) not in self.along:
                        self.along[id(axis)] = self._stays(axis.labels)
                    if self.along[id(axis)] not in given - {axis.size}:
                        continue
                    key = axis.labels.tobytes()
                    own = self.grouping.touching(self.grouping.unit_of[axis.labels])
                    free = np.flatnonzero(own & ~self.grouping.trace.protected_units)
                    if key not in alike and len(free):
                        yield free
                    alike.add(key)

    def _whole(self, source: Source) -> Flow:
        """What the whole network's tensor from there carries."""
        if isinstance(source, tuple):
            at, k = source
            return self.expected[at].flows[k]
        layers = []
        if isinstance(source, str):
            for d in range(8):
                labels = self.whole.slots.get((source, d))
                if labels is not None:
                    layers.append(Layer(labels.reshape((1,) * d + (-1,))))
        return Flow(tuple(layers))

    def _stays(self, labels: Labels) -> int:
        return int(np.count_nonzero(self.stays[labels].any(axis=1)))

    def _followed(self, wants: Sequence[Want], given: set[int]) -> Iterator[tuple[Labels, Labels]]:
        """Pairs of a wanted size and another one of the same length, which the call was given after the cut."""
        known = set()
        for want in wants:
            others = {n for n in given if n != self._stays(want.labels) and n < want.size}
            if not others:
                continue
            own = self.grouping.unit_of[want.labels[:, 0]]
            for before in reversed(self.expected[max(self.at - REACH, 0) : self.at]):
                for axis in (axis for flow in before.flows for axis in axes(flow) if axis.size == want.size):
                    units = self.grouping.unit_of[axis.labels[:, 0]]
                    key = own.tobytes(), units.tobytes()
                    if key in known or np.array_equal(units, own) or self._stays(axis.labels) not in others:
                        continue
                    known.add(key)
                    if not self.grouping.trace.protected_units[units].any():
                        yield want.labels[:, 0], axis.labels[:, 0]

    def _path(self, module: torch.nn.Module | None) -> str:
        if self.paths is None:
            self.paths = {id(module): path for path, module in reversed(walk(self.model))}
        return self.paths.get(id(module), "")

    # Outputs are compared call by call; what the rules say of the whole network still holds ----------------

    def equate(self, left: Labels, right: Labels) -> None:
        return

    def protect(self, labels: Labels, reason: str) -> None:
        return

    def rectangle(self, labels: Labels, loose: bool = False) -> None:
        return

    def altered(self, labels: Labels, reason: str) -> None:
        return

    def spend(self, macs: float, *factors: Labels) -> None:
        return

    def role(self, slot: Slot | None, role: Role) -> None:
        return

    def unknown(self, call: Call, reason: str = "") -> Flow:
        reason = f"{reason} in {call.name}" if reason else f"unknown operator {call.name}"
        return Flow((), reason)


def _rectangle(labels: Labels, kept: npt.NDArray[np.bool_]) -> tuple[Labels | None, tuple[int, ...]]:
    """The labels that are kept, None if they are no rectangle, and the length that is left of each dimension."""
    if kept.all():
        return labels, labels.shape
    every = range(kept.ndim)
    shape = tuple([int(np.count_nonzero(kept.any(axis=tuple([e for e in every if e != d])))) for d in every])
    # What is kept lies within the rectangle of the lines that hold any; as many places fill it.
    whole = np.count_nonzero(kept) == prod(shape)
    return labels[kept].reshape(shape) if whole else None, shape


def _by_dims(layers: Iterable[Layer]) -> dict[tuple[tuple[int, ...], int], Labels]:
    """Labels by the dimensions that they lie along, and their number among those along the same."""
    found: dict[tuple[tuple[int, ...], int], Labels] = {}
    for layer in layers:
        found[layer.dims, sum(dims == layer.dims for dims, _ in found)] = layer.labels
    return found
