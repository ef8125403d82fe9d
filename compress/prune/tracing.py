"""Tracing: one forward pass, watched operator by operator, becomes units and groups."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode

from compress.errors import ModelError
from compress.prune.labels import Flow, Labels, Weight
from compress.prune.planning import architecture_hash, named_tensors, plan_from_kept
from compress.prune.rules import RULES, Call, Carried, tensors
from compress.prune.surgery import apply
from compress.prune.units import Attribute, Cost, Group, Role, Slot, Trace, components, group_units

Fixed = tuple[Slot, Labels, str]
"""Indices of a slot that have to stay, and why."""

Sightings = list[tuple[str, Labels]]
"""For each operator's output, the operator and the unit of each of its channels, in the order of the pass."""

TRIALS = 80
"""Trial cuts that one trace may take before it protects what it has not cleared."""


def trace(model: nn.Module, *example_inputs: torch.Tensor) -> Trace:
    """Watches one forward pass of `model` and finds the channels that live or die together.

    The pass runs on fake tensors and computes nothing; branches that only training takes are watched too.
    Sizes that the code fixes are found by cutting half of each group and tracing again on the meta device.

    Args:
        model: any network that runs in eager mode; it is not changed.
        example_inputs: tensors of the shapes it is fed, batch first.

    Raises:
        ModelError: the forward pass fails on these inputs.
    """
    fixed: list[Fixed] = []
    while True:
        found, seen = _watch(model, example_inputs, fixed)
        broken = _Trials(model, example_inputs, found, seen).broken(list(found.groups))
        if not broken:
            return found
        fixed += [
            (slot, np.flatnonzero(np.isin(found.slots[slot], group.units)), reason)
            for group, reason in broken
            for slot in group.slots
        ]


def _watch(model: nn.Module, inputs: tuple[torch.Tensor, ...], fixed: list[Fixed]) -> tuple[Trace, Sightings]:
    tracer = _Tracer(model)
    with _own_flags(model):
        tracer.run(inputs, training=False)
        # Auxiliary heads and the like run in training only.
        if any(name not in tracer.seen for name, _ in model.named_parameters()):
            tracer.run(inputs, training=True)
    return tracer.finish(fixed)


