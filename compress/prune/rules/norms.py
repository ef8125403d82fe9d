"""Norms: one scale and shift for each channel. Those that average over channels change the others when one goes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from compress.prune.labels import Flow, Layer
from compress.prune.rules.base import Call, Labeller, Rule, collapse, meet, named, plain


def affine(
    tracer: Labeller, x: torch.Tensor, flow: Flow, parameters: list[torch.Tensor | None], dim: int, zero: bool
) -> Flow:
    """y = x * w + b with w and b laid along the dimensions from ``dim`` on: masked with both, a channel is zero."""
    given = [tensor for tensor in parameters if tensor is not None]
    operands = [
        (flow.with_zero(zero), tuple(x.shape)),
        *((_laid(tracer.flow(tensor), x.dim(), dim), _shape(tensor, x.dim(), dim)) for tensor in given),
    ]
    # The last operand decides: a shift that is masked makes a zero whatever the statistics are.
    return Flow(meet(tracer, operands, x.dim(), (lambda zeros: zeros[-1]) if len(operands) > 1 else all), flow.origin)


def _shape(tensor: torch.Tensor, ndim: int, dim: int) -> tuple[int, ...]:
    return (1,) * dim + tuple(tensor.shape) + (1,) * (ndim - dim - tensor.dim())


def _laid(flow: Flow, ndim: int, dim: int) -> Flow:
    def wide(layer: Layer) -> Layer:
        labels = layer.labels
        shape = (1,) * dim + labels.shape + (1,) * (ndim - dim - labels.ndim)
        return Layer(labels.reshape(shape), layer.zero, layer.slot)

    return Flow(tuple(wide(layer) for layer in flow.layers), flow.origin, flow.uniform)


def batch_norm(tracer: Labeller, call: Call) -> tuple[Flow, ...]:
    """y[c] = (x[c] - mean[c]) / sqrt(var[c] + eps) * w[c] + b[c]: all of one channel."""
    x, weight, bias = call.args[:3]
    # One overload has no running statistics: other arguments are in their places.
    mean, variance = (t if isinstance(t, torch.Tensor) else None for t in call.args[3:5])
    flow = tracer.flow(x)
    layer = plain(flow, 1)
    if layer is not None and _own(tracer, layer, (weight, bias, mean), variance):
        return (flow if layer.zero else flow.with_zero(weight is not None),)
    layers = []
    for layer in flow.layers:
        spread = [d for d in layer.dims if d != 1]
        if not layer.over(1) and _by_batch(call):
            # Statistics over channels, as of a kernel's columns: those of the ones that are left.
            tracer.role(layer.slot, "consumer")
            tracer.altered(layer.labels, "under a norm over channels")
            layers.append(Layer(layer.labels, False))
            continue
        if not layer.over(1):
            tracer.protect(layer.labels, "channels in several dimensions reach a norm")
            continue
        tracer.role(layer.slot, "producer")
        layers.append(collapse(tracer, layer, spread))
    flow = Flow(tuple(layers), flow.origin)
    if variance is not None:
        for layer in tracer.flow(variance).layers:
            # Masking a variance would divide by zero; it only has to be cut.
            tracer.role(layer.slot, "statistic")
    out = affine(tracer, x, flow, [mean, variance, weight, bias], 1, True)
    rows = [layer for layer in flow.layers if layer.over(1)]
    centred = all(layer.zero for layer in (*rows, *(() if mean is None else tracer.flow(mean).layers)))
    zero = _zero(tracer, centred, weight, bias)
    return (Flow(tuple(Layer(y.labels, zero and y.over(1)) for y in out.layers), out.origin, out.uniform),)


def _by_batch(call: Call) -> bool:
    """Whether a batch norm takes its statistics from what it is fed."""
    return any(value is True for value in call.args[3:6])


def _zero(tracer: Labeller, normed: bool, weight: torch.Tensor | None, bias: torch.Tensor | None) -> bool:
    """Whether x * w + b is zero for a masked channel: b is, and x or w is."""
    scale, shift = (None if t is None else [layer.zero for layer in tracer.flow(t).layers] for t in (weight, bias))
    return (shift is None or all(shift)) and (normed or (bool(scale) and all(scale or ())))


def _own(tracer: Labeller, layer: Layer, made: Sequence[torch.Tensor | None], variance: torch.Tensor | None) -> bool:
    """Tie a norm's parameters, if nothing else uses them, to the channels of one layer."""
    made_too = all(t is None or tracer.tie(t, 0, layer.vector, "producer") for t in made)
    return made_too and (variance is None or tracer.tie(variance, 0, layer.vector, "statistic"))


