"""Apply a plan: cut or mask a network, once the whole plan is found legal."""

from __future__ import annotations

from typing import TypeVar, overload

import numpy as np
import torch
from torch import Tensor, nn

import cpp_ext
from compress.errors import PlanError
from compress.models.origin import cut_by
from compress.prune.architecture import named_tensors, shapes_hash
from compress.prune.cut import Cut, Indices
from compress.prune.optimizer_state import cut_average, cut_optimizer
from compress.prune.planning import Plan
from compress.prune.probe import clone, uncollected

OptimizerT = TypeVar("OptimizerT", bound=torch.optim.Optimizer)
AverageT = TypeVar("AverageT", bound=nn.Module | dict[str, Tensor])


def validate(model: nn.Module, plan: Plan) -> None:
    """Raise PlanError, with one sentence, unless the whole plan is legal for ``model``; change nothing."""
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
    """Make a new network without the channels and blocks that the plan drops; the originals are not changed.

    Args:
        model: the network that the plan was made for, on any device, meta too.
        plan: what stays.
        optimizer: over parameters of ``model``; see ``cut_optimizer`` for what the new one carries over.
        ema: averaged weights: an ``AveragedModel``, another module with these parameters or one in its ``module``,
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
    cut_by(model, small, plan)
    if optimizer is None and ema is None:
        return small
    new_optimizer = None if optimizer is None else cut_optimizer(optimizer, cut, memo)
    return small, new_optimizer, None if ema is None else cut_average(ema, cut)


def mask(model: nn.Module, plan: Plan) -> nn.Module:
    """Make a copy of full shape in which all that produces a dropped channel or ends a dropped branch is zero.

    Raises:
        PlanError: the plan is not legal for this network.
    """
    validate(model, plan)
    return mask_(clone(model, {}), plan)


def mask_(model: nn.Module, plan: Plan, readers: bool = False) -> nn.Module:
    """Mask in place and return ``model``.

    Args:
        model: the network.
        plan: legal for it.
        readers: mask also what reads a dropped channel where that is no longer zero, for a proof.

    Raises:
        PlanError: the plan is not legal for this network, which is then unchanged.
    """
    cut = _legal(model, plan)
    lists: dict[torch.device, tuple[list[Tensor], list[int], list[Tensor]]] = {}
    masks: dict[tuple[int, int, torch.device], Tensor] = {}
    for key, slot in plan.slots.items():
        if slot.role != "producer" and not (readers and slot.role == "shut"):
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
        for block in plan.blocks.values():
            for name in block.weights:
                cut.tensors[name].zero_()
    return model


def _legal(model: nn.Module, plan: Plan) -> Cut:
    tensors = named_tensors(model)
    own = shapes_hash(tensors)
    if own != plan.architecture:
        raise PlanError(
            f"This plan was made for another architecture ({plan.architecture[:12]}), the network given is "
            f"{own[:12]}; apply it to the network it was made from."
        )
    # Groups share their indices: equal ones become one tensor.
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
        # Most share the object too, which is faster to check than a hash.
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
