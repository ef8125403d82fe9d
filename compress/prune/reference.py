"""Make the norms of a masked network take their statistics over the kept channels alone, as those of the cut one do.

``with KeptStatistics(masked, plan), Repeatable(): masked(x)``; the mode also holds in backward passes that recompute.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from compress.errors import PlanError
from compress.prune.architecture import named_tensors
from compress.prune.places import REDUCTIONS, WHOLE, Places, over_kept
from compress.prune.planning import Plan


class KeptStatistics(TorchFunctionMode):
    """Layer, RMS and group norms whose weight loses channels take their statistics over the kept ones alone.

    Zeros cannot do what ``apply`` does to such a norm, since they count. Here a norm gathers the kept channels, is
    computed on them, and fills the other places with zeros. Norms are recognised by their weight; those without one of
    their own, and statistics that are written by hand, by the order of their calls.

    Args:
        model: the network, of full shape, that will run.
        plan: legal for ``model``.
        places: what stays at each statistic of one pass, for those that no weight tells.
    """

    def __init__(self, model: nn.Module, plan: Plan, places: Sequence[Places] = ()) -> None:
        super().__init__()
        self._kept = kept_by_tensor(model, plan)
        self._places = iter(places)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        stay = next(self._places, {}) if func in REDUCTIONS or func in WHOLE else {}
        names = _NORMS.get(func)
        if names is None:
            return over_kept(func, args, kwargs, stay) if stay else func(*args, **kwargs)
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        kept = self._kept.get(id(given.get("weight")))
        if kept is None:
            return over_kept(func, args, kwargs, stay) if stay else func(*args, **kwargs)
        return _group_norm(func, given, kept[0]) if "num_groups" in given else _layer_norm(func, given, kept)


def kept_by_tensor(model: nn.Module, plan: Plan) -> dict[int, dict[int, Tensor]]:
    """id of each tensor of ``model`` that the plan cuts -> dimension -> kept indices (int64, on its device)."""
    tensors = named_tensors(model)
    kept: dict[int, dict[int, Tensor]] = {}
    for key, slot in plan.slots.items():
        name, _, dim = key.rpartition(":")
        indices = torch.from_numpy(plan.kept_indices((name, int(dim)), slot.of))
        kept.setdefault(id(tensors[name]), {})[int(dim)] = indices.to(tensors[name].device)
    return kept


def _layer_norm(func: Callable[..., Any], given: dict[str, Any], kept: dict[int, Tensor]) -> Any:
    """x [..., *normalized_shape] -> the same, normalised over the kept places of each dimension, 0 elsewhere."""
    shape, first = given["input"].shape, given["input"].dim() - given["weight"].dim()
    part = dict(given)
    for d, index in kept.items():
        part["input"] = part["input"].index_select(first + d, index)
        for name in ("weight", "bias"):
            if part.get(name) is not None:
                part[name] = part[name].index_select(d, index)
    part["normalized_shape"] = tuple(part["weight"].shape)
    found = func(**part)
    out = found[0] if isinstance(found, tuple) else found
    for d, index in kept.items():
        whole = (*out.shape[: first + d], shape[first + d], *out.shape[first + d + 1 :])
        out = out.new_zeros(whole).index_copy(first + d, index, out)
    return (out, *found[1:]) if isinstance(found, tuple) else out


def _group_norm(func: Callable[..., Any], given: dict[str, Any], index: Tensor) -> Tensor:
    """x [batch, channels, ...] -> the same, each group normalised over its kept channels, 0 elsewhere."""
    x, groups = given["input"], given["num_groups"]
    left = torch.bincount(index // (x.shape[1] // groups), minlength=groups)
    left = left[left > 0]
    if bool((left != left[0]).any()):
        raise PlanError(f"The plan keeps {left.tolist()} channels of the groups of a GroupNorm; keep equal numbers.")
    part = {**given, "input": x.index_select(1, index), "num_groups": len(left)}
    for name in ("weight", "bias"):
        if part.get(name) is not None:
            part[name] = part[name].index_select(0, index)
    return torch.zeros_like(x).index_copy(1, index, func(**part))


_LAYER = ("input", "normalized_shape", "weight", "bias", "eps", "cudnn_enable")
_RMS = ("input", "normalized_shape", "weight", "eps")
_GROUP = ("input", "num_groups", "weight", "bias", "eps", "cudnn_enabled")

# Norm -> the names of its arguments in order.
_NORMS: dict[Callable[..., Any], tuple[str, ...]] = {
    **dict.fromkeys((F.layer_norm, torch.layer_norm, torch.native_layer_norm), _LAYER),
    **dict.fromkeys((F.rms_norm, torch.rms_norm), _RMS),
    **dict.fromkeys((F.group_norm, torch.group_norm), _GROUP),
}
