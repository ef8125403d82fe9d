"""Operators over space, and reductions: they mix positions of one channel, never channels."""

from __future__ import annotations

from typing import Any

import numpy as np

from compress.prune.labels import Flow, Layer, placed
from compress.prune.rules.base import CONSTANT, Call, Labeller, Rule, collapse, meet, named, protect_flow, tensors


def spatial(n: int) -> Rule:
    """Pooling, interpolation, reflection: positions in the last n dimensions are mixed; zero stays zero."""

    def rule(tracer: Labeller, call: Call) -> Any:
        flow, x, out = tracer.flow(call.args[0]), call.args[0], tensors(call.out)[0]
        mixed = [d for d in range(x.dim()) if d >= x.dim() - n or x.shape[d] != out.shape[d]]
        layers = tuple(collapse(tracer, layer, [d for d in mixed if len(layer.dims) > 1]) for layer in flow.layers)
        if x.dim() != out.dim() or any(layer.over(d) for layer in layers for d in mixed):
            return tracer.unknown(call)
        result = Flow(tuple(layer for layer in layers if layer.labels.size > 1), flow.origin, flow.uniform)
        # Where a channel's largest elements lie is of that channel too.
        return (result, result.with_zero(False)) if isinstance(call.out, tuple) else result

    return rule


def sample(n: int) -> Rule:
    """y[c] = x[c] at the places that a grid names, which are not channels."""
    mixed = spatial(n)

    def rule(tracer: Labeller, call: Call) -> Any:
        protect_flow(tracer, tracer.flow(call.args[1]), f"places in {call.name}")
        return mixed(tracer, call)

    return rule


def unpool(n: int) -> Rule:
    """y[c] = x[c] at the places in its channel that an index names, else 0."""
    mixed = spatial(n)

    def rule(tracer: Labeller, call: Call) -> Any:
        pair = [(tracer.flow(t), tuple(t.shape)) for t in call.args[:2]]
        meet(tracer, pair, call.args[0].dim(), all)
        return mixed(tracer, call)

    return rule


