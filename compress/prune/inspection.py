"""What ``niwaki inspect`` shows: which channels of a network are free to go, which must stay, and why."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from compress.errors import ModelError
from compress.prune import residual, tracing, units
from compress.prune.probe import Forward
from compress.prune.residual import Blocks
from compress.prune.units import Group, Trace


class Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Member(Frozen):
    """One dimension (``parameter:dimension``) that a group's units occupy, and what it does there."""

    slot: str
    role: str


class GroupView(Frozen):
    """Units that are chosen together.

    Args:
        name: the module of its first producer.
        units: how many there are to choose from.
        width: indices of a slot that one unit spans, such as the channels of an attention head; mostly 1.
        preserving: whether removing one equals masking it.
        note: what the units lie under when it does not.
        macs_share: share of the network's MACs that goes with all but one of the units.
        parameters_share: the same of its parameters.
        members: every slot that the units occupy.
    """

    name: str
    units: int
    width: int
    preserving: bool
    note: str
    macs_share: float
    parameters_share: float
    members: tuple[Member, ...]


class Protection(Frozen):
    """Slots that stay whole, or in part, for one reason; ``channels`` counts the units that it holds."""

    reason: str
    slots: tuple[str, ...]
    channels: int


class BlockView(Frozen):
    """A residual block that may go whole; its share of the network's MACs, and the class that takes its place."""

    name: str
    macs_share: float
    becomes: str


class PatchedSize(Frozen):
    """A size that a module keeps as a number, which a cut of ``slot`` changes."""

    module: str
    name: str
    value: int
    slot: str


class Inspection(Frozen):
    """A network seen as channels; ``model_dump_json`` is what ``niwaki inspect --json`` prints.

    Args:
        model: what was asked for.
        type: class of the network.
        input: shape of one image, (channels, height, width).
        forward: the function that was followed in place of the network's own forward pass, such as ``rcnn_heads``.
        parameters: parameters, shared ones once.
        macs: multiply-accumulates of one image.
        units: sets of channels of parameters that live or die together: the free ones and the protected ones.
        free_units: units that may go, all groups together.
        parameters_free: share of the parameters that goes when every free group keeps a single unit.
        macs_free: the same of the MACs.
        seconds: what tracing took.
        groups: free groups in the order of the forward pass.
        protected: why the rest has to stay.
        substitutions: module -> the class that takes its place before a cut.
        attributes: sizes that a cut patches.
        unknown_ops: operators without a rule; what reaches them stays.
        unfollowed: numbers of modules that may be sizes and that a cut leaves as they are; the pass does not read them.
        blocks: residual blocks that may go whole; None where they were not asked for.
        blocks_that_stay: every other module whose output is a sum with its own input -> why it stays.
    """

    model: str
    type: str
    input: tuple[int, ...]
    forward: str
    parameters: int
    macs: float
    units: int
    free_units: int
    parameters_free: float
    macs_free: float
    seconds: float
    groups: tuple[GroupView, ...]
    protected: tuple[Protection, ...]
    substitutions: dict[str, str]
    attributes: tuple[PatchedSize, ...]
    unknown_ops: tuple[str, ...]
    unfollowed: tuple[str, ...] = ()
    blocks: tuple[BlockView, ...] | None = None
    blocks_that_stay: dict[str, str] = {}


def inspect_model(
    model: nn.Module,
    example: Tensor,
    *,
    name: str = "",
    forward: Forward | None = None,
    protect: Sequence[str] = (),
    blocks: bool = False,
) -> Inspection:
    """Trace ``model`` and say what is free, what stays and why.

    Args:
        model: the network; its weights do not matter and it is not changed.
        example: a batch of images that it accepts.
        name: what to call it.
        forward: what to run on the network and the images in place of its own forward pass.
        protect: patterns of parameter names whose groups have to stay.
        blocks: look for residual blocks that may go whole too.

    Raises:
        ModelError: the forward pass fails, or a pattern matches no parameter.
    """
    names = _matched([n for n, _ in model.named_parameters()], protect)
    start = time.perf_counter()
    try:
        trace = tracing.trace(model, example, forward=forward)
    except ModelError as error:
        raise ModelError(f"{str(error).removesuffix('.')} (--size N sets its height and width).") from error
    seconds = time.perf_counter() - start
    trace = units.protect(trace, protect)
    costs = _Costs(trace, tuple(names))
    free = np.concatenate([g.units for g in trace.groups]) if trace.groups else np.empty(0, np.int64)
    least = np.concatenate([g.units[1:] for g in trace.groups]) if trace.groups else free
    macs, parameters = costs.shares(least)
    modules = dict(model.named_modules())
    return Inspection(
        model=name or type(model).__name__,
        type=type(model).__name__,
        input=tuple(example.shape[1:]),
        forward="" if forward is None else getattr(forward, "__name__", type(forward).__name__),
        parameters=int(costs.parameters),
        macs=costs.macs / len(example),
        units=len(set().union(*(own[own >= 0].tolist() for own in trace.slots.values()))),
        free_units=len(free),
        parameters_free=parameters,
        macs_free=macs,
        seconds=seconds,
        groups=tuple(_group(modules, trace, costs, group) for group in trace.groups),
        protected=tuple(_protections(trace)),
        substitutions=dict(trace.substitutions),
        attributes=tuple(
            PatchedSize(module=a.module, name=a.name, value=a.value, slot=_slot(a.slot))
            for a in trace.attributes
            if bool(np.isin(trace.slots[a.slot], free).any())
        ),
        unknown_ops=trace.unknown_ops,
        unfollowed=tuple(f"{module}.{name} = {value}".lstrip(".") for module, name, value in trace.unfollowed),
        **(_blocks(residual.blocks(model, example, forward=forward)) if blocks else {}),
    )


