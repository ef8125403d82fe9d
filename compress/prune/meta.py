"""Operators on the meta device: what they make follows from sizes alone, so that each is asked once for equal sizes.

Torch computes many of these sizes in Python, through decompositions, which takes a hundred times as long.
"""

from __future__ import annotations

from types import NoneType
from typing import Any

import torch
from torch import Tensor, nn

_Place = tuple[tuple[int, ...], tuple[int, ...], torch.dtype]
"""Size, strides and type of one output."""

Made = dict[tuple[Any, ...], tuple[type[Any] | None, tuple[_Place, ...]]]
"""What an operator was given -> its outputs, and the kind of sequence that they came in, None for a single one."""

MOST = 2000
"""Answers of one operator that are kept."""

META = torch.device("meta")
_TENSORS = frozenset((Tensor, nn.Parameter))
_NUMBERS = frozenset((torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.bool,
                      torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64))  # fmt: skip
_SEQUENCES = frozenset((list, tuple, torch.Size))
_ATOMS = frozenset((int, float, bool, str, NoneType, torch.dtype, torch.device, torch.layout, torch.memory_format))


def makes_fresh(func: Any) -> bool:
    """Whether an operator neither writes to its arguments nor returns views of them."""
    schema = func._schema
    return all(a.alias_info is None for a in (*schema.arguments, *schema.returns))


def remembered(func: Any, made: Made, args: Any, kwargs: Any) -> Any:
    """What ``func(*args, **kwargs)`` returns: as empty tensors made from ``made`` if it was asked the same before."""
    key: list[Any] = [torch.get_default_dtype()]
    if not _described(args, key) or not _described(kwargs.items(), key):
        return func(*args, **kwargs)
    asked = tuple(key)
    known = made.get(asked)
    if known is None:
        out = func(*args, **kwargs)
        known = _places(out, (*args, *kwargs.values()))
        if known is not None:
            if len(made) >= MOST:
                made.clear()
            made[asked] = known
        return out
    kind, places = known
    outs = [torch.empty_strided(size, strides, dtype=dtype, device=META) for size, strides, dtype in places]
    return outs[0] if kind is None else kind(outs)


def _described(values: Any, key: list[Any]) -> bool:
    """Add all that an answer can depend on to the key; False where it may depend on more, such as values."""
    for value in values:
        kind = type(value)
        if kind in _TENSORS:
            if not value.is_meta or value.dtype not in _NUMBERS or value.layout is not torch.strided:
                return False
            key += (value.shape, value.stride(), value.dtype)
        elif kind in _ATOMS:
            # 1, 1.0 and True are equal, and mean different types.
            key += (kind, value)
        elif kind in _SEQUENCES:
            key.append(len(value))
            if not _described(value, key):
                return False
        else:
            return False
    return True


def _places(out: Any, given: tuple[Any, ...]) -> tuple[type[Any] | None, tuple[_Place, ...]] | None:
    """How to make equal outputs; None where they are no plain tensors of their own on the meta device."""
    kind = None if isinstance(out, Tensor) else type(out)
    outs = [out] if kind is None else out
    if kind not in (None, list, tuple) or not all(type(t) is Tensor and t.is_meta for t in outs):
        return None
    used = [t for value in given for t in (value if type(value) in _SEQUENCES else (value,)) if type(t) in _TENSORS]
    alone = len({t.untyped_storage()._cdata for t in (*outs, *used)}) == len(outs) + len(
        {t.untyped_storage()._cdata for t in used}
    )
    if not alone or any(t.storage_offset() or t.dtype not in _NUMBERS for t in outs):
        return None
    return kind, tuple((tuple(t.shape), t.stride(), t.dtype) for t in outs)


def disjoint(a: Tensor, b: Tensor) -> bool:
    """Whether two views of one storage are known to have no element in common: runs of one dimension, as chunks are."""
    if a.shape != b.shape or a.stride() != b.stride():
        return False
    apart = abs(int(a.storage_offset()) - int(b.storage_offset()))
    for size, step in zip(a.shape, a.stride(), strict=True):
        above = min((s for s in a.stride() if s > step), default=None)
        inner = sum((n - 1) * s for n, s in zip(a.shape, a.stride(), strict=True) if s < step)
        fits = above is None or apart + (size - 1) * step + inner < above
        if step and inner < step and apart % step == 0 and apart // step >= size and fits:
            return True
    return False
