"""Operators that move elements: the labels are moved in the same way, so a shuffle is a shuffle of the labels."""

from __future__ import annotations

from typing import Any

import numpy as np

from compress.prune.labels import Flow, Labels, Layer, placed, reshape_labels, shrink
from compress.prune.rules.base import Call, Labeller, Rule, collapse, dim_of, meet, named, tensors


def same(tracer: Labeller, call: Call) -> Flow:
    """y = x under another name, type or memory layout."""
    return tracer.flow(call.args[0])


def like(tracer: Labeller, call: Call) -> Flow:
    """y is of x's size, holding something else."""
    return tracer.flow(call.args[0]).with_zero(False)


def reshape(tracer: Labeller, call: Call) -> Flow:
    """The labels are reshaped as the tensor is; what a run of channels is split into has to stay a rectangle."""
    x = call.args[0]
    return reshaped(tracer, call, tracer.flow(x), tuple(x.shape), tuple(call.out.shape))


def reshaped(tracer: Labeller, call: Call, flow: Flow, old: tuple[int, ...], new: tuple[int, ...]) -> Flow:
    moved: list[Labels] = []
    for layer in flow.layers:
        found = reshape_labels(layer.labels, old, new)
        if found is None:
            return tracer.unknown(call)
        moved.append(found[0])
        for rectangle in found[1]:
            tracer.rectangle(rectangle)
    return flow.moved(moved)


def restride(tracer: Labeller, call: Call) -> Flow:
    """The same tensor with new strides, as pooling to one pixel makes it; any other use is not followed."""
    flow, shape, strides = tracer.flow(call.args[0]), tuple(call.args[1]), tuple(call.args[2])
    # The tensor's old shape is gone; its labels still have it.
    pixel = shape[2:] == (1, 1) and strides[:2] == (shape[1], 1) and call.arg(3, "storage_offset") in (None, 0)
    same = all(len(x.labels.shape) == 4 and x.labels.shape[1] == shape[1] and x.dims == (1,) for x in flow.layers)
    return flow if pixel and same else tracer.unknown(call)


def permute(tracer: Labeller, call: Call) -> Flow:
    """The labels are permuted as the tensor is."""
    flow, ndim = tracer.flow(call.args[0]), call.args[0].dim()
    if not flow.layers:
        return flow
    if call.name == "aten.permute":
        order = [d % ndim for d in call.args[1]]
    else:
        a, b = (0, ndim - 1) if call.name in ("aten.t", "aten.t_") else (call.args[1] % ndim, call.args[2] % ndim)
        order = list(range(ndim))
        order[a], order[b] = order[b], order[a]
    return flow.moved([layer.labels.transpose(order) for layer in flow.layers])


def expand(tracer: Labeller, call: Call) -> Flow:
    """Repeats along dimensions of size 1: labels broadcast already."""
    flow, ndim = tracer.flow(call.args[0]), call.out.dim()
    return flow.moved([x.labels.reshape((1,) * (ndim - x.labels.ndim) + x.labels.shape) for x in flow.layers])


def repeat(tracer: Labeller, call: Call) -> Flow:
    """y = x tiled: so are the labels along dimensions that carry channels."""
    flow, times = tracer.flow(call.args[0]), call.args[1]
    moved = []
    for layer in flow.layers:
        wide = layer.labels.reshape((1,) * (len(times) - layer.labels.ndim) + layer.labels.shape)
        moved.append(np.tile(wide, [t if n > 1 else 1 for t, n in zip(times, wide.shape, strict=True)]))
    return flow.moved(moved)


def flip(tracer: Labeller, call: Call) -> Flow:
    """The labels are flipped as the tensor is."""
    flow = tracer.flow(call.args[0])
    return flow.moved([np.flip(layer.labels, call.args[1]) for layer in flow.layers])


