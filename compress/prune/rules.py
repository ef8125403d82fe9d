"""The rule table: ATen operator -> what it does to channel labels.

A rule takes the tracer and one call and returns what its output carries. An operator that is not in `RULES`
protects every channel that reaches it and is reported by name; it is never guessed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from typing import Any, Protocol

import numpy as np
import torch

from compress.prune.labels import Flow, Labels, Weight, reshape_labels, shrink
from compress.prune.units import Role

Carried = Flow | Weight


@dataclass(frozen=True)
class Call:
    """One operator call: its arguments by position and by name, and its output."""

    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    out: Any

    def arg(self, place: int, default: Any = None) -> Any:
        return self.args[place] if place < len(self.args) else default


class Labeller(Protocol):
    """What a rule may do: the tracer's side of the table."""

    def carried(self, tensor: torch.Tensor) -> Carried: ...
    def flow(self, tensor: torch.Tensor) -> Flow: ...
    def slot(self, weight: Weight, place: int, role: Role) -> Labels: ...
    def equate(self, left: Labels, right: Labels) -> None: ...
    def protect(self, labels: Labels | None, reason: str) -> None: ...
    def read(self, flow: Flow, labels: Labels, reason: str) -> None: ...
    def spend(self, weight: Weight, macs: float) -> None: ...
    def unknown(self, call: Call) -> Flow: ...


Rule = Callable[[Labeller, Call], Any]


def tensors(values: Any) -> list[torch.Tensor]:
    """All tensors in a nest of tuples, lists, dictionaries and dataclasses."""
    if isinstance(values, torch.Tensor):
        return [values]
    if isinstance(values, Mapping):
        return [t for v in values.values() for t in tensors(v)]
    if is_dataclass(values) and not isinstance(values, type):
        return [t for v in vars(values).values() for t in tensors(v)]
    if isinstance(values, list | tuple):
        return [t for v in values for t in tensors(v)]
    return []


def channel_labels(flow: Flow, place: int, size: int) -> Labels | None:
    """The labels along one dimension, or None when there are none or another dimension carries some too."""
    if flow.labels is None:
        return None
    others = [n for d, n in enumerate(flow.labels.shape) if d != place]
    if any(n > 1 for n in others):
        return None
    return np.broadcast_to(flow.labels.reshape(-1), (size,)) if flow.labels.size in (1, size) else None


def placed(labels: Labels, ndim: int, place: int) -> Labels:
    """A label vector laid along one dimension of `ndim`."""
    shape = [1] * ndim
    shape[place] = len(labels)
    return labels.reshape(shape)


# Pointwise ------------------------------------------------------------------------------------------------


def pointwise(zero: Callable[[Sequence[bool]], bool]) -> Rule:
    """y[i] = f(a[i], b[i], ...): channels that meet are equal; `zero` tells whether zeros stay zero."""

    def rule(tracer: Labeller, call: Call) -> Flow:
        operands = [(t, tracer.flow(t)) for t in tensors(call.args)]
        ndim = call.out.dim()
        result: Labels | None = None
        for tensor, flow in operands:
            if flow.labels is None:
                continue
            labels = flow.labels.reshape((1,) * (ndim - tensor.dim()) + flow.labels.shape)
            result = labels if result is None else _meet(tracer, call, result, labels)
        if result is None:
            return next((f for _, f in operands if f.origin), Flow(None, "constant"))
        for tensor, flow in operands:
            shape = (1,) * (ndim - tensor.dim()) + tuple(tensor.shape)
            if flow.labels is None and any(a > 1 and b > 1 for a, b in zip(result.shape, shape, strict=True)):
                tracer.protect(result, f"meets {flow.origin or 'a constant'}")
        return Flow(result, zero=zero([f.zero if f.labels is not None else False for _, f in operands]))

    return rule


def _meet(tracer: Labeller, call: Call, left: Labels, right: Labels) -> Labels:
    if left.shape == right.shape:
        tracer.equate(left, right)
        return left
    if left.size == 1 or right.size == 1:
        wide, narrow = (left, right) if left.size > 1 else (right, left)
        tracer.equate(np.broadcast_to(narrow.reshape(-1), (wide.size,)), wide.reshape(-1))
        return wide
    for labels in (left, right):
        tracer.protect(labels, f"meets other channels in {call.name}")
    return np.broadcast_to(left, np.broadcast_shapes(left.shape, right.shape))


keeps_zero = pointwise(all)  # f(0, 0) = 0
loses_zero = pointwise(lambda _: False)  # f(0) is some constant
multiplies = pointwise(any)  # 0 * b = 0
first_zero = pointwise(lambda zeros: bool(zeros and zeros[0]))  # 0 / b = 0


