"""Cut what training keeps beside the weights, as the parameters are cut: optimizer state and averaged weights."""

from __future__ import annotations

import copy
from collections import defaultdict, deque
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from compress.errors import PlanError
from compress.prune.architecture import named_tensors
from compress.prune.cut import Cut, Indices, sliced

PREFIXES = ("", "module.")
"""The prefixes under which averaged weights have the network's names; an ``AveragedModel`` has it in ``module``."""

_UNCUT = "which is not cut; make the optimizer after the cut."


def cut_optimizer(optimizer: torch.optim.Optimizer, cut: Cut, memo: Mapping[int, object]) -> torch.optim.Optimizer:
    """A new optimizer of the same class, groups and options over the new parameters.

    State of a parameter's shape is sliced as the parameter is, along the dimensions in which it is not 1 (factored
    second moments); state of one element is copied. As when torch copies an optimizer, hooks and learning-rate
    schedulers are not carried over: give the new optimizer a new scheduler, which loads the old one's ``state_dict``.

    Args:
        optimizer: over parameters of the network.
        cut: the plan and the network.
        memo: id of each parameter of the network -> the parameter that replaces it.

    Raises:
        PlanError: a parameter is not the network's, or there is state of another kind.
    """
    kind = type(optimizer).__name__
    own = {k: v for k, v in vars(optimizer).items() if not k.endswith("_hooks") and not callable(v)}
    if "param_groups" not in own or any(isinstance(value, torch.optim.Optimizer) for value in own.values()):
        raise PlanError(f"{kind} wraps another optimizer; give apply() the one inside.")
    names = {id(tensor): name for name, tensor in reversed(cut.tensors.items())}
    for g, group in enumerate(optimizer.param_groups):
        for k, parameter in enumerate(group["params"]):
            if id(parameter) not in names:
                raise PlanError(
                    f"Parameter {k} in group {g} of {kind} is not the network's; "
                    "give apply() an optimizer that was made from this network's parameters."
                )
    if isinstance(optimizer, torch.optim.LBFGS) and optimizer.state:
        raise PlanError(f"LBFGS keeps one vector for all parameters, {_UNCUT}")
    gone = {key for key, name in names.items() if cut.plan.removed_with(name)}
    if gone:
        groups = [{**g, "params": [p for p in g["params"] if id(p) not in gone]} for g in own["param_groups"]]
        kept_state = {p: state for p, state in optimizer.state.items() if id(p) not in gone}
        own |= {"param_groups": groups, "state": defaultdict(dict, kept_state)}
    copies = dict(memo)
    whole: dict[int, tuple[Tensor, Mapping[int, Indices]]] = {}
    for parameter, state in own["state"].items():
        name = names.get(id(parameter), "")
        kept = cut.kept.get(name, {})
        for key, tensor in _tensors(state, "state", kind):
            if id(tensor) not in copies:
                whole[id(tensor)] = tensor, _kept_of_state(tensor, parameter, kept, f"{kind}'s {key} of '{name}'")
    copies |= zip(whole, map(Tensor.detach, sliced(list(whole.values()))), strict=True)
    for parameter, state in own["state"].items():
        if isinstance(optimizer, torch.optim.Adafactor) and "row_var" in state:
            _rescale(state["row_var"], state["col_var"], cut.kept.get(names.get(id(parameter), ""), {}), copies)
    for key, tensor in _tensors({name: value for name, value in own.items() if name != "state"}, ""):
        if id(tensor) not in copies and tensor.numel() > 1:
            raise PlanError(f"{kind} keeps a tensor of shape {tuple(tensor.shape)} as its {key}, {_UNCUT}")
    new = type(optimizer).__new__(type(optimizer))
    new.__setstate__(copy.deepcopy(own, copies))
    return new


def cut_average(average: nn.Module | dict[str, Tensor], cut: Cut) -> nn.Module | dict[str, Tensor]:
    """Averaged weights of the same type, cut as the network is.

    Args:
        average: a module with the network's names, such as an ``AveragedModel``, or a dictionary from names to tensors;
            tensors that are not trained may be missing.
        cut: the plan and the network.

    Raises:
        PlanError: a name is missing or foreign, or a shape differs.
    """
    if isinstance(average, nn.Module):
        root = average.get_submodule(_prefix(named_tensors(average), cut).rstrip("."))
        cut.check_modules(root)
        memo: dict[int, object] = {}
        cut.copy(root, named_tensors(root), memo)
        return copy.deepcopy(average, memo)
    if not isinstance(average, dict):
        raise PlanError(f"Averaged weights are a module or a dictionary of tensors, not a {type(average).__name__}.")
    prefix = _prefix({k: v for k, v in average.items() if isinstance(v, Tensor)}, cut)
    small = copy.copy(average)
    for key in [key for key in average if cut.plan.removed_with(str(key).removeprefix(prefix))]:
        del small[key]
    whole: dict[int, tuple[Tensor, Mapping[int, Indices]]] = {}
    for key, value in average.items():
        if isinstance(value, Tensor):
            whole.setdefault(id(value), (value, cut.kept.get(key.removeprefix(prefix), {})))
    memo = dict(zip(whole, sliced(list(whole.values())), strict=True))
    for key in small:
        small[key] = copy.deepcopy(average[key], memo)
    return small