def pad(tracer: Labeller, call: Call) -> Flow:
    """y = x between constants: those between may go, the added ones only where their number can be patched."""
    x, flow, widths = call.args[0], tracer.flow(call.args[0]), call.args[1]
    moved = []
    for layer in flow.layers:
        labels = layer.labels
        for k, d in enumerate(range(x.dim() - 1, x.dim() - 1 - len(widths) // 2, -1)):
            left, right = int(widths[2 * k]), int(widths[2 * k + 1])
            if not layer.over(d) or not (left or right):
                continue
            if len(layer.dims) > 1 or left < 0 or right < 0:
                return tracer.unknown(call, "padded channels")
            made = [tracer.fresh(width) for width in (left, right)]
            for new in made:
                if len(new) and not tracer.keeps(len(new)):
                    tracer.protect(new, "padded channels")
            labels = placed(np.concatenate([made[0], labels.reshape(-1), made[1]]), x.dim(), d)
        moved.append(labels)
    flow = flow.moved(moved)
    return flow if not call.arg(2, "value", 0) else flow.with_zero(False)


def _dims(call: Call) -> list[int]:
    ndim = call.args[0].dim()
    chosen = call.arg(1, "dim")
    if call.name in ("aten.linalg_vector_norm", "aten.norm"):
        chosen = call.arg(2, "dim")
    if chosen is None or (isinstance(chosen, list | tuple) and not chosen) or ndim == 0:
        return list(range(ndim))
    return sorted({int(d) % ndim for d in (chosen if isinstance(chosen, list | tuple) else [chosen])})


def _reduced(tracer: Labeller, call: Call, counts: bool, still_zero: bool, statistic: bool = False) -> Any:
    """y = x reduced over some dimensions.

    A layer that changes along other dimensions too is a set of heads, which go whole. ``counts``: the result depends on
    how many elements are reduced, so that channels reduced over have to stay; of a ``statistic`` they may go, as under
    a layer norm, and it is that of the channels that are left.
    """
    flow, out = tracer.flow(call.args[0]), tensors(call.out)[0]
    dims, ndim = _dims(call), call.args[0].dim()
    keep = out.dim() == ndim
    layers = []
    for layer in flow.layers:
        tracer.role(layer.slot, "producer")
        if all(d in dims for d in layer.dims):
            if statistic:
                tracer.altered(layer.labels, "under a norm over channels")
            elif counts:
                tracer.protect(layer.labels, f"{call.name} over channels")
            elif not layer.zero:
                tracer.altered(layer.labels, CONSTANT)
            continue
        labels = collapse(tracer, layer, dims).labels
        if not keep:
            labels = labels.reshape([n for d, n in enumerate(labels.shape) if d not in dims])
        layers.append(Layer(labels, layer.zero and still_zero))
    result = Flow(tuple(layers), flow.origin)
    if call.name == "aten.var_mean":
        return result, result
    return (result,) if isinstance(call.out, tuple) else result


def total(tracer: Labeller, call: Call) -> Any:
    """y = sum of x: a zero adds nothing."""
    return _reduced(tracer, call, counts=False, still_zero=True)


def norm(tracer: Labeller, call: Call) -> Any:
    """y = (sum of |x|^p)^(1/p): a zero adds nothing unless p is negative, where the least counts."""
    p = call.arg(1, "ord", 2)
    return _reduced(tracer, call, counts=isinstance(p, int | float) and p < 0, still_zero=True)


def mean(tracer: Labeller, call: Call) -> Any:
    """y = mean, extreme or spread of x: over channels it is that of the channels that are left."""
    return _reduced(tracer, call, counts=True, still_zero=True, statistic=True)


def middle(tracer: Labeller, call: Call) -> Any:
    """y = product or median of x, or an extreme and where it is: over channels it depends on which there are."""
    return _reduced(tracer, call, counts=True, still_zero=True)


def ranked(tracer: Labeller, call: Call) -> Any:
    """y = the elements of x in order, or the largest of them, along a dimension without channels."""
    x, flow = call.args[0], tracer.flow(call.args[0])
    d = int(call.arg(2 if call.name == "aten.topk" else 1, "dim", -1)) % max(x.dim(), 1)
    if any(layer.over(d) for layer in flow.layers):
        return tracer.unknown(call, "an order of channels")
    return (flow,)


def windows(tracer: Labeller, call: Call) -> Flow:
    """y[.., k, .., i] = x[.., k * step + i, ..]: runs of a dimension without channels, along a new last one."""
    x, flow = call.args[0], tracer.flow(call.args[0])
    d = int(call.args[1]) % max(x.dim(), 1)
    if any(layer.over(d) for layer in flow.layers):
        return tracer.unknown(call, "runs of channels")
    return flow.moved([layer.labels[..., None] for layer in flow.layers])


def shifted(tracer: Labeller, call: Call) -> Any:
    """y = log sum exp x and the like: a zero becomes a constant."""
    return _reduced(tracer, call, counts=True, still_zero=False)


def cumulative(tracer: Labeller, call: Call) -> Flow:
    """y[j] = sum of x[i] up to j, along a dimension without channels."""
    flow, d = tracer.flow(call.args[0]), int(call.args[1]) % max(call.args[0].dim(), 1)
    layers = tuple(collapse(tracer, x, [d] if len(x.dims) > 1 else []) for x in flow.layers)
    if any(layer.over(d) for layer in layers):
        return tracer.unknown(call, "a running sum over channels")
    return Flow(layers, flow.origin)


def roi(tracer: Labeller, call: Call) -> Any:
    """y[k, c] = x[c] pooled over box k."""
    flow = tracer.flow(call.args[0])
    protect_flow(tracer, tracer.flow(call.args[1]), f"places in {call.name}")
    layers = []
    for layer in flow.layers:
        if not layer.over(1):
            return tracer.unknown(call)
        layers.append(collapse(tracer, layer, [d for d in layer.dims if d != 1]))
    result = Flow(tuple(layers), flow.origin)
    return (result,) if isinstance(call.out, tuple) else result


_SPATIAL = {
    n: " ".join(
        f"{kind}{n}d"
        for kind in ("max_pool", "avg_pool", "adaptive_avg_pool", "adaptive_max_pool", "upsample_nearest",
                     "_upsample_nearest_exact", "reflection_pad", "replication_pad")
    )
    for n in (1, 2, 3)
}  # fmt: skip

RULES: dict[str, Rule] = {
    **named(spatial(1), f"{_SPATIAL[1]} upsample_linear1d"),
    **named(
        spatial(2),
        f"{_SPATIAL[2]} _adaptive_avg_pool2d max_pool2d_with_indices upsample_bilinear2d upsample_bicubic2d "
        "_upsample_bilinear2d_aa _upsample_bicubic2d_aa fractional_max_pool2d",
    ),
    **named(spatial(3), f"{_SPATIAL[3]} _adaptive_avg_pool3d max_pool3d_with_indices upsample_trilinear3d"),
    **named(sample(2), "grid_sampler_2d"),
    **named(sample(3), "grid_sampler_3d"),
    **named(unpool(2), "max_unpool2d"),
    **named(unpool(3), "max_unpool3d"),
    **named(pad, "constant_pad_nd"),
    **named(total, "sum nansum"),
    **named(norm, "linalg_vector_norm norm"),
    **named(mean, "mean amax amin var std var_mean"),
    **named(middle, "max min prod median nanmedian"),
    **named(ranked, "topk sort"),
    **named(windows, "unfold"),
    **named(shifted, "logsumexp argmax argmin any all"),
    **named(cumulative, "cumsum cumprod"),
    "torchvision.roi_align": roi,
    "torchvision.roi_pool": roi,
}
