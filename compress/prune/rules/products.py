"""Sums of products: convolutions, matrix products, attention. Channels that are summed over together are equal."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
import torch

from compress.prune.labels import Flow, Labels, Layer, Slot, placed
from compress.prune.rules.base import CONSTANT, SHUT, Call, Labeller, Rule, channel, collapse, meet, named, plain

Side = tuple[Layer | None, Flow]
"""The layer along the dimension that is summed over, one label a channel, and its flow."""

Kernel = tuple[Layer | None, Layer | None, Flow]
"""The layers along a weight's rows and columns, and its flow."""


def contract(tracer: Labeller, call: Call, left: Side, right: Side) -> None:
    """sum_k a[k] b[k]: the channels of both are equal, and one that is masked must be zero on one side."""
    (a, from_a), (b, from_b) = left, right
    if a is None or b is None:
        for alone, missing in ((a, from_b), (b, from_a)):
            if alone is not None:
                tracer.role(alone.slot, "consumer")
                # A sum over zeros is zero, however many there are.
                if missing.blank:
                    continue
                tracer.protect(alone.labels, missing.origin or f"meets a constant in {call.name}")
        return
    tracer.equate(a.labels, b.labels)
    for layer, other in ((a, b), (b, a)):
        # A parameter's columns read an activation; two parameters both make what they sum over.
        tracer.role(layer.slot, "consumer" if other.slot is None else "producer")
    sides = [layer.zero for layer, other in ((a, b), (b, a)) if layer.slot is None or other.slot is not None]
    if not any(sides):
        _shut(tracer, a.labels, [layer.slot for layer, other in ((a, b), (b, a)) if other.slot is None])


def _shut(tracer: Labeller, labels: Labels, readers: list[Slot | None]) -> None:
    """Mask what reads channels that are no longer zero, if that is a parameter; else they have to stay."""
    own = [slot for slot in readers if slot is not None]
    for slot in own:
        tracer.role(slot, "shut")
    tracer.altered(labels, SHUT if own else CONSTANT)