def add(tracer: Labeller, call: Call) -> Flow:
    """y = a + b: zero where both are; a number added makes a constant."""
    both = len(tensors(call.args)) > 1 or call.arg(1) == 0
    return (keeps_zero if both else loses_zero)(tracer, call)


def clamp(tracer: Labeller, call: Call) -> Flow:
    """y = min(max(x, low), high): zero stays zero where low <= 0 <= high."""
    low, high = call.kwargs.get("min", call.arg(1)), call.kwargs.get("max", call.arg(2))
    if call.name.startswith("aten.clamp_max"):
        low, high = None, call.kwargs.get("max", call.arg(1))
    if call.name.startswith("aten.hardtanh"):
        low, high = call.arg(1, -1), call.arg(2, 1)
    inside = (low is None or low <= 0) and (high is None or high >= 0)
    return (keeps_zero if inside else loses_zero)(tracer, call)


# Products and norms ---------------------------------------------------------------------------------------


def convolution(tracer: Labeller, call: Call) -> Flow:
    """y[o] = sum_i w[o, i] x[i]: x's channels are w's columns, y's are w's rows; see `_grouped` for groups."""
    x, weight, bias = call.args[:3]
    transposed, groups = bool(call.args[6]), int(call.args[8])
    carried = tracer.carried(weight)
    if not isinstance(carried, Weight) or x.dim() != weight.dim():
        return tracer.unknown(call)
    rows_at, columns_at = (1, 0) if transposed else (0, 1)
    flow, channels = tracer.flow(x), int(x.shape[1])
    source = channel_labels(flow, 1, channels)
    pixels = (x if transposed else call.out).numel() // int((x if transposed else call.out).shape[1])
    # MACs = pixels x kernel x rows x columns, with w already holding one group's columns.
    tracer.spend(carried, pixels * weight[0, 0].numel())
    if groups == 1:
        rows = tracer.slot(carried, rows_at, "producer")
        _join(tracer, flow, source, tracer.slot(carried, columns_at, "consumer"), call)
    elif not transposed:
        rows = _grouped(tracer, call, carried, flow, source, groups)
    else:
        tracer.protect(flow.labels, "grouped transposed convolution")
        return Flow(None, "grouped transposed convolution")
    if bias is not None:
        offset = tracer.carried(bias)
        if not isinstance(offset, Weight):
            return tracer.unknown(call)
        tracer.equate(tracer.slot(offset, 0, "producer"), rows)
    return Flow(placed(rows, call.out.dim(), 1))


