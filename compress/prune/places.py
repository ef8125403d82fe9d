"""Which places of a tensor stay, at each call that takes a statistic over channels: found by following a masked pass.

A mean over channels counts masked ones, as a layer norm does; the cut network's does not. What is counted cannot be
told from a weight where the norm is written by hand, so the channels are followed through one pass, without gradients.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from compress.prune.architecture import named_tensors
from compress.prune.dispatch import LabelDispatch, Observations
from compress.prune.labels import Flow
from compress.prune.planning import Plan
from compress.prune.units import components

Places = dict[int, Tensor]
"""Dimension -> the indices that stay, where some do not."""

REDUCTIONS = frozenset(
    getattr(home, name)
    for home in (torch, Tensor)
    for name in ("mean", "amax", "amin", "var", "std", "var_mean", "std_mean")
    if hasattr(home, name)
)
"""What takes a statistic over some dimensions, which are then gone or of size 1."""

WHOLE = frozenset((F.batch_norm, F.layer_norm, torch.layer_norm, F.rms_norm, torch.rms_norm, torch._weight_norm))
"""What takes a statistic and gives a tensor of the same size."""


class Recorder(TorchFunctionMode):
    """Note what the first argument of each statistic carries, in order."""

    def __init__(self, follow: LabelDispatch) -> None:
        super().__init__()
        self._follow = follow
        self.flows: list[Flow] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in REDUCTIONS or func in WHOLE:
            self.flows.append(self._follow.flow(args[0] if args else kwargs["input"]))
        return func(*args, **kwargs)


def places(network: nn.Module, plan: Plan, run: Callable[[], Any], inputs: Any = ()) -> list[Places]:
    """What stays of the first argument of each statistic, in the order of the calls.

    Args:
        network: of full shape.
        plan: what stays.
        run: one pass over the network.
        inputs: what it is fed, to tell it from constants.
    """
    for heads in ("whole", "dims"):
        follow = LabelDispatch(named_tensors(network), Observations(), heads)
        follow.enter(inputs, "graph input")
        recorder = Recorder(follow)
        with torch.no_grad(), recorder, follow:
            run()
        stays = _stays(follow.observed, plan)
        if stays is not None:
            break
    else:
        stays = np.ones(follow.observed.count, dtype=bool)
    return [_places(flow, stays) for flow in recorder.flows]


def _stays(observed: Observations, plan: Plan) -> np.ndarray[Any, Any] | None:
    """Whether each label stays; None if labels that were said to be equal do not agree."""
    kept, known = np.ones((2, observed.count), dtype=bool)
    known[:] = False
    for slot, labels in observed.slots.items():
        found = plan.slots.get(f"{slot[0]}:{slot[1]}")
        known[labels] = True
        if found is not None:
            kept[np.delete(labels, list(found.kept))] = False
    empty = np.empty(0, np.int64)
    left = np.concatenate([empty, *(a for a, _ in observed.equalities)])
    right = np.concatenate([empty, *(b for _, b in observed.equalities)])
    unit_of = components(observed.count, left, right)
    gone = np.zeros(observed.count, dtype=bool)
    gone[unit_of[~kept]] = True
    mixed = bool((gone[unit_of] & kept & known).any())
    return None if mixed else ~gone[unit_of]


def _places(flow: Flow, stays: np.ndarray[Any, Any]) -> Places:
    found: Places = {}
    for layer in flow.layers:
        kept = stays[layer.labels]
        if kept.all():
            continue
        for d in layer.dims:
            index = np.flatnonzero(kept.any(axis=tuple(e for e in range(kept.ndim) if e != d)))
            if len(index) < kept.shape[d]:
                found[d] = torch.from_numpy(index)
    return found


def over_kept(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], stay: Places) -> Any:
    """Call a statistic on the places that stay; a tensor of the same size is zero in the others."""
    given = dict(kwargs)
    x = args[0] if args else given.pop("input")
    rest = args[1:]
    if func in REDUCTIONS:
        chosen = _dims(func, rest, given, x.dim())
        for d, index in stay.items():
            if d in chosen:
                x = x.index_select(d, index.to(x.device))
        return func(x, *rest, **given)
    shape = x.shape
    if func is torch._weight_norm:
        # The rows are told apart by the magnitudes; the columns are what the norm is over.
        dim = rest[1] if len(rest) > 1 else given.get("dim", 0)
        stay = {d: index for d, index in stay.items() if d != dim % x.dim()}
    elif func is F.batch_norm:
        stay = {d: index for d, index in stay.items() if d > 1}
    for d, index in stay.items():
        x = x.index_select(d, index.to(x.device))
    if func in (F.layer_norm, torch.layer_norm, F.rms_norm, torch.rms_norm):
        names: tuple[str, ...] = ("normalized_shape", "weight", "bias", "eps", "cudnn_enable")
        if func in (F.rms_norm, torch.rms_norm):
            names = ("normalized_shape", "weight", "eps")
        given.update(zip(names, rest, strict=False))
        rest, first = (), len(shape) - len(given["normalized_shape"])
        given["normalized_shape"] = tuple(x.shape[first:])
        for name in ("weight", "bias"):
            for d, index in stay.items():
                if given.get(name) is not None and d >= first:
                    given[name] = given[name].index_select(d - first, index.to(x.device))
    out = func(x, *rest, **given)
    for d, index in stay.items():
        whole = (*out.shape[:d], shape[d], *out.shape[d + 1 :])
        out = out.new_zeros(whole).index_copy(d, index.to(out.device), out)
    return out


def _dims(func: Callable[..., Any], rest: tuple[Any, ...], given: dict[str, Any], ndim: int) -> set[int]:
    chosen = given.get("dim", given.get("axis", rest[0] if rest and not isinstance(rest[0], bool) else None))
    if chosen is None or chosen == ():
        return set(range(ndim))
    return {int(d) % ndim for d in (chosen if isinstance(chosen, list | tuple) else (chosen,))}