class _Tracer(TorchDispatchMode):
    """Collects labels, equalities and costs while operators run."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.count = 0
        self.equalities: list[tuple[Labels, Labels]] = []
        self.protections: list[tuple[Labels, str]] = []
        self.constants: list[Labels] = []
        self.slots: dict[Slot, Labels] = {}
        self.roles: dict[Slot, Role] = {}
        self.costs: list[Cost] = []
        self.unknown_ops: dict[str, None] = {}
        self.seen: set[str] = set()
        self.tied: dict[str, str] = {}
        self.known: dict[int, tuple[torch.Tensor, Carried]] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.sightings: list[tuple[str, Labels]] = []

    def run(self, inputs: tuple[torch.Tensor, ...], training: bool) -> None:
        """One pass; a second one adds to the labels of the first."""
        self.known = {}
        counted = len(self.costs)
        self.model.train(training)
        mode = FakeTensorMode(allow_non_fake_inputs=True)
        with mode, torch.no_grad():
            state: dict[str, torch.Tensor] = {}
            first: dict[int, tuple[str, torch.Tensor]] = {}
            for name, tensor in named_tensors(self.model).items():
                # Fresh and contiguous: a stride of the user's says nothing about channels.
                fresh = torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device)
                owner, fake = first.setdefault(id(tensor), (name, fresh))
                if owner != name:
                    self.tied[name] = owner
                state[name] = fake
                shape = tuple(tensor.shape)
                self.shapes[name] = shape
                self.known[id(fake)] = (fake, Weight(owner, shape, tuple(range(len(shape)))))
            on_meta = any(tensor.is_meta for tensor in self.model.parameters())
            fakes = []
            for tensor in inputs:
                device = torch.device("meta") if on_meta else tensor.device
                fake = torch.empty(tensor.shape, dtype=tensor.dtype, device=device)
                self.known[id(fake)] = (fake, Flow(None, "graph input"))
                fakes.append(fake)
            try:
                with self, _quiet():
                    out = functional_call(self.model, state, tuple(fakes), tie_weights=False)
            except Exception as error:
                shapes = ", ".join(str(tuple(t.shape)) for t in inputs)
                raise ModelError(
                    f"The forward pass of {type(self.model).__name__} fails on inputs of shape {shapes} "
                    f"({_first_line(error)}); give an example input that the model accepts."
                ) from error
        if not tensors(out):
            raise ModelError(
                f"{type(self.model).__name__} returns {type(out).__name__}, in which no tensor is found; "
                "return a tensor, or a tuple, list, dictionary or dataclass of tensors."
            )
        for tensor in tensors(out):
            self.protect(self.flow(tensor).labels, "graph output")
        if training:
            del self.costs[counted:]

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        name = str(func.overloadpacket)
        call = Call(name, args, kwargs or {}, out)
        if not tensors(out) or not any(id(t) in self.known for t in tensors((args, kwargs))):
            return out
        rule = RULES.get(name)
        results = rule(self, call) if rule is not None else self.unknown(call)
        outs = list(out) if isinstance(out, list | tuple) else [out]
        carried = results if isinstance(results, list | tuple) else [results]
        for tensor, what in zip(outs, carried, strict=False):
            if isinstance(tensor, torch.Tensor):
                self.known[id(tensor)] = (tensor, what)
                if isinstance(what, Flow):
                    self.sightings.append((name, np.empty(0, np.int64) if what.labels is None else what.labels))
        if name.endswith("_"):
            self._written(outs[0])
        for tensor in outs[len(carried) :]:
            if isinstance(tensor, torch.Tensor):
                self.known[id(tensor)] = (tensor, Flow(None, f"output of {name}"))
        return out

    def _written(self, tensor: torch.Tensor) -> None:
        """What shares storage with a tensor written in place may hold something else than zero now."""
        storage = tensor.untyped_storage()._cdata
        own = self.known[id(tensor)][1]
        for key, (other, what) in self.known.items():
            if other is not tensor and isinstance(what, Flow) and other.untyped_storage()._cdata == storage:
                zero = what.zero and isinstance(own, Flow) and own.zero
                self.known[key] = (other, replace(what, zero=zero))

    # What rules call -------------------------------------------------------------------------------------

    def fresh(self, size: int) -> Labels:
        labels = np.arange(self.count, self.count + size, dtype=np.int64)
        self.count += size
        return labels

    def carried(self, tensor: torch.Tensor) -> Carried:
        return self.known[id(tensor)][1] if id(tensor) in self.known else Flow(None, "a constant")

    def flow(self, tensor: torch.Tensor) -> Flow:
        """An activation's labels; a vector parameter used as an operand becomes one, labelled by its slot."""
        carried = self.carried(tensor)
        if isinstance(carried, Flow):
            return carried
        self.seen.add(carried.name)
        wide = [i for i, d in enumerate(carried.dims) if carried.shape[d] > 1]
        if not wide:
            return Flow(None, "a constant")
        if len(wide) > 1:
            for place in wide:
                self.protect(self.slot(carried, place, "producer"), "a parameter used as a whole")
            return Flow(None, f"the parameter {carried.name}")
        labels = self.slot(carried, wide[0], "producer")
        return Flow(labels.reshape([-1 if i == wide[0] else 1 for i in range(len(carried.dims))]))

    def slot(self, weight: Weight, place: int, role: Role) -> Labels:
        self.seen.add(weight.name)
        key = (weight.name, weight.dims[place])
        if key not in self.slots:
            self.slots[key] = self.fresh(weight.shape[weight.dims[place]])
            self.roles[key] = role
        elif self.roles[key] != role:
            self.protect(self.slots[key], f"{weight.name} both makes and reads channels")
        return self.slots[key]

    def equate(self, left: Labels, right: Labels) -> None:
        self.equalities.append((left.reshape(-1), right.reshape(-1)))

    def protect(self, labels: Labels | None, reason: str) -> None:
        if labels is not None:
            self.protections.append((labels.reshape(-1), reason))

    def read(self, flow: Flow, labels: Labels, reason: str) -> None:
        if not flow.zero:
            self.constants.append(labels)

    def spend(self, weight: Weight, macs: float) -> None:
        self.costs.append(Cost(weight.name, float(macs)))

    def unknown(self, call: Call) -> Flow:
        reaching = [self.flow(t) for t in tensors((call.args, call.kwargs))]
        if any(flow.labels is not None for flow in reaching):
            self.unknown_ops[call.name] = None
        for flow in reaching:
            self.protect(flow.labels, f"unknown operator {call.name}")
        return Flow(None, f"unknown operator {call.name}")

    # From labels to units --------------------------------------------------------------------------------

    def finish(self, fixed: list[Fixed]) -> tuple[Trace, Sightings]:
        left = np.concatenate([a for a, _ in self.equalities]) if self.equalities else np.empty(0, np.int64)
        right = np.concatenate([b for _, b in self.equalities]) if self.equalities else np.empty(0, np.int64)
        unit_of = components(self.count, left, right)
        count = int(unit_of.max()) + 1 if len(unit_of) else 0
        slots = {key: unit_of[labels] for key, labels in self.slots.items()}
        reason_of: dict[int, str] = {}
        for labels, reason in self.protections:
            for unit in np.unique(unit_of[labels]):
                reason_of.setdefault(int(unit), reason)
        for slot, index, reason in fixed:
            for unit in np.unique(slots[slot][index]):
                reason_of.setdefault(int(unit), reason)
        preserving = np.ones(count, dtype=bool)
        for labels in self.constants:
            preserving[unit_of[labels]] = False
        for unit in np.flatnonzero(~preserving):
            reason_of.setdefault(int(unit), "a masked channel becomes a constant on the way")
        stay = np.zeros(count, dtype=bool)
        stay[list(reason_of)] = True
        produced = np.zeros(count, dtype=bool)
        for key, units in slots.items():
            if self.roles[key] == "producer":
                produced[units] = True
        groups = group_units(slots, self.roles, ~stay & produced)
        protected = {}
        for key, units in slots.items():
            reasons = {reason_of[int(u)] for u in np.unique(units[stay[units]])}
            if reasons:
                protected[f"{key[0]}:{key[1]}"] = "; ".join(sorted(reasons))
        sightings = [(name, unit_of[labels.reshape(-1)]) for name, labels in self.sightings]
        found = Trace(
            architecture=architecture_hash(self.model),
            units=count,
            slots=slots,
            roles=self.roles,
            groups=groups,
            protected=protected,
            protected_units=stay | ~produced,
            preserving=preserving,
            unknown_ops=tuple(self.unknown_ops),
            costs=tuple(self.costs),
            attributes=tuple(_attributes(self.model, slots, self.tied)),
            parameters=self.shapes,
            tied=self.tied,
        )
        return found, sightings


