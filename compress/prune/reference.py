"""How the proof runs a network: norms over kept channels alone, nothing drawn at random, statistics left alone.

Both classes watch torch's functions while they are entered, backward passes with recomputation included:
`with KeptStatistics(masked, plan), Repeatable(): masked(x)`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from compress.errors import PlanError
from compress.prune.planning import Plan, named_tensors

FEWEST_VALUES = 16
"""Values per channel below which batch statistics magnify rounding too much for gradients to be compared."""


class KeptStatistics(TorchFunctionMode):
    """Layer, RMS and group norms whose weight loses channels take their statistics over the kept ones alone.

    What `apply` does to such a norm cannot be had by zeros: they count. Here a norm gathers the kept channels, is
    computed on them and puts zeros into the other places. Norms are told by their weight, so one without is not seen.

    Args:
        model: the network, of full shape, that will run.
        plan: legal for `model`.
    """

    def __init__(self, model: nn.Module, plan: Plan) -> None:
        super().__init__()
        self._kept = kept_by_tensor(model, plan)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        names = _NORMS.get(func)
        if names is None:
            return func(*args, **kwargs)
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        kept = self._kept.get(id(given.get("weight")))
        if kept is None:
            return func(*args, **kwargs)
        return _group_norm(func, given, kept[0]) if "num_groups" in given else _layer_norm(func, given, kept)


class TooFewValuesError(Exception):
    """A BatchNorm in training mode sees fewer than `FEWEST_VALUES` values per channel."""


class Repeatable(TorchFunctionMode):
    """Makes runs repeatable: what is drawn (dropout, stochastic depth, random slopes) is its mean instead.

    BatchNorms leave their running statistics alone. Raises TooFewValuesError where one in training mode would use
    batch statistics over too few values.

    Args:
        batch_statistics: False: a BatchNorm in training mode uses its running statistics instead, if it has any.
    """

    def __init__(self, batch_statistics: bool = True) -> None:
        super().__init__()
        self._batch_statistics = batch_statistics

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.batch_norm:
            return self._batch_norm(**dict(zip(_BATCH_NORM, args, strict=False)), **kwargs)
        if func in _BERNOULLI:
            return _mean_draw(func, *args, **kwargs)
        if func in _DRAWING:
            place, name, value = _DRAWING[func]
            if len(args) > place:
                args = (*args[:place], value, *args[place + 1 :])
            else:
                kwargs = {**kwargs, name: value}
        return func(*args, **kwargs)

    def _batch_norm(
        self,
        input: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        training: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> Tensor:
        # Without running statistics it uses its batch in eval as well: nothing to choose.
        if training and running_mean is not None:
            if not self._batch_statistics:
                training = False
            elif input.numel() // input.shape[1] < FEWEST_VALUES:
                raise TooFewValuesError
            else:
                running_mean = running_var = None
        return F.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)


def kept_by_tensor(model: nn.Module, plan: Plan) -> dict[int, dict[int, Tensor]]:
    """id of each tensor of `model` that the plan cuts -> dimension -> kept indices (int64, on its device)."""
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


def _mean_draw(func: Callable[..., Any], x: Tensor, p: float | Tensor | None = None, **_: Any) -> Tensor:
    """What `bernoulli` draws on average: p, where there is none x itself; in place 0.5."""
    if func is Tensor.bernoulli_:
        mean = 0.5 if p is None else p
        return x.copy_(mean) if isinstance(mean, Tensor) else x.fill_(mean)
    return x.detach().clone() if p is None else torch.full_like(x, float(p))


def _all(functions: Iterable[Callable[..., Any]], what: Any) -> dict[Callable[..., Any], Any]:
    return dict.fromkeys(functions, what)


_LAYER = ("input", "normalized_shape", "weight", "bias", "eps", "cudnn_enable")
_RMS = ("input", "normalized_shape", "weight", "eps")
_GROUP = ("input", "num_groups", "weight", "bias", "eps", "cudnn_enabled")
_BATCH_NORM = ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")

# Norm -> the names of its arguments in order.
_NORMS: dict[Callable[..., Any], tuple[str, ...]] = {
    **_all((F.layer_norm, torch.layer_norm, torch.native_layer_norm), _LAYER),
    **_all((F.rms_norm, torch.rms_norm), _RMS),
    **_all((F.group_norm, torch.group_norm), _GROUP),
}
_BERNOULLI = (torch.bernoulli, Tensor.bernoulli, Tensor.bernoulli_)

# What draws -> the place and name of the argument that stops it, and the value that does.
_DRAWING: dict[Callable[..., Any], tuple[int, str, object]] = {
    **_all((F.dropout, F.dropout1d, F.dropout2d, F.dropout3d), (2, "training", False)),
    **_all((F.alpha_dropout, F.feature_alpha_dropout), (2, "training", False)),
    **_all((torch.dropout, torch.dropout_, torch.feature_dropout, torch.feature_dropout_), (2, "train", False)),
    **_all((torch.alpha_dropout, torch.alpha_dropout_), (2, "train", False)),
    **_all((torch.feature_alpha_dropout, torch.feature_alpha_dropout_), (2, "train", False)),
    **_all((F.rrelu, torch.rrelu, torch.rrelu_), (3, "training", False)),
    F.scaled_dot_product_attention: (4, "dropout_p", 0.0),
    F.multi_head_attention_forward: (10, "dropout_p", 0.0),
}
