"""Surgery: a plan made real. Legality is checked as a whole before any tensor moves."""

from __future__ import annotations

import copy
from itertools import pairwise

import torch
from torch import Tensor, nn

import cpp_ext
from compress.errors import PlanError
from compress.prune.planning import Plan, architecture_hash, named_tensors


def validate(model: nn.Module, plan: Plan) -> None:
    """Raises PlanError with one sentence unless the whole plan is legal for `model`; touches nothing."""
    own = architecture_hash(model)
    if own != plan.architecture:
        raise PlanError(
            f"This plan was made for another architecture ({plan.architecture[:12]}), the network given is "
            f"{own[:12]}; apply it to the network it was made from."
        )
    tensors = named_tensors(model)
    for key, slot in plan.slots.items():
        name, _, dim = key.rpartition(":")
        if name not in tensors or not dim.isdigit() or int(dim) >= tensors[name].dim():
            raise PlanError(f"The plan cuts '{key}', which the network does not have; make the plan again.")
        size = tensors[name].shape[int(dim)]
        kept = slot.kept
        if slot.of != size:
            raise PlanError(f"The plan takes '{key}' to have {slot.of} channels, it has {size}.")
        if not kept or kept[0] < 0 or kept[-1] >= size or any(a >= b for a, b in pairwise(kept)):
            raise PlanError(f"The plan's indices for '{key}' must be rising, in 0..{size - 1} and not empty.")
    modules = dict(model.named_modules())
    for path, changes in plan.attributes.items():
        for attribute, (before, _) in changes.items():
            value = getattr(modules.get(path), attribute, None)
            if value != before:
                raise PlanError(f"The plan expects {path}.{attribute} = {before}, the network has {value}.")


def apply(model: nn.Module, plan: Plan) -> nn.Module:
    """A new network without the channels that the plan drops; the original is untouched.

    Raises:
        PlanError: the plan is not legal for this network.
    """
    validate(model, plan)
    cuts = _cuts(plan)
    memo: dict[int, object] = {}
    for name, tensor in named_tensors(model).items():
        if name in cuts and id(tensor) not in memo:
            memo[id(tensor)] = _sliced(tensor, cuts[name])
    # Deep-copying with the cut tensors already in the memo keeps ties and never copies a dense weight.
    small = copy.deepcopy(model, memo)
    modules = dict(small.named_modules())
    for path, changes in plan.attributes.items():
        for attribute, (_, after) in changes.items():
            setattr(modules[path], attribute, after)
    return small


def mask(model: nn.Module, plan: Plan) -> nn.Module:
    """A copy of full shape in which everything that makes a dropped channel is zero.

    Raises:
        PlanError: the plan is not legal for this network.
    """
    validate(model, plan)
    masked = copy.deepcopy(model)
    tensors = named_tensors(masked)
    with torch.no_grad():
        for key, slot in plan.slots.items():
            if slot.role == "producer":
                name, _, dim = key.rpartition(":")
                gone = torch.ones(slot.of, dtype=torch.bool)
                gone[list(slot.kept)] = False
                index = gone.nonzero().squeeze(1).to(tensors[name].device)
                tensors[name].index_fill_(int(dim), index, 0)
    return masked


def _cuts(plan: Plan) -> dict[str, dict[int, tuple[int, ...]]]:
    cuts: dict[str, dict[int, tuple[int, ...]]] = {}
    for key, slot in plan.slots.items():
        name, _, dim = key.rpartition(":")
        cuts.setdefault(name, {})[int(dim)] = slot.kept
    return cuts


def _sliced(tensor: Tensor, kept: dict[int, tuple[int, ...]]) -> Tensor:
    """The kept part of one tensor: dims 0 and 1 in one pass of the kernel, further ones by index_select."""
    index = {d: torch.tensor(k, dtype=torch.int64, device=tensor.device) for d, k in kept.items()}
    out = tensor.detach()
    for d in sorted(d for d in index if d > 1):
        out = out.index_select(d, index[d])
    if 0 in index or 1 in index:
        out = cpp_ext.channel_slice(out, index.get(0), index.get(1))
    return nn.Parameter(out, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else out