def _attributes(model: nn.Module, slots: dict[Slot, Any], tied: dict[str, str]) -> Iterator[Attribute]:
    """The sizes that torch's own layers keep as numbers, each with the slot that it follows."""
    for path, module in model.named_modules():
        weight = getattr(module, "weight", None)
        name = f"{path}.weight" if path else "weight"
        name = tied.get(name, name)
        if isinstance(module, nn.Linear):
            follows = [("out_features", 0, 1, 1), ("in_features", 1, 1, 1)]
        elif isinstance(module, nn.modules.conv._ConvTransposeNd):
            follows = [("in_channels", 0, 1, 1), ("out_channels", 1, module.groups, 1)]
        elif isinstance(module, nn.modules.conv._ConvNd):
            follows = [("out_channels", 0, 1, 1), ("in_channels", 1, module.groups, 1)]
            if module.groups > 1 and weight is not None and weight.shape[1] == 1:
                per = module.out_channels // module.groups
                follows = [("out_channels", 0, 1, 1), ("in_channels", 0, 1, per), ("groups", 0, 1, per)]
        elif isinstance(module, nn.modules.batchnorm._NormBase):
            name = name if module.affine else f"{path}.running_mean"
            follows = [("num_features", 0, 1, 1)]
        else:
            continue
        for attribute, dim, factor, divisor in follows:
            if (name, dim) in slots:
                value = int(getattr(module, attribute))
                yield Attribute(path, attribute, value, (name, dim), factor, divisor)


