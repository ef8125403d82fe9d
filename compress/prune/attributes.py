"""Sizes that modules keep as numbers, each with the slot that it follows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from compress.prune.attention import MultiheadAttention, RelativeAttention, WindowAttention
from compress.prune.labels import Slot
from compress.prune.units import Attribute

Follows = tuple[str, str, int, int, int]
"""Attribute, parameter, dimension, factor, divisor: new value = kept length x factor / divisor."""


def distinct(modules: Mapping[str, nn.Module]) -> Iterator[tuple[str, nn.Module]]:
    """Each module once, under the first of its paths."""
    seen: set[int] = set()
    for path, module in modules.items():
        if id(module) not in seen:
            seen.add(id(module))
            yield path, module


def attributes(
    modules: Mapping[str, nn.Module], slots: Mapping[Slot, Any], tied: Mapping[str, str], heads: str
) -> Iterator[Attribute]:
    """The sizes that torch's own layers, and the substitutes for its attentions, keep as numbers.

    Args:
        modules: of the network, by all their paths.
        slots: those that are known.
        tied: other name of a parameter -> the name under which its slots are kept.
        heads: what goes of an attention, ``whole`` heads or ``dims`` of every head.
    """
    for path, module in distinct(modules):
        for name, parameter, dim, factor, divisor in _follows(module, heads):
            full = f"{path}.{parameter}" if path else parameter
            slot = (tied.get(full, full), dim)
            if slot in slots:
                value = getattr(module, name)
                entry = value if isinstance(value, int) else value[dim]
                yield Attribute(path, name, int(entry), slot, factor, divisor)


_SIZED = (
    nn.modules.conv._ConvNd, nn.Linear, nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.RMSNorm, nn.GroupNorm,
    nn.Embedding, nn.PReLU, nn.RNNBase, nn.RNNCellBase, MultiheadAttention, WindowAttention, RelativeAttention,
)  # fmt: skip
"""Layers that keep sizes; most modules are none of them."""


def _follows(module: nn.Module, heads: str) -> list[Follows]:
    if not isinstance(module, _SIZED):
        return []
    if isinstance(module, nn.modules.conv._ConvNd):
        return _convolution(module)
    if isinstance(module, nn.Linear):
        return [("out_features", "weight", 0, 1, 1), ("in_features", "weight", 1, 1, 1)]
    if isinstance(module, nn.modules.batchnorm._NormBase):
        return [("num_features", "weight" if module.affine else "running_mean", 0, 1, 1)]
    if isinstance(module, nn.LayerNorm | nn.RMSNorm):
        dims = range(len(module.normalized_shape))
        return [("normalized_shape", "weight", d, 1, 1) for d in dims if module.normalized_shape[d] > 1]
    if isinstance(module, nn.GroupNorm):
        groups = [("num_groups", "weight", 0, module.num_groups, module.num_channels)] if module.num_groups > 1 else []
        return [("num_channels", "weight", 0, 1, 1), *groups]
    if isinstance(module, nn.Embedding):
        return [("embedding_dim", "weight", 1, 1, 1)]
    if isinstance(module, nn.PReLU):
        return [("num_parameters", "weight", 0, 1, 1)]
    if isinstance(module, nn.RNNBase) and module.proj_size == 0:
        return [("input_size", "weight_ih_l0", 1, 1, 1), ("hidden_size", "weight_hh_l0", 1, 1, 1)]
    if isinstance(module, nn.RNNCellBase):
        return [("input_size", "weight_ih", 1, 1, 1), ("hidden_size", "weight_hh", 1, 1, 1)]
    return _attention(module, heads)


def _convolution(module: nn.modules.conv._ConvNd) -> list[Follows]:
    groups, weight = module.groups, module.weight
    if isinstance(module, nn.modules.conv._ConvTransposeNd):
        if groups > 1 and weight.shape[0] == groups:
            per = module.out_channels // groups
            return [
                ("in_channels", "weight", 0, 1, 1),
                ("out_channels", "weight", 0, per, 1),
                ("groups", "weight", 0, 1, 1),
            ]
        return [("in_channels", "weight", 0, 1, 1), ("out_channels", "weight", 1, groups, 1)]
    if groups > 1 and weight.shape[1] == 1:
        per = module.out_channels // groups
        return [
            ("out_channels", "weight", 0, 1, 1),
            ("in_channels", "weight", 0, 1, per),
            ("groups", "weight", 0, 1, per),
        ]
    return [("out_channels", "weight", 0, 1, 1), ("in_channels", "weight", 1, groups, 1)]


def _attention(module: nn.Module, heads: str) -> list[Follows]:
    """Head counts, head widths and model widths of the substitutes; q, k and v may be packed in one weight."""
    if isinstance(module, MultiheadAttention):
        packed = module.in_proj_weight is not None
        rows, times = ("in_proj_weight", 3) if packed else ("q_proj_weight", 1)
        inputs = [
            ("kdim", rows if packed else "k_proj_weight", 1, 1, 1),
            ("vdim", rows if packed else "v_proj_weight", 1, 1, 1),
        ]
        return [("embed_dim", "out_proj.weight", 0, 1, 1), *inputs, *_heads(module, "num_heads", rows, times, heads)]
    if isinstance(module, WindowAttention):
        return _heads(module, "num_heads", "qkv.weight", 3, heads)
    if isinstance(module, RelativeAttention):
        return _heads(module, "n_heads", "to_qkv.weight", 3, heads)
    return []


def _heads(module: Any, count: str, rows: str, times: int, heads: str) -> list[Follows]:
    """What a cut patches: the number of heads if whole heads go, else the width of each head."""
    if heads == "whole":
        return [(count, rows, 0, 1, times * int(module.head_dim))]
    return [("head_dim", rows, 0, 1, times * int(getattr(module, count)))]


def size_at(module: Any, name: str) -> Any:
    """What a module keeps under `name`: an attribute, or after dots an entry or an attribute of what it holds."""
    for part in name.split("."):
        module = _within(module, part)
    return module


def _within(holder: Any, part: str) -> Any:
    if isinstance(holder, tuple | list):
        return holder[int(part)]
    return holder[part] if isinstance(holder, dict) else getattr(holder, part)


def set_size(module: Any, name: str, before: int, after: int) -> None:
    """Patch a size, or each equal entry of a tuple or list of sizes such as ``normalized_shape``.

    What it lies in is replaced if it cannot be written, as a tuple cannot.
    """
    if _plainly_kept(module, name) and type(vars(module)[name]) is int:
        vars(module)[name] = after
        return
    path, _, last = name.rpartition(".")
    value = size_at(module, name)
    if isinstance(value, tuple | list):
        after_all: Any = _like(value, (after if n == before else n for n in value))
    else:
        after_all = after
    _put(module, path, last, after_all)


def _put(module: Any, path: str, last: str, value: Any) -> None:
    holder = size_at(module, path) if path else module
    if isinstance(holder, tuple):
        above, _, own = path.rpartition(".")
        _put(module, above, own, _like(holder, (value if k == int(last) else n for k, n in enumerate(holder))))
    elif isinstance(holder, list):
        holder[int(last)] = value
    elif isinstance(holder, dict):
        holder[last] = value
    elif _plainly_kept(holder, last):
        vars(holder)[last] = value
    else:
        setattr(holder, last, value)


def _plainly_kept(holder: Any, name: str) -> bool:
    """Whether a module has a plain attribute already, to be written without all that a module asks of a new one."""
    kind = type(holder)
    plain = isinstance(holder, nn.Module) and kind.__setattr__ is nn.Module.__setattr__
    return plain and name in vars(holder) and not hasattr(kind, name)


def _like(holder: Any, entries: Iterator[Any]) -> Any:
    """A tuple or list of the same kind."""
    return type(holder)(*entries) if hasattr(holder, "_fields") else type(holder)(entries)


LONGEST = 1000
"""Entries of a list of sizes; a longer one holds positions."""


def kept_numbers(module: nn.Module) -> Iterator[tuple[str, int]]:
    """Plain integers above 1 that a module holds, in tuples, lists and plain objects too, each with its name."""
    for name, value in vars(module).items():
        if name.startswith("_") or isinstance(value, torch.Tensor | nn.Module):
            continue
        yield from _numbers(name, value, 0)


def _numbers(name: str, value: Any, depth: int) -> Iterator[tuple[str, int]]:
    if type(value) is int:
        if value > 1:
            yield name, value
    elif isinstance(value, tuple | list):
        for k, entry in enumerate(value if len(value) <= LONGEST else ()):
            if type(entry) is int:
                yield from _numbers(f"{name}.{k}", entry, depth)
    elif depth == 0 and _is_plain(value):
        entries = value.items() if isinstance(value, dict) else vars(value).items()
        for key, entry in entries:
            if type(key) is str and key.isidentifier() and not key.startswith("_"):
                yield from _numbers(f"{name}.{key}", entry, 1)


def _is_plain(value: Any) -> bool:
    """Whether it is a dictionary, or an object that holds attributes, such as a configuration."""
    if isinstance(value, dict):
        return True
    kind = type(value)
    return (
        hasattr(value, "__dict__")
        and not isinstance(value, type)
        and not callable(value)
        and (kind.__module__.partition(".")[0] not in ("torch", "builtins", "numpy"))
    )