def roll(tracer: Labeller, call: Call) -> Flow:
    """The labels are rolled as the tensor is; equal runs that change places have to stay of one length."""
    flow, dims = tracer.flow(call.args[0]), call.arg(2, "dims", ())
    if flow.layers and not dims:
        return tracer.unknown(call)
    for shift, d in zip(call.args[1], dims, strict=True):
        size = int(call.args[0].shape[d])
        run = min(shift % size, -shift % size) if size else 0
        if run and size % run == 0:
            _rectangles(tracer, flow, d % call.out.dim(), size // run)
    return flow.moved([np.roll(layer.labels, call.args[1], dims) for layer in flow.layers])


def concat(tracer: Labeller, call: Call) -> Flow:
    """y = [a, b, ...]: along the dimension labels are concatenated, along others they are equal."""
    parts = [t for t in call.args[0] if t.dim() == call.out.dim()]
    d = dim_of(call, 1, call.out.dim())
    return joined(tracer, [(tracer.flow(t), tuple(t.shape)) for t in parts], d, call.out.dim())


def stack(tracer: Labeller, call: Call) -> Flow:
    """y = [a, b, ...] along a new dimension, which carries no channels."""
    d = dim_of(call, 1, call.out.dim())
    parts = []
    for t in call.args[0]:
        shape = (*t.shape[:d], 1, *t.shape[d:])
        flow = tracer.flow(t)
        parts.append((flow.moved([layer.labels.reshape(_put(layer.labels.shape, d)) for layer in flow.layers]), shape))
    return joined(tracer, parts, d, call.out.dim())


def _put(shape: tuple[int, ...], d: int) -> tuple[int, ...]:
    return (*shape[:d], 1, *shape[d:])


def joined(tracer: Labeller, parts: list[tuple[Flow, tuple[int, ...]]], d: int, ndim: int) -> Flow:
    """Parts side by side along dimension ``d``."""
    along = [[layer for layer in flow.layers if layer.over(d)] for flow, _ in parts]
    across = [
        (Flow(tuple(x for x in flow.layers if not x.over(d)), flow.origin, flow.uniform), (*s[:d], 1, *s[d + 1 :]))
        for flow, s in parts
    ]
    origin = next((flow.origin for flow, _ in parts if flow.origin), "")
    layers = list(meet(tracer, across, ndim, all))
    if any(along) or any(flow.blank for flow, _ in parts):
        for own, (flow, shape) in zip(along, parts, strict=True):
            if not own and shape[d] > 0:
                # Channels that are no layer's: they stay, and hold none of those beside them.
                labels = tracer.fresh(shape[d])
                if not flow.blank:
                    tracer.protect(labels, f"side by side with {flow.origin or 'a constant'}")
                own.append(Layer(placed(labels, ndim, d)))
        if any(len(own) != 1 and shape[d] > 0 for own, (_, shape) in zip(along, parts, strict=True)):
            for own, (flow, _) in zip(along, parts, strict=True):
                for layer in own:
                    missing = next((o.origin for o, _ in parts if not any(x.over(d) for x in o.layers)), "")
                    tracer.protect(layer.labels, f"side by side with {missing or flow.origin or 'a constant'}")
            return Flow(tuple(layers), origin)
        owns = [own[0] for own in along if own]
        spread = {e for layer in owns for e in layer.dims if e != d}
        sizes = {e: next(s[e] for (_, s) in parts) for e in spread}
        wide = [
            np.broadcast_to(x.labels, [sizes.get(e, n) if e != d else n for e, n in enumerate(x.labels.shape)])
            for x in owns
        ]
        for layer in owns:
            tracer.role(layer.slot, "producer")
        layers.append(Layer(shrink(np.concatenate(wide, axis=d)), all(layer.zero for layer in owns)))
    return Flow(tuple(layers), origin if not layers else "")


def split(tracer: Labeller, call: Call) -> list[Flow]:
    """y_k = a run of x: the labels are sliced; runs of one length have to stay of one length."""
    x, flow = call.args[0], tracer.flow(call.args[0])
    d = dim_of(call, 2, x.dim())
    sizes = [part.shape[d] for part in call.out]
    ends = np.cumsum(sizes)[:-1]
    if len(set(sizes)) == 1 and len(sizes) > 1:
        _rectangles(tracer, flow, d, len(sizes))
    pieces = [np.split(y.labels, ends, axis=d) if y.over(d) else [y.labels] * len(sizes) for y in flow.layers]
    return [picked(tracer, flow, [shrink(piece[k]) for piece in pieces]) for k in range(len(sizes))]


def picked(tracer: Labeller, flow: Flow, moved: list[Labels]) -> Flow:
    """Some of the channels; of a single one nothing tells any more which it is."""
    for layer, labels in zip(flow.layers, moved, strict=True):
        if labels.size == 1:
            tracer.protect(layer.labels, "one channel is picked by its number")
    return flow.moved(moved)


def _rectangles(tracer: Labeller, flow: Flow, d: int, parts: int, loose: bool = False) -> None:
    for layer in flow.layers:
        if layer.dims == (d,):
            tracer.rectangle(layer.labels.reshape(parts, -1), loose)


def unbind(tracer: Labeller, call: Call) -> list[Flow]:
    """y_k = x[k] along one dimension."""
    x, flow = call.args[0], tracer.flow(call.args[0])
    d = dim_of(call, 1, x.dim())
    return [_chosen(tracer, flow, d, k) for k in range(x.shape[d])]


def select(tracer: Labeller, call: Call) -> Flow:
    """y = x[k] along one dimension."""
    x, flow = call.args[0], tracer.flow(call.args[0])
    return _chosen(tracer, flow, call.args[1] % x.dim(), call.args[2])


def _chosen(tracer: Labeller, flow: Flow, d: int, k: int) -> Flow:
    labels = [shrink(np.asarray(x.labels.take(k if x.over(d) else 0, axis=d))) for x in flow.layers]
    return picked(tracer, flow, labels)


def slice_(tracer: Labeller, call: Call) -> Flow:
    """y = x[start:end:step] along one dimension: the labels are sliced; equal runs have to stay of one length."""
    x, flow = call.args[0], tracer.flow(call.args[0])
    d, size = dim_of(call, 1, x.dim()), int(x.shape[dim_of(call, 1, x.dim())])
    start, stop, step = slice(call.arg(2, "start"), call.arg(3, "end"), call.arg(4, "step", 1)).indices(size)
    if (start, stop, step) == (0, size, 1):
        return flow
    run = stop - start
    if step > 1 and size % step == 0:
        _rectangles(tracer, flow, d, size // step)
    elif step == 1 and 0 < run < size and size % run == 0 and start % run == 0:
        _rectangles(tracer, flow, d, size // run, loose=True)
    where = (slice(None),) * d + (slice(start, stop, step),)
    return picked(tracer, flow, [shrink(y.labels[where]) if y.over(d) else y.labels for y in flow.layers])


def index_select(tracer: Labeller, call: Call) -> Flow:
    """y = x[index] along one dimension, with an index that the code fixes."""
    flow, d = tracer.flow(call.args[0]), dim_of(call, 1, call.args[0].dim())
    index = tracer.value(call.args[2])
    if index is None:
        labelled = any(layer.over(d) for layer in flow.layers)
        return tracer.unknown(call, "an index that is computed") if labelled else flow
    for layer in flow.layers:
        _numbered(tracer, layer, [d])
    labels = [shrink(x.labels.take(index, axis=d)) if x.over(d) else x.labels for x in flow.layers]
    return flow.moved(labels)


def _numbered(tracer: Labeller, layer: Layer, dims: list[int]) -> None:
    """A channel's number depends on the channels before it, which an index made by the code hides."""
    if any(layer.over(d) for d in dims):
        tracer.protect(layer.labels, "channels are picked by their numbers")


def index(tracer: Labeller, call: Call) -> Flow:
    """y = x[.., index, ..] with indices that the code fixes, or of dimensions that carry no channels."""
    x, flow = call.args[0], tracer.flow(call.args[0])
    where = list(call.args[1]) + [None] * (x.dim() - len(call.args[1]))
    if not flow.layers:
        return flow
    masks = [i for i in where if i is not None and str(i.dtype) in ("torch.bool", "torch.uint8")]
    if any(i.dim() > 1 for i in masks):
        return tracer.unknown(call, "an index by a mask")
    moved = []
    for layer in flow.layers:
        values: list[Any] = []
        for d, i in enumerate(where):
            if i is None:
                values.append(slice(None))
            elif layer.over(d):
                value = tracer.value(i)
                if value is None:
                    return tracer.unknown(call, "an index that is computed")
                values.append(value)
            else:
                if any(i is mask for mask in masks):
                    return tracer.unknown(call, "an index by a mask")
                # Every position of a dimension without channels has the same label.
                values.append(np.zeros(tuple(i.shape), dtype=np.int64))
        _numbered(tracer, layer, [d for d, i in enumerate(where) if i is not None])
        moved.append(shrink(layer.labels[tuple(values)]))
    return flow.moved(moved)


def gather(tracer: Labeller, call: Call) -> Flow:
    """y[.., j, ..] = x[.., index[.., j, ..], ..]: an index that the code fixes picks labels along one dimension."""
    x, flow, chosen = call.args[0], tracer.flow(call.args[0]), call.args[2]
    d = call.args[1] % max(x.dim(), 1)
    moved = []
    for layer in flow.layers:
        if any(layer.over(e) and e != d and chosen.shape[e] != x.shape[e] for e in range(x.dim())):
            return tracer.unknown(call)
        if not layer.over(d):
            moved.append(layer.labels)
            continue
        value = tracer.value(chosen)
        if value is None:
            return tracer.unknown(call, "an index that is computed")
        full = np.broadcast_to(layer.labels, [n if layer.over(e) else chosen.shape[e] for e, n in enumerate(x.shape)])
        _numbered(tracer, layer, [d])
        moved.append(shrink(np.take_along_axis(full, value, axis=d)))
    return flow.moved(moved)


def squeeze(tracer: Labeller, call: Call) -> Flow:
    """Dimensions of size 1 come or go."""
    x = call.args[0]
    return reshaped(tracer, call, tracer.flow(x), tuple(x.shape), tuple(call.out.shape))


def squeeze_in_place(tracer: Labeller, call: Call) -> Flow:
    """A dimension of size 1 comes or goes; it has to be named, since the old shape is gone."""
    flow, now, at = tracer.flow(call.args[0]), call.out.dim(), call.arg(1, "dim")
    moved = []
    for layer in flow.layers:
        change = now - layer.labels.ndim
        if change == 0:
            moved.append(layer.labels)
        elif isinstance(at, int) and change in (1, -1):
            put = np.expand_dims if change == 1 else np.squeeze
            moved.append(put(layer.labels, at % max(now, layer.labels.ndim)))
        else:
            return tracer.unknown(call)
    return flow.moved(moved)


def view_as_real(tracer: Labeller, call: Call) -> Flow:
    """y[.., 0] and y[.., 1] are the parts of a complex x."""
    flow = tracer.flow(call.args[0])
    return flow.moved([layer.labels[..., None] for layer in flow.layers])


def pixel_shuffle(tracer: Labeller, call: Call) -> Flow:
    """y[c, h r + i, w r + j] = x[c r r + i r + j, h, w]: the r x r channels of one output live or die together."""
    flow, d = tracer.flow(call.args[0]), call.args[0].dim() - 3
    inner = call.args[1] ** 2
    return _merged(tracer, flow, d, inner)


def _merged(tracer: Labeller, flow: Flow, d: int, inner: int) -> Flow:
    moved = []
    for layer in flow.layers:
        labels = collapse(tracer, layer, [e for e in layer.dims if e > d]).labels
        if layer.over(d):
            split = labels.reshape(*labels.shape[:d], -1, inner, *labels.shape[d + 1 :])
            first = split.take([0], axis=d + 1)
            tracer.equate(split, np.broadcast_to(first, split.shape))
            labels = first.squeeze(d + 1)
        moved.append(labels)
    return flow.moved(moved)


def pixel_unshuffle(tracer: Labeller, call: Call) -> Flow:
    """Each channel becomes r x r channels."""
    flow, d = tracer.flow(call.args[0]), call.args[0].dim() - 3
    layers = [collapse(tracer, layer, [e for e in layer.dims if e > d]) for layer in flow.layers]
    return flow.moved([np.repeat(x.labels, call.args[1] ** 2 if x.over(d) else 1, axis=d) for x in layers])


def channel_shuffle(tracer: Labeller, call: Call) -> Flow:
    """y[j g + i] = x[i n + j]: the labels are shuffled, and groups stay of one size."""
    flow, groups = tracer.flow(call.args[0]), call.args[1]
    _rectangles(tracer, flow, 1, groups)
    moved = []
    for layer in flow.layers:
        labels = layer.labels
        if layer.over(1):
            split = labels.reshape(labels.shape[0], groups, -1, *labels.shape[2:])
            labels = split.swapaxes(1, 2).reshape(labels.shape)
        moved.append(labels)
    return flow.moved(moved)


def unfold(tracer: Labeller, call: Call) -> Flow:
    """Patches laid out as channels: each channel of an image [N, C, H, W] becomes k x k rows."""
    flow, kernel, c = tracer.flow(call.args[0]), int(np.prod(call.args[1])), call.args[0].dim() - 3
    layers = [collapse(tracer, layer, [d for d in layer.dims if d > c]) for layer in flow.layers]
    return flow.moved([np.repeat(x.labels, kernel if x.over(c) else 1, axis=c)[..., 0] for x in layers])


def fold(tracer: Labeller, call: Call) -> Flow:
    """Patches added up into images: the k x k rows of one channel live or die together."""
    flow, kernel = tracer.flow(call.args[0]), int(np.prod(call.args[2]))
    merged = _merged(tracer, flow, call.args[0].dim() - 2, kernel)
    return merged.moved([layer.labels[..., None] for layer in merged.layers])


def copy(tracer: Labeller, call: Call) -> Flow:
    """x takes y's values in place: their channels are equal."""
    x, y = call.args[:2]
    operands = [(tracer.flow(x), tuple(x.shape)), (tracer.flow(y), tuple(y.shape))]
    return Flow(meet(tracer, operands, x.dim(), lambda zeros: zeros[1]), operands[1][0].origin)


def glu(tracer: Labeller, call: Call) -> Flow:
    """y = a * sigmoid(b) for the halves of x: they meet, and a zero in a stays."""
    x, flow, d = call.args[0], tracer.flow(call.args[0]), dim_of(call, 1, call.args[0].dim(), -1)
    half = x.shape[d] // 2
    shape = (*x.shape[:d], half, *x.shape[d + 1 :])
    halves = [Flow(tuple(Layer(_half(y.labels, d, k), y.zero) for y in flow.layers), flow.origin) for k in (0, 1)]
    return Flow(meet(tracer, [(part, shape) for part in halves], x.dim(), lambda zeros: zeros[0]), flow.origin)


def _half(labels: Labels, d: int, k: int) -> Labels:
    return labels if labels.shape[d] == 1 else np.split(labels, 2, axis=d)[k]


def written(tracer: Labeller, call: Call) -> Flow:
    """x with one value all over."""
    flow = tracer.flow(call.args[0])
    return flow.with_zero(call.arg(1) == 0) if not tensors(call.args[1:]) else tracer.unknown(call)


RULES: dict[str, Rule] = {
    **named(
        same,
        "detach detach_ alias clone contiguous _to_copy lift_fresh native_dropout dropout feature_dropout empty_like "
        "zeros_like",
    ),
    **named(like, "ones_like full_like rand_like randn_like normal_ uniform_ exponential_ log_normal_"),
    **named(reshape, "view flatten unflatten"),
    **named(view_as_real, "view_as_real"),
    **named(squeeze, "unsqueeze squeeze"),
    **named(squeeze_in_place, "unsqueeze_ squeeze_"),
    **named(restride, "as_strided_"),
    **named(permute, "permute transpose transpose_ t t_"),
    **named(expand, "expand"),
    **named(repeat, "repeat"),
    **named(flip, "flip"),
    **named(roll, "roll"),
    **named(concat, "cat"),
    **named(stack, "stack"),
    **named(split, "split split_with_sizes chunk unsafe_split unsafe_split_with_sizes unsafe_chunk"),
    **named(unbind, "unbind"),
    **named(select, "select"),
    **named(slice_, "slice"),
    **named(index_select, "index_select"),
    **named(index, "index"),
    **named(gather, "gather"),
    **named(pixel_shuffle, "pixel_shuffle"),
    **named(pixel_unshuffle, "pixel_unshuffle"),
    **named(channel_shuffle, "channel_shuffle native_channel_shuffle"),
    **named(unfold, "im2col"),
    **named(fold, "col2im"),
    **named(copy, "copy_ copy"),
    **named(glu, "glu"),
    **named(written, "fill_ fill"),
}
