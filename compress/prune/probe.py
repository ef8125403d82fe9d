"""Copies of a network without storage, whole or cut, on which passes are traced."""

from __future__ import annotations

import copy
import gc
import types
from collections import OrderedDict
from collections.abc import Callable, Container, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from compress.prune.meta import META

Forward = Callable[..., Any]
"""Runs a network, or a part of it: called with the network and its inputs."""

_ATOMS = (int, float, bool, str, bytes, type(None), torch.device, torch.dtype, torch.Size, type, types.FunctionType,
          types.BuiltinFunctionType, np.generic)  # fmt: skip


_PLAIN = frozenset((int, float, bool, str, type(None)))
_HOLDERS = frozenset((dict, OrderedDict, set))
_MEMBERS = frozenset(("_parameters", "_buffers", "_modules"))


@contextmanager
def uncollected() -> Iterator[None]:
    """Disable the garbage collector, which would scan all of torch's objects again and again while many are made."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            if not gc.get_freeze_count():
                # What was made meanwhile grows old unscanned; the next full collection sees it.
                gc.freeze()
                gc.unfreeze()
            gc.enable()


def clone(model: nn.Module, memo: dict[int, Any]) -> nn.Module:
    """Copy like ``copy.deepcopy(model, memo)``, several times as fast.

    Modules are copied by their dictionaries; whatever is not a plain value in these is left to ``deepcopy``, which
    finds the modules and tensors that it refers to in the memo. A module that defines how it is copied is copied so.
    """
    return Copier(model, memo).copy(memo)


@dataclass(frozen=True, slots=True)
class _Shell:
    """A module and what of its dictionary a copy does not share, which is little: most entries are plain values."""

    module: nn.Module
    empty: list[tuple[str, type]]
    members: list[tuple[str, dict[str, Any]]]
    rest: list[tuple[str, Any]]

    @classmethod
    def of(cls, module: nn.Module) -> _Shell:
        shell = cls(module, [], [], [])
        for key, value in vars(module).items():
            kind = type(value)
            if kind in _PLAIN or (kind is tuple and _PLAIN.issuperset(map(type, value))):
                continue
            if kind in _HOLDERS and not value:
                shell.empty.append((key, kind))
            elif kind is dict and key in _MEMBERS:
                shell.members.append((key, value))
            else:
                # Compiled code would still compute with the module that it was made from.
                shell.rest.append((key, None if key == "_compiled_call_impl" else value))
        return shell


class Copier:
    """Copies one network again and again, which does not change meanwhile: it is looked through once.

    Args:
        model: the network.
        known: ids of the modules that every memo will have a copy of already.
    """

    def __init__(self, model: nn.Module, known: Container[int] = ()) -> None:
        self._model = model
        self._shells: list[_Shell] = []
        seen: set[int] = set()
        own_way: dict[type, bool] = {}

        def shell(module: nn.Module) -> None:
            kind = type(module)
            if kind not in own_way:
                own_way[kind] = _own_way(kind)
            if own_way[kind]:
                return
            seen.add(id(module))
            self._shells.append(_Shell.of(module))
            for child in module._modules.values():
                if child is not None and id(child) not in seen and id(child) not in known:
                    shell(child)

        if id(model) not in known:
            shell(model)

    def copy(self, memo: dict[int, Any]) -> nn.Module:
        """A copy; ``memo`` as for ``copy.deepcopy``."""
        for shell in self._shells:
            memo[id(shell.module)] = object.__new__(type(shell.module))
        for shell in self._shells:
            own = vars(memo[id(shell.module)])
            own.update(vars(shell.module))
            for key, kind in shell.empty:
                own[key] = kind()
            for key, members in shell.members:
                own[key] = {
                    name: None if v is None else memo[id(v)] if id(v) in memo else _copied(v, memo)
                    for name, v in members.items()
                }
            for key, value in shell.rest:
                own[key] = _copied(value, memo)
        return memo.get(id(self._model)) or copy.deepcopy(self._model, memo)


def _own_way(kind: type) -> bool:
    names: tuple[str, ...] = ("__deepcopy__", "__reduce__", "__reduce_ex__", "__getstate__", "__copy__")
    # Torch's own layers only repair old pickles in __setstate__.
    names += () if kind.__module__.startswith("torch.nn.modules") else ("__setstate__",)
    return any(getattr(kind, name, None) is not getattr(nn.Module, name, None) for name in names)


def _copied(value: Any, memo: dict[int, Any]) -> Any:
    known = memo.get(id(value))
    if known is not None:
        return known
    kind = type(value)
    if kind in _PLAIN or (kind is tuple and all(type(item) in _PLAIN for item in value)) or isinstance(value, _ATOMS):
        return value
    if kind is list and _PLAIN.issuperset(map(type, value)):
        memo[id(value)] = new = value.copy()
        return new
    if kind is dict or kind is OrderedDict:
        return kind([(key, _copied(item, memo)) for key, item in value.items()])
    if isinstance(value, torch.Tensor) and not value.is_leaf:
        # What a hook computed from parameters (masks, the old weight norm) and will compute again.
        memo[id(value)] = value.detach().clone()
        return memo[id(value)]
    if kind is torch.Tensor and _is_scalar(value):
        return _copied_scalar(value, memo)
    return copy.deepcopy(value, memo)


def _is_scalar(value: torch.Tensor) -> bool:
    """Whether a tensor is one number and nothing else, as the counters of batch norms are."""
    plain = value.layout is torch.strided and value.grad is None and not value.requires_grad and not vars(value)
    return plain and not value.dim() and value.untyped_storage().nbytes() == value.itemsize


def _copied_scalar(value: torch.Tensor, memo: dict[int, Any]) -> torch.Tensor:
    """Like ``deepcopy``, which takes ten times as long, and remembered where that would look for it."""
    storages: Any = memo.setdefault("torch", {})  # type: ignore[call-overload]
    where = value.untyped_storage()._cdata
    if where in storages:
        # Another tensor shares it.
        return copy.deepcopy(value, memo)
    memo[id(value)] = new = value.clone()
    storages[where] = new.untyped_storage()
    return new


def stand_ins(
    tensors: Mapping[str, torch.Tensor], kept: Mapping[str, Mapping[int, np.ndarray[Any, Any]]], real: bool
) -> dict[int, torch.Tensor]:
    """id of each parameter or buffer -> its stand-in, cut where ``kept`` says which indices of a dimension stay.

    Stand-ins have no storage unless ``real``; integers keep their values, since code may compute with them.
    """
    memo: dict[int, torch.Tensor] = {}
    for name, tensor in tensors.items():
        if id(tensor) in memo:
            continue
        cut = kept.get(name, {})
        if not real and not cut and tensor.dtype.is_floating_point:
            memo[id(tensor)] = torch.empty(tensor.shape, dtype=tensor.dtype, device=META)
        elif real or not tensor.dtype.is_floating_point:
            value = tensor.detach() if tensor.requires_grad else tensor
            for d, index in cut.items():
                value = value.index_select(d, torch.from_numpy(index).to(value.device))
            memo[id(tensor)] = value.clone()
        else:
            # Fresh and contiguous: the strides say nothing about channels.
            shape = [len(cut[d]) if d in cut else n for d, n in enumerate(tensor.shape)]
            memo[id(tensor)] = torch.empty(shape, dtype=tensor.dtype, device=META)
    return memo


def input_stand_in(value: Any, real: bool) -> Any:
    """An input, or its stand-in without storage."""
    if isinstance(value, torch.Tensor):
        return value.detach().clone() if real else torch.empty(value.shape, dtype=value.dtype, device=META)
    if isinstance(value, list | tuple):
        return type(value)(input_stand_in(v, real) for v in value)
    if isinstance(value, dict):
        return {k: input_stand_in(v, real) for k, v in value.items()}
    return value


class WholeRMSNorm(nn.RMSNorm):
    """An RMS norm as one operator: torch's own is decomposed before it can be seen.

    It treats channels like a layer norm, so in a pass whose values nobody reads it can be one.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.native_layer_norm(x, self.normalized_shape, self.weight, None, 1e-6)[0]