def _prefix(own: Mapping[str, Tensor], cut: Cut) -> str:
    """The prefix of the network's names in ``own``; raise PlanError unless names and shapes are right."""
    trained: dict[int, list[str]] = {}
    for name, tensor in cut.tensors.items():
        if tensor.requires_grad:
            trained.setdefault(id(tensor), []).append(name)
    lacking = {p: [n[0] for n in trained.values() if not any(p + name in own for name in n)] for p in PREFIXES}
    prefix = min(PREFIXES, key=lambda p: (len(lacking[p]), -sum(p + name in own for name in cut.tensors)))
    if lacking[prefix]:
        raise PlanError(f"The averaged weights lack '{lacking[prefix][0]}'; give those of this network.")
    for key, tensor in own.items():
        expected = cut.tensors.get(key.removeprefix(prefix)) if key.startswith(prefix) else None
        if expected is not None and tensor.shape != expected.shape:
            raise PlanError(
                f"The averaged weights have '{key}' as {tuple(tensor.shape)}, the network as {tuple(expected.shape)}."
            )
        # A counter such as ``n_averaged`` is not the network's.
        if expected is None and tensor.numel() > 1:
            raise PlanError(
                f"The averaged weights have '{key}', which the network does not; give those of this network."
            )
    return prefix


def _kept_of_state(tensor: Tensor, parameter: Tensor, kept: Mapping[int, Indices], what: str) -> Mapping[int, Indices]:
    """What stays of one tensor of state; raise PlanError unless its shape is right."""
    if type(tensor) not in (Tensor, nn.Parameter):
        raise PlanError(f"{what} is of type {type(tensor).__name__}, {_UNCUT}")
    if tensor.numel() == 1 or not kept:
        return {}
    shape, like = tuple(tensor.shape), tuple(parameter.shape)
    if len(shape) != len(like) or any(size not in (1, full) for size, full in zip(shape, like, strict=True)):
        raise PlanError(f"{what} has shape {shape}, not the parameter's {like}, {_UNCUT}")
    return {d: k for d, k in kept.items() if tensor.shape[d] > 1}


def _rescale(row: Tensor, column: Tensor, kept: Mapping[int, Indices], copies: Mapping[int, Any]) -> None:
    """Turn means over all rows and columns into means over those that stay.

    Adafactor takes the second moment of w[i, j] to be row[i] * column[j] / mean(row), both being means over the last
    two dimensions; with both rescaled, the second moment of each weight that stays is what it was.
    """
    last = row.dim()
    if not {last - 1, last - 2} & set(kept):
        return
    before = {d: k for d, k in kept.items() if d < last - 2}
    small_row, small_column = copies[id(row)], copies[id(column)]
    rows = small_row.mean(-2, keepdim=True), sliced([(row, before)])[0].mean(-2, keepdim=True)
    columns = small_column.mean(-1, keepdim=True), sliced([(column, before)])[0].mean(-1, keepdim=True)
    small_row.mul_((columns[0] / columns[1]).nan_to_num(1.0))
    small_column.mul_((rows[0] / rows[1]).nan_to_num(1.0))


def _tensors(value: Any, key: str, owner: str = "") -> Iterator[tuple[str, Tensor]]:
    """All tensors in nested containers, each with its key; with an ``owner`` only tensors and numbers are allowed."""
    if isinstance(value, Tensor):
        yield key, value
    elif isinstance(value, Mapping):
        for name, entry in value.items():
            yield from _tensors(entry, str(name), owner)
    elif isinstance(value, list | tuple | set | deque):
        for entry in value:
            yield from _tensors(entry, key, owner)
    elif owner and not isinstance(value, bool | int | float | complex | str | None):
        raise PlanError(f"{owner}'s {key} is of type {type(value).__name__}, {_UNCUT}")
