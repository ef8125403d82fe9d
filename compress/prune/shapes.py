"""The output shapes of common operators on the meta device, computed without torch, which takes ten times as long.

Each function returns an empty meta tensor of the right shape and type, or None where only torch knows.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from compress.prune.meta import META


def _empty(shape: Any, like: Tensor) -> Tensor:
    return torch.empty(shape, dtype=like.dtype, device=META)


def _like(x: Tensor) -> Tensor | None:
    """An empty tensor of the same layout, where that is the plain one."""
    return _empty(x.shape, x) if x.is_contiguous() else None


@cache
def _nothing(dtype: torch.dtype) -> Tensor:
    """What evaluation returns in place of batch statistics, which nobody reads."""
    return torch.empty(0, dtype=dtype, device=META)


def convolution(x: Tensor, w: Tensor, bias: Tensor | None, *rest: Any) -> Tensor | None:
    stride, padding, dilation, transposed, _, groups = rest
    shape, kernel, dtype = x.shape, w.shape, x.dtype
    n = len(kernel) - 2
    if transposed or len(shape) != n + 2 or not len(stride) == len(padding) == len(dilation) == n:
        return None
    if shape[1] != kernel[1] * groups or kernel[0] % groups or 0 in kernel or w.dtype != dtype:
        return None
    if bias is not None and bias.shape[0] != kernel[0]:
        return None
    size = [shape[0], kernel[0]]
    for i in range(n):
        step, pad, apart = stride[i], padding[i], dilation[i]
        if step < 1 or apart < 1 or pad < 0:
            return None
        made = (shape[i + 2] + 2 * pad - apart * (kernel[i + 2] - 1) - 1) // step + 1
        if made < 1:
            return None
        size.append(made)
    return torch.empty(size, dtype=dtype, device=META)


def batch_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Any, var: Any, *rest: Any) -> Any:
    trains, shape, dtype = rest[0] is True, x.shape, x.dtype
    if len(shape) < 2 or (not trains and (mean is None or var is None)):
        return None
    c = shape[1]
    for t in (weight, bias, mean, var):
        if t is not None and (t.shape != (c,) or t.dtype != dtype):
            return None
    out = torch.empty(shape, dtype=dtype, device=META)
    if trains:
        return out, _empty([c], x), _empty([c], x)
    return out, _nothing(dtype), _nothing(dtype)


def layer_norm(x: Tensor, shape: Any, weight: Tensor | None, bias: Tensor | None, eps: float) -> Any:
    if (
        not 0 < len(shape) <= x.dim()
        or list(x.shape[-len(shape) :]) != list(shape)
        or any(t is not None and list(t.shape) != list(shape) for t in (weight, bias))
    ):
        return None
    rest = [*x.shape[: -len(shape)], *[1] * len(shape)]
    return _empty(x.shape, x), _empty(rest, x), _empty(rest, x)


def rms_norm(x: Tensor, shape: Any, weight: Tensor | None, eps: Any = None) -> Any:
    found = layer_norm(x, shape, weight, None, 0.0)
    return None if found is None else found[:2]


def unary(x: Tensor, *rest: Any, **named: Any) -> Tensor | None:
    return None if named or any(isinstance(a, Tensor) for a in rest) else _like(x)


def in_place(x: Tensor, *rest: Any, **named: Any) -> Tensor | None:
    return x if not rest or not any(isinstance(a, Tensor) and a.shape != x.shape for a in rest) else None


def binary(x: Tensor, y: Any, *rest: Any, **named: Any) -> Tensor | None:
    if not isinstance(x, Tensor) or not isinstance(y, Tensor) or x.dtype != y.dtype or not x.dim() or not y.dim():
        return None
    if x.shape == y.shape:
        return _like(x)
    long, short = (x.shape, y.shape) if x.dim() >= y.dim() else (y.shape, x.shape)
    size = list(long)
    for d, n in enumerate(short, len(long) - len(short)):
        if size[d] == 1:
            size[d] = n
        elif n not in (1, size[d]):
            return None
    return _empty(size, x)


def scaled(x: Tensor, number: Any) -> Tensor | None:
    return _like(x) if x.dtype.is_floating_point and isinstance(number, int | float) else None


def softmax(x: Tensor, dim: int, *rest: Any, **named: Any) -> Tensor | None:
    plain = -x.dim() <= dim < x.dim() and x.dtype.is_floating_point
    return None if named or any(rest) or not plain else _like(x)


def addmm(c: Tensor, a: Tensor, b: Tensor, **named: Any) -> Tensor | None:
    if a.dim() != 2 or b.dim() != 2 or a.shape[1] != b.shape[0] or c.shape != b.shape[1:] or c.dtype != a.dtype:
        return None
    return _empty([a.shape[0], b.shape[1]], a) if a.dtype == b.dtype else None


def concat(parts: Any, dim: int = 0) -> Tensor | None:
    first = parts[0]
    if not -first.dim() <= dim < first.dim():
        return None
    d = dim % max(first.dim(), 1)
    rest = [*first.shape[:d], *first.shape[d + 1 :]]
    if any(
        p.dim() != first.dim() or p.dtype != first.dtype or [*p.shape[:d], *p.shape[d + 1 :]] != rest for p in parts
    ):
        return None
    return _empty([*first.shape[:d], sum([p.shape[d] for p in parts]), *first.shape[d + 1 :]], first)


def vector_norm(x: Tensor, order: Any = 2, dims: Any = None, keepdim: bool = False, **named: Any) -> Tensor | None:
    return mean(x, dims, keepdim, **named) if x.dtype.is_floating_point else None


def mean(x: Tensor, dims: Any, keepdim: bool = False, **named: Any) -> Tensor | None:
    if named or dims is None or not len(dims):
        return None
    if any(not -x.dim() <= d < x.dim() for d in dims):
        return None
    gone = {d % x.dim() for d in dims}
    if len(gone) < len(dims):
        return None
    return _empty([1 if d in gone else n for d, n in enumerate(x.shape) if keepdim or d not in gone], x)


def max_pool(
    x: Tensor, kernel: Any, stride: Any = (), padding: Any = 0, dilation: Any = 1, ceil_mode: bool = False
) -> Any:
    if x.dim() != 4 or ceil_mode:
        return None
    k, s, p, d = ([v, v] if isinstance(v, int) else [*v, *v][:2] for v in (kernel, stride or kernel, padding, dilation))
    if any(2 * p[i] > k[i] or p[i] < 0 or s[i] < 1 or d[i] < 1 for i in (0, 1)):
        return None
    size = [(x.shape[i + 2] + 2 * p[i] - d[i] * (k[i] - 1) - 1) // s[i] + 1 for i in (0, 1)]
    out = _empty([*x.shape[:2], *size], x)
    return (out, torch.empty(out.shape, dtype=torch.int64, device=META)) if min(size) > 0 else None


def _floating(shape: Callable[..., Any]) -> Callable[..., Any]:
    """Restrict a function to floating tensors; torch knows the result for others, or refuses them."""

    def guarded(first: Any, *rest: Any, **named: Any) -> Any:
        x = first if isinstance(first, Tensor) or not first else first[0]
        return shape(first, *rest, **named) if isinstance(x, Tensor) and x.dtype.is_floating_point else None

    return guarded


_SHAPES: dict[str, Callable[..., Any]] = {
    "aten.convolution": convolution,
    "aten.native_batch_norm": batch_norm,
    "aten._native_batch_norm_legit_no_training": batch_norm,
    "aten.native_layer_norm": layer_norm,
    "aten._fused_rms_norm": rms_norm,
    "aten.mean.dim": mean,
    "aten.max_pool2d_with_indices": max_pool,
    **{
        f"aten.{name}": unary for name in ("relu", "gelu", "silu", "sigmoid", "hardswish", "hardsigmoid", "tanh", "exp")
    },
    **{
        f"aten.{name}": in_place
        for name in (
            "relu_",
            "silu_",
            "hardswish_",
            "hardtanh_",
            "hardsigmoid_",
            "sigmoid_",
            "tanh_",
            "leaky_relu_",
            "add_",
            "mul_",
        )
    },
    **{f"aten.{name}.Tensor": binary for name in ("add", "sub", "mul")},
    "aten.mul.Scalar": scaled,
    "aten.clamp_min": scaled,
    "aten._softmax": softmax,
    "aten._safe_softmax": softmax,
    "aten.addmm": addmm,
    "aten.cat": concat,
    "aten.linalg_vector_norm": vector_norm,
}
SHAPES = {name: _floating(shape) for name, shape in _SHAPES.items()}
"""Operator, with or without its overload -> its shape."""