def _matched(names: list[str], protect: Sequence[str]) -> list[str]:
    """The names of all parameters; raises ModelError where a pattern matches none."""
    for pattern in protect:
        if not any(fnmatchcase(n, pattern) for n in names):
            raise ModelError(f"--protect: '{pattern}' matches no parameter (the first one is '{names[0]}').")
    return names


def _blocks(found: Blocks) -> dict[str, Any]:
    """What an inspection says of residual blocks."""
    macs = found.macs or 1.0
    shown = tuple(BlockView(name=b.name, macs_share=b.macs / macs, becomes=b.becomes) for b in found.blocks)
    return {"blocks": shown, "blocks_that_stay": dict(found.stays)}


class _Costs:
    """MACs and parameters of the whole network, and what share of them goes with some units."""

    def __init__(self, trace: Trace, names: tuple[str, ...]) -> None:
        self.trace, self.names = trace, names
        self.macs, self.parameters = self._of(np.ones(trace.units, dtype=bool))

    def shares(self, gone: npt.NDArray[np.int64]) -> tuple[float, float]:
        kept = np.ones(self.trace.units, dtype=bool)
        kept[gone] = False
        macs, parameters = self._of(kept)
        return 1 - macs / self.macs if self.macs else 0.0, 1 - parameters / self.parameters

    def _of(self, kept: npt.NDArray[np.bool_]) -> tuple[float, float]:
        sizes, shapes = self.trace.kept_sizes(kept), self.trace.parameters
        left = sum(prod(sizes.get((n, d), k) for d, k in enumerate(shapes[n])) for n in self.names if n in shapes)
        return self.trace.macs(kept), float(left)


def _group(modules: dict[str, nn.Module], trace: Trace, costs: _Costs, group: Group) -> GroupView:
    macs, parameters = costs.shares(group.units[1:])
    preserving = bool(trace.preserving[group.units].all())
    return GroupView(
        name=group.name,
        units=len(group.units),
        width=min(_span(modules, trace, group, slot) for slot in group.slots),
        preserving=preserving,
        note="" if preserving else _norm_above(modules, group) or _shut(trace, group),
        macs_share=macs,
        parameters_share=parameters,
        members=tuple(Member(slot=_slot(slot), role=trace.roles[slot]) for slot in group.slots),
    )


def _span(modules: dict[str, nn.Module], trace: Trace, group: Group, slot: tuple[str, int]) -> int:
    """Channels of one unit in a slot."""
    indices = int(np.isin(trace.slots[slot], group.units).sum())
    module = modules.get(slot[0].rpartition(".")[0])
    # A grouped convolution stores the columns of all its groups once.
    if slot[1] == 1 and isinstance(module, nn.modules.conv._ConvNd):
        indices *= module.groups
    return max(1, indices // len(group.units))


def _norm_above(modules: dict[str, nn.Module], group: Group) -> str:
    """The norm whose statistics the units share, as words."""
    for name, _ in group.slots:
        module = modules.get(name.rpartition(".")[0])
        for norm in (nn.LayerNorm, nn.GroupNorm):
            if isinstance(module, norm):
                return f"under a {norm.__name__}"
    return ""


def _shut(trace: Trace, group: Group) -> str:
    """What else keeps a masked channel from being zero, as words."""
    return "read where it is a constant" if any(trace.roles[slot] == "shut" for slot in group.slots) else ""


def _protections(trace: Trace) -> Iterator[Protection]:
    held: dict[str, list[str]] = {}
    for slot, reason in trace.protected.items():
        held.setdefault(reason, []).append(slot)
    for reason, slots in held.items():
        units: set[int] = set()
        for slot in slots:
            name, _, dim = slot.rpartition(":")
            own = trace.slots.get((name, int(dim)), np.empty(0, np.int64))
            units.update(own[(own >= 0) & trace.protected_units[own]].tolist())
        yield Protection(reason=reason, slots=tuple(slots), channels=len(units))


def _slot(slot: tuple[str, int]) -> str:
    return f"{slot[0]}:{slot[1]}"
