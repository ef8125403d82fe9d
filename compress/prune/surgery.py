"""Surgery: a plan made real. Legality is checked as a whole before any tensor moves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import TypeVar, overload

import numpy as np
import torch
from torch import Tensor, nn

import cpp_ext
from compress.errors import PlanError
from compress.prune.attention import SUBSTITUTES, substitute, substitute_for
from compress.prune.attributes import set_size
from compress.prune.optimizer_state import cut_average, cut_optimizer
from compress.prune.planning import Plan, architecture_hash, named_tensors
from compress.prune.probe import clone, uncollected

OptimizerT = TypeVar("OptimizerT", bound=torch.optim.Optimizer)
AverageT = TypeVar("AverageT", bound=nn.Module | dict[str, Tensor])


class Indices:
    """Kept indices of one dimension, rising and at least one: made once, moved to each device once."""

    def __init__(self, kept: tuple[int, ...]) -> None:
        # Several times faster than torch.tensor on a tuple.
        values = np.fromiter(kept, np.int64, len(kept))
        if not len(values) or values[0] < 0 or bool((values[1:] <= values[:-1]).any()):
            raise ValueError("not rising")
        self.last = int(values[-1])
        self._count = len(values)
        self._on = {torch.device("cpu"): torch.from_numpy(values)}

    def __len__(self) -> int:
        return self._count

    def on(self, device: torch.device) -> Tensor:
        """int64 [kept]."""
        if device not in self._on:
            self._on[device] = self._on[torch.device("cpu")].to(device)
        return self._on[device]


@dataclass(frozen=True)
class Cut:
    """A plan that is legal for a network.

    Args:
        plan: the plan.
        tensors: the network's parameters and buffers under each of their names.
        kept: name -> dimension -> what stays; under each name of a tensor that is shared.
    """

    plan: Plan
    tensors: dict[str, Tensor]
    kept: dict[str, dict[int, Indices]]

    def copy(self, root: nn.Module, tensors: Mapping[str, Tensor], memo: dict[int, object]) -> nn.Module:
        """A cut deep copy of `root`, whose `tensors` go by the network's names; what was copied is in `memo` then."""
        dense = {id(tensors[name]): (tensors[name], kept) for name, kept in self.kept.items() if name in tensors}
        new = {key: pair for key, pair in dense.items() if key not in memo}
        memo.update(zip(new, self.sliced(list(new.values())), strict=True))
        # Deep-copying with the cut tensors already in the memo keeps ties and never copies a dense weight.
        small = clone(root, memo)
        modules = dict(small.named_modules(remove_duplicate=False))
        for path, name in self.plan.substitutions.items():
            # One module may be reached by several paths.
            if not isinstance(modules[path], SUBSTITUTES[name]):
                substitute(modules[path], name)
        for path, changes in self.plan.attributes.items():
            for attribute, (before, after) in changes.items():
                set_size(modules[path], attribute, before, after)
        return small

    def sliced(self, tensors: Sequence[tuple[Tensor, Mapping[int, Indices]]]) -> list[Tensor]:
        """What stays of each tensor, in fresh contiguous memory, by one call; parameters of parameters."""
        return _sliced(tensors)

    def check_modules(self, root: nn.Module) -> None:
        """Raises PlanError unless `root` has the modules that the plan substitutes and patches, as it takes them."""
        modules = dict(root.named_modules(remove_duplicate=False))
        for path, name in self.plan.substitutions.items():
            if name not in SUBSTITUTES:
                raise PlanError(
                    f"The plan puts '{name}' in the place of '{path}'; there is only {', '.join(SUBSTITUTES)}."
                )
            if path not in modules or substitute_for(modules[path]) != name:
                found = f"a {type(modules[path]).__name__}" if path in modules else "no module"
                raise PlanError(f"The plan puts '{name}' in the place of '{path}', the network has {found} there.")
        for path, changes in self.plan.attributes.items():
            for attribute, (before, _) in changes.items():
                module = modules.get(path)
                # What a substitute adds is there only after the substitution.
                if path in self.plan.substitutions and not hasattr(module, attribute):
                    continue
                value = getattr(module, attribute, None)
                entries = value if isinstance(value, tuple | list) else (value,)
                if not any(isinstance(entry, Integral) and entry == before for entry in entries):
                    shown = value if value is None or isinstance(value, int | tuple | list) else type(value).__name__
                    raise PlanError(f"The plan expects {path}.{attribute} = {before}, the network has {shown}.")


def validate(model: nn.Module, plan: Plan) -> None:
    """Raises PlanError with one sentence unless the whole plan is legal for `model`; touches nothing."""
    _legal(model, plan)


@overload
def apply(model: nn.Module, plan: Plan, optimizer: None = None, ema: None = None) -> nn.Module: ...
@overload
def apply(
    model: nn.Module, plan: Plan, optimizer: OptimizerT, ema: AverageT
) -> tuple[nn.Module, OptimizerT, AverageT]: ...
@overload
def apply(
    model: nn.Module, plan: Plan, optimizer: OptimizerT, ema: None = None
) -> tuple[nn.Module, OptimizerT, None]: ...
@overload
def apply(
    model: nn.Module, plan: Plan, optimizer: None = None, *, ema: AverageT
) -> tuple[nn.Module, None, AverageT]: ...