@contextmanager
def _quiet() -> Iterator[None]:
    """Torch logs what fails on fake tensors before it raises it; the error alone is for the user."""
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


@contextmanager
def _own_flags(model: nn.Module) -> Iterator[None]:
    """Gives every module its own training flag back, also when some were frozen."""
    flags = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, flag in flags:
            module.training = flag


# The trial cut --------------------------------------------------------------------------------------------


@dataclass
class _Trials:
    """Cuts tried on a network, to find the sizes that its code fixes."""

    model: nn.Module
    inputs: tuple[torch.Tensor, ...]
    found: Trace
    seen: Sightings
    left: int = TRIALS

    def broken(self, groups: list[Group]) -> list[tuple[Group, str]]:
        """The groups among `groups` that cannot lose channels freely, each with the reason."""
        if not groups:
            return []
        if self.left <= 0:
            return [(group, "fixed size: too many fixed sizes to tell them apart") for group in groups]
        self.left -= 1
        reason = next(filter(None, (self._fails(self._cut(groups, way)) for way in _WAYS)), "")
        if not reason:
            return []
        if len(groups) == 1:
            return [(groups[0], reason)]
        half = len(groups) // 2
        found = self.broken(groups[:half]) + self.broken(groups[half:])
        # Halves that pass alone and fail together depend on each other: all of them stay.
        return found or [(group, reason) for group in groups]

    def _cut(self, groups: list[Group], way: str) -> npt.NDArray[np.bool_]:
        """The units that stay. Groups of one size lose different numbers in one of `first` and `last`."""
        kept = np.ones(self.found.units, dtype=bool)
        place = {id(group): k for k, group in enumerate(self.found.groups)}
        for group in groups:
            k, n = place[id(group)], len(group.units)
            most = max(1, n - 2)
            cut = {
                "every other": group.units[1::2],
                "first": group.units[: 1 + k % most],
                "last": group.units[n - 1 - k // most % most :],
            }
            # A group of one channel cannot lose it.
            kept[cut[way][: n - 1]] = False
        return kept

    def _fails(self, kept: npt.NDArray[np.bool_]) -> str:
        """Why the network cut down to `kept` does not run or does not see the same channels, or ""."""
        plan = plan_from_kept(self.found, kept)
        small = apply(_on_meta(self.model), plan)
        try:
            again, seen = _watch(small, self.inputs, [])
        except ModelError as error:
            return f"fixed size: {_first_line(error.__cause__ or error)}"
        before = {slot: units[plan.kept_indices(slot, len(units))] for slot, units in self.found.slots.items()}
        if set(before) != set(again.slots) or [n for n, _ in seen] != [n for n, _ in self.seen]:
            return "fixed size: the network takes another way after a cut"
        pairs = [(before[slot], again.slots[slot]) for slot in before]
        # Not only the parameters: every operator has to see the channels that are left in the same places.
        pairs += [(_runs(a[kept[a]]), _runs(b)) for (_, a), (_, b) in zip(self.seen, seen, strict=True)]
        if any(len(a) != len(b) for a, b in pairs):
            return "fixed size: other channels are reached after a cut"
        both = np.unique(np.concatenate([np.stack(pair) for pair in pairs], axis=1), axis=1)
        if any(len(np.unique(row)) != both.shape[1] for row in both):
            return "fixed size: channels meet in other ways after a cut"
        return ""


# Halves, pairs, wraps and strides show in one of these cuts, sizes that two groups share in one of the last two.
_WAYS = ("every other", "first", "last")


def _runs(units: Labels) -> Labels:
    """Without repeats in a row: a channel that is spread over positions is one channel."""
    return units[np.append(True, units[1:] != units[:-1])] if len(units) else units


def _on_meta(model: nn.Module) -> nn.Module:
    """A copy without storage."""
    memo: dict[int, Any] = {}
    for tensor in named_tensors(model).values():
        empty = torch.empty_like(tensor, device="meta")
        is_parameter = isinstance(tensor, nn.Parameter)
        memo[id(tensor)] = nn.Parameter(empty, tensor.requires_grad) if is_parameter else empty
    return copy.deepcopy(model, memo)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