def _grouped(tracer: Labeller, call: Call, weight: Weight, flow: Flow, source: Labels | None, groups: int) -> Labels:
    """Groups stay equal: the same place of each group lives or dies together; depthwise ties in to out."""
    rows = tracer.slot(weight, 0, "producer")
    per_group = weight.shape[1]
    if source is None:
        tracer.protect(rows, flow.origin or "grouped convolution of unlabelled channels")
        return rows
    if per_group == 1:
        multiplier = len(rows) // groups
        tracer.equate(np.repeat(source, multiplier), rows)
        tracer.read(flow, source, call.name)
        return rows
    columns = tracer.slot(weight, 1, "consumer")
    _join(tracer, flow, source, np.tile(columns, groups), call)
    tracer.equate(np.tile(rows[: len(rows) // groups], groups), rows)
    return rows


def _join(tracer: Labeller, flow: Flow, source: Labels | None, columns: Labels, call: Call) -> None:
    """Ties the channels of an activation to the columns that read them."""
    if source is None:
        reason = flow.origin or f"channels in several dimensions reach {call.name}"
        tracer.protect(columns, reason)
        tracer.protect(flow.labels, reason)
        return
    tracer.equate(source, columns)
    tracer.read(flow, source, call.name)


def matmul(tracer: Labeller, call: Call) -> Flow:
    """y[.., o] = sum_i x[.., i] w[o, i] (+ b[o]), with w a parameter seen transposed."""
    operands = call.args if call.name == "aten.mm" else call.args[1:]
    x, weight = operands[0], operands[1]
    carried = tracer.carried(weight)
    if not isinstance(carried, Weight) or isinstance(tracer.carried(x), Weight):
        return tracer.unknown(call)
    flow = tracer.flow(x)
    tracer.spend(carried, call.out.numel() // int(call.out.shape[-1]))
    _join(tracer, flow, channel_labels(flow, 1, int(x.shape[1])), tracer.slot(carried, 0, "consumer"), call)
    rows = tracer.slot(carried, 1, "producer")
    if call.name == "aten.addmm":
        offset = tracer.carried(call.args[0])
        if not isinstance(offset, Weight):
            return tracer.unknown(call)
        tracer.equate(tracer.slot(offset, 0, "producer"), rows)
    return Flow(placed(rows, 2, 1))


def batch_norm(tracer: Labeller, call: Call) -> tuple[Flow, ...]:
    """y[c] = (x[c] - mean[c]) / sqrt(var[c] + eps) * w[c] + b[c]: all of one channel."""
    x = call.args[0]
    flow = tracer.flow(x)
    source = channel_labels(flow, 1, int(x.shape[1]))
    roles: tuple[Role, ...] = ("producer", "producer", "producer", "statistic")
    affine = False
    for tensor, role in zip(call.args[1:5], roles, strict=True):
        if tensor is None:
            continue
        carried = tracer.carried(tensor)
        if not isinstance(carried, Weight):
            return (tracer.unknown(call),)
        affine = affine or tensor is call.args[1]
        own = tracer.slot(carried, 0, role)
        if source is None:
            tracer.protect(own, flow.origin or "batch norm of unlabelled channels")
        else:
            tracer.equate(own, source)
    tracer.protect(None if source is not None else flow.labels, "channels in several dimensions reach a norm")
    return (Flow(flow.labels, flow.origin, zero=flow.zero or affine),)


# Over space -----------------------------------------------------------------------------------------------


def spatial(tracer: Labeller, call: Call) -> Any:
    """Pooling, interpolation, padding: mixes positions of one channel, never channels; zero stays zero."""
    flow, x = tracer.flow(call.args[0]), call.args[0]
    if flow.labels is not None and any(n > 1 for n in flow.labels.shape[2:]):
        return tracer.unknown(call)
    if x.dim() != tensors(call.out)[0].dim():
        return tracer.unknown(call)
    return (flow,) if isinstance(call.out, tuple) else flow


def pad(tracer: Labeller, call: Call) -> Flow:
    """Constant padding over space; a pad of the channel dimension has fixed size and is not followed."""
    over = len(call.args[1]) // 2
    flow = tracer.flow(call.args[0])
    if flow.labels is not None and any(n > 1 for n in flow.labels.shape[len(flow.labels.shape) - over :]):
        return tracer.unknown(call)
    return flow if not call.arg(2, 0) else Flow(flow.labels, flow.origin, zero=False)


def mean(tracer: Labeller, call: Call) -> Flow:
    """y = mean of x over dimensions that carry no channel."""
    flow, x = tracer.flow(call.args[0]), call.args[0]
    if flow.labels is None:
        return flow
    dims = sorted({d % x.dim() for d in (call.arg(1) or range(x.dim()))})
    if any(flow.labels.shape[d] > 1 for d in dims):
        return tracer.unknown(call)
    keep = bool(call.arg(2, call.kwargs.get("keepdim", False)))
    return flow if keep else flow.with_labels(flow.labels.squeeze(tuple(dims)))


# Moving elements: the same operation on the labels --------------------------------------------------------


def same(tracer: Labeller, call: Call) -> Carried:
    """y = x under another name, type or memory layout."""
    return tracer.carried(call.args[0])


def reshape(tracer: Labeller, call: Call) -> Flow:
    """The labels are reshaped as the tensor is: a flatten repeats a label once for each position."""
    x = call.args[0]
    flow = tracer.flow(x)
    if flow.labels is None:
        return flow
    labels = reshape_labels(flow.labels, tuple(x.shape), tuple(call.out.shape))
    return flow.with_labels(labels) if labels is not None else tracer.unknown(call)


def permute(tracer: Labeller, call: Call) -> Carried:
    """The labels (or a weight's dimensions) are permuted as the tensor is."""
    carried, ndim = tracer.carried(call.args[0]), call.args[0].dim()
    if call.name == "aten.permute":
        order = [d % ndim for d in call.args[1]]
    else:
        a, b = (0, ndim - 1) if call.name == "aten.t" else (call.args[1] % ndim, call.args[2] % ndim)
        order = list(range(ndim))
        order[a], order[b] = order[b], order[a]
    if isinstance(carried, Weight):
        return Weight(carried.name, carried.shape, tuple(carried.dims[d] for d in order))
    return carried if carried.labels is None else carried.with_labels(carried.labels.transpose(order))


def expand(tracer: Labeller, call: Call) -> Flow:
    """Repeats along dimensions of size 1: labels broadcast already."""
    flow = tracer.flow(call.args[0])
    if flow.labels is None:
        return flow
    return flow.with_labels(flow.labels.reshape((1,) * (call.out.dim() - flow.labels.ndim) + flow.labels.shape))


def flip(tracer: Labeller, call: Call) -> Flow:
    """The labels are flipped as the tensor is."""
    flow = tracer.flow(call.args[0])
    return flow if flow.labels is None else flow.with_labels(np.flip(flow.labels, call.args[1]))


def roll(tracer: Labeller, call: Call) -> Flow:
    """The labels are rolled as the tensor is; a roll without dimensions is of the flattened tensor."""
    flow, dims = tracer.flow(call.args[0]), call.arg(2, [])
    if flow.labels is None:
        return flow
    return flow.with_labels(np.roll(flow.labels, call.args[1], dims)) if dims else tracer.unknown(call)


def concat(tracer: Labeller, call: Call) -> Flow:
    """y = [a, b, ...]: the labels are concatenated; along a dimension without channels they are equal."""
    parts = [(t, tracer.flow(t)) for t in call.args[0]]
    ndim = call.out.dim()
    d = call.arg(1, call.kwargs.get("dim", 0)) % ndim
    if any(f.labels is None for _, f in parts):
        return tracer.unknown(call)
    labels = [f.labels for _, f in parts if f.labels is not None]
    zero = all(f.zero for _, f in parts)
    if all(x.shape[d] == 1 for x in labels) and all(x.shape == labels[0].shape for x in labels):
        for other in labels[1:]:
            tracer.equate(labels[0], other)
        return Flow(labels[0], zero=zero)
    spans = [max(x.shape[k] for x in labels) if k != d else 0 for k in range(ndim)]
    wide = [
        np.broadcast_to(x, [t.shape[d] if k == d else spans[k] for k in range(ndim)])
        for (t, _), x in zip(parts, labels, strict=True)
    ]
    return Flow(shrink(np.concatenate(wide, axis=d)), zero=zero)


def split(tracer: Labeller, call: Call) -> list[Flow]:
    """y_k = a run of x: the labels are sliced."""
    x, flow = call.args[0], tracer.flow(call.args[0])
    d = call.arg(2, call.kwargs.get("dim", 0)) % x.dim()
    if flow.labels is None or flow.labels.shape[d] == 1:
        return [flow] * len(call.out)
    ends = np.cumsum([part.shape[d] for part in call.out])[:-1]
    return [flow.with_labels(part) for part in np.split(flow.labels, ends, axis=d)]


def slice_(tracer: Labeller, call: Call) -> Flow:
    """y = x[start:end:step] along one dimension: the labels are sliced."""
    x, flow = call.args[0], tracer.flow(call.args[0])
    d = call.arg(1, 0) % x.dim()
    if flow.labels is None or flow.labels.shape[d] == 1:
        return flow
    where = [slice(None)] * x.dim()
    where[d] = slice(call.arg(2), call.arg(3), call.arg(4, 1))
    return flow.with_labels(flow.labels[tuple(where)])


def _named(rule: Rule, names: str) -> dict[str, Rule]:
    return {f"aten.{name}": rule for name in names.split()}


RULES: dict[str, Rule] = {
    **_named(
        keeps_zero,
        "relu relu_ relu6 hardswish hardswish_ silu silu_ gelu leaky_relu leaky_relu_ elu "
        "elu_ mish tanh neg abs sqrt square sign floor round maximum minimum",
    ),
    **_named(loses_zero, "sigmoid sigmoid_ hardsigmoid hardsigmoid_ exp softplus cos rsqrt reciprocal rsub"),
    **_named(multiplies, "mul mul_ bernoulli bernoulli_"),
    **_named(first_zero, "div div_ pow"),
    **_named(add, "add add_ sub sub_"),
    **_named(clamp, "clamp clamp_ clamp_min clamp_min_ clamp_max clamp_max_ hardtanh hardtanh_"),
    **_named(convolution, "convolution"),
    **_named(matmul, "mm addmm"),
    **_named(batch_norm, "_native_batch_norm_legit_no_training native_batch_norm _native_batch_norm_legit"),
    **_named(batch_norm, "cudnn_batch_norm _batch_norm_with_update"),
    **_named(
        spatial,
        "max_pool2d_with_indices max_pool2d avg_pool2d _adaptive_avg_pool2d adaptive_max_pool2d "
        "upsample_nearest2d upsample_bilinear2d upsample_bicubic2d _upsample_nearest_exact2d "
        "_upsample_bilinear2d_aa reflection_pad2d replication_pad2d",
    ),
    **_named(pad, "constant_pad_nd"),
    **_named(mean, "mean"),
    **_named(same, "detach alias clone contiguous _to_copy lift_fresh native_dropout dropout empty_like"),
    **_named(reshape, "view _unsafe_view reshape unsqueeze squeeze"),
    **_named(permute, "permute transpose t"),
    **_named(expand, "expand"),
    **_named(flip, "flip"),
    **_named(roll, "roll"),
    **_named(concat, "cat"),
    **_named(split, "split split_with_sizes chunk"),
    **_named(slice_, "slice"),
}