def convolution(tracer: Labeller, call: Call) -> Flow:
    """y[o] = sum_i w[o, i] x[i]: x's channels are w's columns, y's are w's rows; see ``_grouped`` for groups."""
    x, weight, bias = call.args[:3]
    transposed, groups = bool(call.args[6]), int(call.args[8])
    flow = tracer.flow(x)
    source = plain(flow, 1)
    if source is not None and not transposed:
        simple = _simple(tracer, call, source, groups)
        if simple is not None:
            return simple
    kernel = tracer.flow(weight)
    rows_at, columns_at = (1, 0) if transposed else (0, 1)
    rows, rest = channel(tracer, kernel, rows_at)
    columns, rest = channel(tracer, Flow(tuple(rest)), columns_at)
    for layer in rest:
        # The kernel's own positions carry labels only where something was computed from them.
        tracer.protect(layer.labels, "positions of a kernel")
    source, others = channel(tracer, flow, 1)
    for layer in others:
        if any(d > 0 for d in layer.dims):
            tracer.protect(layer.labels, f"channels in several dimensions reach {call.name}")
    pixels = x if transposed else call.out
    _spend(tracer, pixels.numel() // int(pixels.shape[1]) * weight.numel(), rows, columns)
    if groups > 1:
        rows = _grouped(tracer, call, (source, flow), (rows, columns, kernel), groups)
    else:
        contract(tracer, call, (_vector(tracer, source), flow), (_vector(tracer, columns), kernel))
    made = [rows] if rows is not None else []
    for layer in made:
        tracer.role(layer.slot, "producer")
    at = [Layer(placed(layer.labels.reshape(-1), call.out.dim(), 1), layer.zero) for layer in made]
    layers = tuple(at) + tuple(Layer(layer.labels, layer.zero) for layer in others if layer.dims == (0,))
    if bias is None:
        return Flow(layers, "" if layers else kernel.origin)
    offset = tracer.flow(bias)
    shape = (1, -1) + (1,) * (call.out.dim() - 2)
    seen = Flow(tuple(Layer(layer.labels.reshape(shape), layer.zero, layer.slot) for layer in offset.layers))
    size = (1, bias.shape[0]) + (1,) * (call.out.dim() - 2)
    return Flow(meet(tracer, [(Flow(layers), call.out.shape), (seen, size)], call.out.dim(), all))


def _simple(tracer: Labeller, call: Call, source: Layer, groups: int) -> Flow | None:
    """A convolution with its own weight and bias, dense or one channel a group; None for any other."""
    weight, bias, channels = call.args[1], call.args[2], source.vector
    depthwise = groups == len(channels) and weight.shape[1] == 1
    if groups > 1 and not depthwise:
        return None
    if depthwise:
        made = channels if weight.shape[0] == groups else np.repeat(channels, weight.shape[0] // groups)
        if not tracer.tie(weight, 0, made, "producer"):
            return None
    else:
        rows = tracer.own(weight, 0, "producer")
        if rows is None or not tracer.tie(weight, 1, channels, "consumer" if source.zero else "shut"):
            return None
        made = rows
    if bias is not None and not tracer.tie(bias, 0, made, "producer"):
        return None
    if not (source.zero or depthwise):
        tracer.altered(channels, SHUT)
    macs = call.out.numel() // len(made) * weight.numel() // len(made)
    tracer.spend(macs if depthwise else macs // len(channels), made, *([] if depthwise else [channels]))
    return Flow((Layer(placed(made, call.out.dim(), 1)),))


def _spend(tracer: Labeller, macs: int, *layers: Layer | None) -> None:
    factors = [layer.labels.reshape(-1) for layer in layers if layer is not None]
    for labels in factors:
        macs //= len(labels)
    tracer.spend(macs, *factors)


def _spend_batched(tracer: Labeller, macs: int, layers: list[Layer], front: range) -> None:
    """Channels along the leading dimensions are counted together: h heads of i x j products, not h i x h j."""
    apart = [layer for layer in layers if not any(d in front for d in layer.dims)]
    ahead = [layer for layer in layers if layer not in apart]
    # Labels that only tell heads apart add nothing where other labels have heads.
    ahead = [layer for layer in ahead if any(d not in front for d in layer.dims)] or ahead[:1]
    factors: list[Labels] = [layer.labels.reshape(-1) for layer in apart]
    if ahead:
        wide = []
        for place, layer in enumerate(ahead):
            shape = [*layer.labels.shape[: len(front)], *[1] * len(ahead)]
            shape[len(front) + place] = -1
            wide.append(layer.labels.reshape(shape))
        joint = np.stack(np.broadcast_arrays(*wide)).reshape(len(wide), -1)
        factors.append(joint[0] if len(wide) == 1 else joint)
    tracer.spend(macs / prod(labels.shape[-1] for labels in factors), *factors)


def _grouped(tracer: Labeller, call: Call, source: Side, kernel: Kernel, groups: int) -> Layer | None:
    """Groups stay equal: the same place of each group lives or dies together; depthwise ties in to out."""
    rows, columns, flow = kernel
    x, origin = source
    if call.args[6]:
        return _grouped_transposed(tracer, call, source, kernel, groups)
    if x is not None and rows is None and _one_kernel(call.args[1]):
        # A blur: one kernel of constants for every channel, as many times as there are channels.
        return Layer(x.labels.reshape(-1), x.zero)
    if x is None or rows is None:
        for layer in (x, rows, columns):
            if layer is not None:
                tracer.protect(layer.labels, origin.origin or "grouped convolution of unlabelled channels")
        return rows
    made, seen = rows.labels.reshape(-1), x.labels.reshape(-1)
    if call.args[1].shape[1] == 1:
        tracer.equate(np.repeat(seen, len(made) // len(seen)), made)
        # Either makes zeros: a row of the kernel is masked with its channel.
        return Layer(rows.labels, rows.zero or x.zero, rows.slot)
    tracer.equate(np.tile(made[: len(made) // groups], groups), made)
    if columns is None:
        _same_place(tracer, seen, groups)
        tracer.protect(seen, origin.origin or "a constant kernel")
        return rows
    tiled = Layer(np.tile(columns.labels.reshape(-1), groups), columns.zero, columns.slot)
    contract(tracer, call, (Layer(seen, x.zero, x.slot), origin), (tiled, flow))
    return rows


def _one_kernel(weight: torch.Tensor) -> bool:
    """Whether a depthwise kernel is one that was expanded over the channels."""
    return weight.shape[1] == 1 and weight.stride()[0] == 0


def _grouped_transposed(tracer: Labeller, call: Call, source: Side, kernel: Kernel, groups: int) -> Layer | None:
    """The weight's first dimension holds all input channels, its second one group's output channels."""
    rows, columns, flow = kernel
    x, origin = source
    contract(tracer, call, (_vector(tracer, x), origin), (_vector(tracer, columns), flow))
    if x is None or columns is None:
        if rows is not None:
            tracer.protect(rows.labels, origin.origin or "grouped convolution of unlabelled channels")
        return None
    seen, weight = x.labels.reshape(-1), call.args[1]
    if weight.shape[0] == groups:
        # Each channel makes its own outputs, and its rows of the weight make them zero.
        tracer.role(columns.slot, "producer")
        if rows is not None:
            tracer.protect(rows.labels, "outputs of one channel")
        return Layer(np.repeat(seen, weight.shape[1]), columns.zero or x.zero)
    _same_place(tracer, seen, groups)
    return None if rows is None else Layer(np.tile(rows.labels.reshape(-1), groups), rows.zero, rows.slot)


def _same_place(tracer: Labeller, labels: Labels, groups: int) -> None:
    tracer.equate(np.tile(labels[: len(labels) // groups], groups), labels)


def matmul(tracer: Labeller, call: Call) -> Flow:
    """y[i, j] = sum_k a[i, k] b[k, j] (+ c[j])."""
    added = call.name in ("aten.addmm", "aten.baddbmm", "aten.addmv")
    a, b = call.args[1:3] if added else call.args[:2]
    left, right = (tracer.flow(a), tuple(a.shape)), (tracer.flow(b), tuple(b.shape))
    if b.dim() == 1:
        column = Flow(tuple(Layer(x.labels.reshape(-1, 1), x.zero, x.slot) for x in right[0].layers), right[0].origin)
        out = batched(tracer, call, left, (column, (*right[1], 1)), 2)
        out = out.moved([layer.labels.reshape(-1) for layer in out.layers])
    else:
        out = batched(tracer, call, left, right, b.dim())
    if not added:
        return out
    c = call.args[0]
    operands = [(out, tuple(call.out.shape)), (tracer.flow(c), tuple(c.shape))]
    return Flow(meet(tracer, operands, call.out.dim(), all), out.origin)


def batched(
    tracer: Labeller, call: Call, left: tuple[Flow, tuple[int, ...]], right: tuple[Flow, tuple[int, ...]], ndim: int
) -> Flow:
    """y[.., i, j] = sum_k a[.., i, k] b[.., k, j]; leading dimensions are matched element by element."""
    (flow_a, shape_a), (flow_b, shape_b) = left, right
    k, front = ndim - 1, range(ndim - 2)
    # Where whole heads go, what is summed over may differ from head to head.
    across = front if tracer.heads == "whole" else range(0)
    a, rest_a = channel(tracer, flow_a, k, across)
    b, rest_b = channel(tracer, flow_b, k - 1, across)
    heads = a is not None and b is not None and any(a.over(d) and b.over(d) for d in front)
    macs = call.out.numel() * int(shape_a[-1])
    if not heads and (a is None) != (b is None):
        # Softmax over the channels of a head, as in channel attention: all of them go together.
        alone_a, alone_b = _whole_heads(tracer, a, k, front), _whole_heads(tracer, b, k - 1, front)
        rest_a, rest_b = [*rest_a, *alone_a], [*rest_b, *alone_b]
        a, b = None if alone_a else a, None if alone_b else b
    if heads:
        _spend(tracer, macs, a)
    else:
        _spend_batched(tracer, macs, [x for x in (a or b, *rest_a, *rest_b) if x is not None], front)
    if heads and a is not None and b is not None:
        # All dimensions of a head go together, so the product keeps one channel a head.
        whole_a, whole_b = collapse(tracer, a, [k]), collapse(tracer, b, [k - 1])
        for layer in (a, b):
            tracer.role(layer.slot, "producer")
        rest_a, rest_b = [*rest_a, Layer(whole_a.labels, a.zero)], [*rest_b, Layer(whole_b.labels, b.zero)]
        if not (a.zero or b.zero):
            tracer.altered(a.labels, CONSTANT)
    else:
        contract(tracer, call, (_vector(tracer, a, front), flow_a), (_vector(tracer, b, front), flow_b))
    sides = [
        (Flow(tuple(rest_a), flow_a.origin), (*shape_a[:-1], 1)),
        (Flow(tuple(rest_b)), (*shape_b[:-2], 1, shape_b[-1])),
    ]
    return Flow(meet(tracer, sides, ndim, any), flow_a.origin or flow_b.origin)


def _whole_heads(tracer: Labeller, layer: Layer | None, at: int, front: range) -> list[Layer]:
    """The layer with all channels of a head made one, if it tells heads apart."""
    if layer is None or not any(layer.over(d) for d in front):
        return []
    tracer.role(layer.slot, "producer")
    return [Layer(collapse(tracer, layer, [at]).labels, layer.zero)]


def _vector(tracer: Labeller, layer: Layer | None, front: range = range(0)) -> Layer | None:
    if layer is None:
        return None
    layer = collapse(tracer, layer, list(front))
    return Layer(layer.labels.reshape(-1), layer.zero, layer.slot)


def attention(tracer: Labeller, call: Call) -> tuple[Flow, ...]:
    """softmax(q k^T) v of [B, H, L, d] tensors: the heads of all three are the same; v's dimensions come out."""
    q, k, v = call.args[:3]
    flows = [tracer.flow(t) for t in (q, k, v)]
    wide = (*q.shape[:-1], k.shape[-2])
    scores = batched(
        tracer,
        Call(call.name, (), {}, call.out[0]),
        (flows[0], tuple(q.shape)),
        (_swapped(flows[1]), (*k.shape[:-2], k.shape[-1], k.shape[-2])),
        4,
    )
    mask = call.kwargs.get("attn_mask", call.arg(3, "attn_bias"))
    if isinstance(mask, torch.Tensor):
        operands = [(scores, wide), (tracer.flow(mask), tuple(mask.shape))]
        scores = Flow(meet(tracer, operands, 4, all))
    for layer in scores.layers:
        if layer.over(3):
            tracer.protect(layer.labels, "softmax over channels")
    weights = Flow(tuple(Layer(layer.labels, False) for layer in scores.layers))
    out = batched(tracer, Call(call.name, (), {}, call.out[0]), (weights, wide), (flows[2], tuple(v.shape)), 4)
    return (out,)


def _swapped(flow: Flow) -> Flow:
    return Flow(tuple(Layer(x.labels.swapaxes(-1, -2), x.zero, x.slot) for x in flow.layers), flow.origin)


def softmax(tracer: Labeller, call: Call) -> Flow:
    """y = exp(x) / sum exp(x) over one dimension: a zero becomes a share, so channels summed over have to stay.

    Where labels change along other dimensions too, what is summed over is branches of a channel, which go together.
    """
    flow, d = tracer.flow(call.args[0]), int(call.args[1]) % max(call.out.dim(), 1)
    layers = []
    for layer in flow.layers:
        if layer.dims == (d,):
            tracer.protect(layer.labels, "softmax over channels")
        layers.append(collapse(tracer, layer, [d]) if len(layer.dims) > 1 else layer)
    return Flow(tuple(layers), flow.origin, flow.uniform).with_zero(False)


def deformable(tracer: Labeller, call: Call) -> Flow:
    """A convolution at places that are computed: those stay, one set of them for all channels."""
    x, weight, offset, mask, bias = call.args[:5]
    groups, sets = int(call.args[11]), int(call.args[12])
    for tensor in (offset, mask):
        for layer in tracer.flow(tensor).layers:
            tracer.protect(layer.labels, f"places in {call.name}")
    if sets > 1:
        return tracer.unknown(call, "several sets of places")
    given: tuple[Any, ...] = (x, weight, bias, [], [], [], False, [], groups)
    return convolution(tracer, Call("aten.convolution", given, {}, call.out))


def embedding(tracer: Labeller, call: Call) -> Flow:
    """y[.., c] = w[i, c] for an index i: the columns are channels, the rows have to stay."""
    weight = tracer.flow(call.args[0])
    rows, rest = channel(tracer, weight, 0)
    if rows is not None:
        tracer.protect(rows.labels, "entries of an embedding")
    for layer in rest:
        tracer.role(layer.slot, "producer")
    return Flow(tuple(Layer(placed(x.labels.reshape(-1), call.out.dim(), -1)) for x in rest if x.labels.size > 1))


RULES: dict[str, Rule] = {
    **named(convolution, "convolution"),
    **named(matmul, "mm addmm bmm baddbmm mv addmv"),
    **named(
        attention,
        "_scaled_dot_product_flash_attention_for_cpu _scaled_dot_product_flash_attention "
        "_scaled_dot_product_efficient_attention _scaled_dot_product_cudnn_attention "
        "_scaled_dot_product_fused_attention_overrideable",
    ),
    "torchvision.deform_conv2d": deformable,
    **named(softmax, "_softmax _log_softmax _safe_softmax"),
    **named(embedding, "embedding"),
}