def apply(
    model: nn.Module,
    plan: Plan,
    optimizer: torch.optim.Optimizer | None = None,
    ema: nn.Module | dict[str, Tensor] | None = None,
) -> object:
    """A new network without the channels that the plan drops; the originals are untouched.

    Args:
        model: the network that the plan was made for, on any device, meta too.
        plan: what stays.
        optimizer: over parameters of `model`; see `cut_optimizer` for what the new one takes along.
        ema: averaged weights: an `AveragedModel`, another module with these parameters or one in its `module`,
            or a dictionary of tensors by name.

    Returns:
        The new network; with an optimizer or averaged weights the network, a new optimizer over its parameters and
        new averaged weights of the same types, None for what was not given.

    Raises:
        PlanError: the plan is not legal for this network, or optimizer or averaged weights do not belong to it.
    """
    cut = _legal(model, plan)
    memo: dict[int, object] = {}
    with uncollected():
        small = cut.copy(model, cut.tensors, memo)
    if optimizer is None and ema is None:
        return small
    new_optimizer = None if optimizer is None else cut_optimizer(optimizer, cut, memo)
    return small, new_optimizer, None if ema is None else cut_average(ema, cut)


def mask(model: nn.Module, plan: Plan) -> nn.Module:
    """A copy of full shape in which everything that makes a dropped channel is zero.

    Raises:
        PlanError: the plan is not legal for this network.
    """
    validate(model, plan)
    return mask_(clone(model, {}), plan)


def mask_(model: nn.Module, plan: Plan) -> nn.Module:
    """`mask` in place; returns `model`.

    Raises:
        PlanError: the plan is not legal for this network, which is then unchanged.
    """
    cut = _legal(model, plan)
    lists: dict[torch.device, tuple[list[Tensor], list[int], list[Tensor]]] = {}
    masks: dict[tuple[int, int, torch.device], Tensor] = {}
    for key, slot in plan.slots.items():
        if slot.role != "producer":
            continue
        name, _, dim = key.rpartition(":")
        tensor = cut.tensors[name]
        which = id(slot.kept), slot.of, tensor.device
        if which not in masks:
            gone = np.ones(slot.of, np.bool_)
            gone[list(slot.kept)] = False
            masks[which] = torch.from_numpy(gone).to(tensor.device)
        tensors, dims, gones = lists.setdefault(tensor.device, ([], [], []))
        tensors.append(tensor)
        dims.append(int(dim))
        gones.append(masks[which])
    with torch.no_grad():
        for tensors, dims, gones in lists.values():
            cpp_ext.masked_fill_channels(tensors, dims, gones)
    return model


def _legal(model: nn.Module, plan: Plan) -> Cut:
    own = architecture_hash(model)
    if own != plan.architecture:
        raise PlanError(
            f"This plan was made for another architecture ({plan.architecture[:12]}), the network given is "
            f"{own[:12]}; apply it to the network it was made from."
        )
    tensors = named_tensors(model)
    # Groups share their indices: equal ones become a tensor once.
    made: dict[int, Indices | None] = {}
    alike: dict[tuple[int, ...], Indices | None] = {}
    by_tensor: dict[int, dict[int, Indices]] = {}
    for key, slot in plan.slots.items():
        name, _, place = key.rpartition(":")
        if name not in tensors or not place.isdecimal() or int(place) >= tensors[name].dim():
            raise PlanError(f"The plan cuts '{key}', which the network does not have; make the plan again.")
        size = tensors[name].shape[int(place)]
        if slot.of != size:
            raise PlanError(f"The plan takes '{key}' to have {slot.of} channels, it has {size}.")
        # Most share the object too, and asking for that is quicker than hashing it.
        if id(slot.kept) not in made:
            if slot.kept not in alike:
                alike[slot.kept] = _indices(slot.kept)
            made[id(slot.kept)] = alike[slot.kept]
        indices = made[id(slot.kept)]
        if indices is None or indices.last >= size:
            raise PlanError(f"The plan's indices for '{key}' must be rising, in 0..{size - 1} and not empty.")
        known = by_tensor.setdefault(id(tensors[name]), {}).setdefault(int(place), indices)
        if known is not indices:
            raise PlanError(f"The plan's indices for '{key}' differ from those under the tensor's other name.")
    kept = {name: by_tensor[id(tensor)] for name, tensor in tensors.items() if id(tensor) in by_tensor}
    cut = Cut(plan, tensors, kept)
    cut.check_modules(model)
    return cut


def _indices(kept: tuple[int, ...]) -> Indices | None:
    try:
        return Indices(kept)
    except (ValueError, OverflowError):
        return None


def _sliced(tensors: Sequence[tuple[Tensor, Mapping[int, Indices]]]) -> list[Tensor]:
    """The kept parts: dims 0 and 1 in one call of the kernel for each device, further ones by index_select."""
    results: list[Tensor] = []
    lists: dict[torch.device, list[int]] = {}
    for k, (tensor, kept) in enumerate(tensors):
        out = tensor.detach()
        if tensor.is_meta or not kept:
            # Nothing to gather: a shape, or everything.
            shape = [len(kept[d]) if d in kept else size for d, size in enumerate(tensor.shape)]
            out = out.new_empty(shape) if tensor.is_meta else out.clone()
        else:
            for d in sorted(d for d in kept if d > 1):
                out = out.index_select(d, kept[d].on(tensor.device))
            if not kept.keys().isdisjoint((0, 1)):
                lists.setdefault(tensor.device, []).append(k)
        results.append(out)
    for device, places in lists.items():
        pairs = [
            [kept[d].on(device) if d in kept else None for d in (0, 1)] for _, kept in (tensors[k] for k in places)
        ]
        sliced = cpp_ext.multi_channel_slice([results[k] for k in places], [(rows, columns) for rows, columns in pairs])
        for k, out in zip(places, sliced, strict=True):
            results[k] = out
    return [
        nn.Parameter(out, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else out
        for out, (tensor, _) in zip(results, tensors, strict=True)
    ]