def layer_norm(tracer: Labeller, call: Call) -> tuple[Flow, ...]:
    """y = (x - mean(x)) / std(x) * w + b over the last dimensions; once channels are gone, only the kept ones count."""
    x, shape = call.args[0], call.args[1]
    weight = call.args[2]
    bias = call.args[3] if call.name == "aten.native_layer_norm" else None
    return (_over_channels(tracer, x, x.dim() - len(shape), [weight, bias], "under a norm over channels"),)


def _over_channels(
    tracer: Labeller, x: torch.Tensor, first: int, parameters: list[torch.Tensor | None], reason: str
) -> Flow:
    flow = tracer.flow(x)
    if parameters[0] is None or any(
        tracer.flow(p).layers and tracer.flow(p).layers[0].slot is None for p in parameters if p is not None
    ):
        for layer in flow.layers:
            if layer.dims[-1] >= first:
                tracer.protect(layer.labels, "under a norm over channels that has no weights of its own")
        return flow.with_zero(False)
    layers = []
    for layer in flow.layers:
        layers.append(collapse(tracer, layer, [d for d in layer.dims if d < first <= layer.dims[-1]]))
        if layer.dims[-1] >= first:
            tracer.altered(layers[-1].labels, reason)
    whole = Flow(tuple(Layer(x.labels, True) for x in layers), flow.origin)
    out = affine(tracer, x, whole, parameters, first, True)
    # Positions that a norm does not average over take its shift, masked or not.
    rest = tuple(Layer(y.labels, y.dims[-1] >= first) for y in out.layers)
    return Flow(rest, out.origin)


def group_norm(tracer: Labeller, call: Call) -> tuple[Flow, ...]:
    """A layer norm over each group of channels: whole groups go, or any channel where there is one group."""
    x, weight, bias = call.args[:3]
    groups = int(call.args[6])
    if groups == 1:
        return (_over_channels(tracer, x, 1, [weight, bias], "under a norm over channels"),)
    flow = tracer.flow(x)
    layers = []
    for layer in flow.layers:
        if not layer.over(1):
            tracer.protect(layer.labels, "channels in several dimensions reach a norm")
            continue
        layers.append(collapse(tracer, layer, [d for d in layer.dims if d != 1]))
        labels = layers[-1].labels.reshape(int(call.args[6]), -1)
        tracer.equate(labels, np.broadcast_to(labels[:, :1], labels.shape))
    flow = Flow(tuple(layers), flow.origin)
    zero = _zero(tracer, all(layer.zero for layer in flow.layers), weight, bias)
    return (affine(tracer, x, flow, [weight, bias], 1, True).with_zero(zero),)


def weight_norm(tracer: Labeller, call: Call) -> tuple[Flow, ...]:
    """w = g v / |v|: the norm is over all but one dimension of v, and counts those of its columns that are left."""
    v, g = tracer.flow(call.args[0]), call.args[1]
    d = int(call.arg(2, "dim", 0))
    kept = []
    for layer in v.layers:
        if layer.dims != (d,):
            tracer.role(layer.slot, "consumer")
            tracer.altered(layer.labels, "under a norm over channels")
        else:
            # If v were masked to zero its direction would be 0 / 0; g alone makes the channel.
            tracer.role(layer.slot, "statistic")
        kept.append(layer)
    ndim = call.args[0].dim()
    operands: list[Any] = [(Flow(tuple(kept)), tuple(call.args[0].shape)), (tracer.flow(g), tuple(g.shape))]
    return (Flow(meet(tracer, operands, ndim, all)),)


RULES: dict[str, Rule] = {
    **named(batch_norm, "_native_batch_norm_legit_no_training native_batch_norm _native_batch_norm_legit"),
    **named(batch_norm, "cudnn_batch_norm _batch_norm_with_update"),
    **named(layer_norm, "native_layer_norm _fused_rms_norm"),
    **named(group_norm, "native_group_norm"),
    **named(weight_norm, "_weight_norm_interface"),
}
