"""Torch's own layers: a pass hears of their operators at once, without torch's way from a layer to an operator.

That way is a third of what a pass over a small network takes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from compress.prune.dispatch import LabelDispatch, operator
from compress.prune.meta import META

Tell = Callable[[LabelDispatch, Any, Tensor], Tensor | None]
"""Tells a pass what a layer does with its input and gives the output; None where only torch knows, or refuses."""

_ATEN = torch.ops.aten
_modes, _mode_at = torch._C._len_torch_dispatch_stack, torch._C._get_dispatch_stack_at
_functions = torch._C._len_torch_function_stack


def tell(modules: Iterable[nn.Module]) -> None:
    """Let those that are layers of torch's, of a copy on the meta device, tell a pass what they do."""
    for module in modules:
        leaf = LEAVES.get(type(module))
        if leaf is not None and "forward" not in vars(module):
            # Bound to the layer, so that a copy which the network makes of it is bound to itself.
            vars(module)["forward"] = MethodType(leaf, module)


def _leaf(tell_of: Tell) -> Callable[..., Any]:
    """The forward of a layer that tells the pass that runs; torch's own where there is none, or nothing to tell."""

    def forward(self: nn.Module, *inputs: Any, **named: Any) -> Any:
        mode = _mode_at(0) if _modes() == 1 else None
        if not isinstance(mode, LabelDispatch) or named or _functions() != mode.functions:
            out = None
        else:
            # Tensors that the pass has not seen may be of another kind, such as those of a vmap.
            known = len(inputs) == 1 and id(inputs[0]) in mode.sources
            out = tell_of(mode, self, inputs[0]) if known else None
        return type(self).forward(self, *inputs, **named) if out is None else out

    return forward


def _told(mode: LabelDispatch, func: Any, *args: Any) -> Tensor | None:
    """The first output of an operator whose shape is known, once the pass has labelled it."""
    op, sources = operator(func), []
    with torch._C._DisableTorchDispatch():
        for value in args:
            if isinstance(value, Tensor):
                if not value.is_meta:
                    return None
                sources.append(mode.source(value))
        out = None if op.shape is None else op.shape(*args)
        if out is None:
            return None
        outs = [out] if isinstance(out, Tensor) else list(out)
        mode.after(op, args, {}, out, outs, tuple(sources))
    return outs[0]


def _convolution(mode: LabelDispatch, layer: Any, x: Tensor) -> Tensor | None:
    stride, padding, dilation = layer.stride, layer.padding, layer.dilation
    if layer.padding_mode != "zeros" or not type(stride) is type(padding) is type(dilation) is tuple:
        return None
    sizes = stride, padding, dilation, False, (0,) * len(stride)
    return _told(mode, _ATEN.convolution.default, x, layer.weight, layer.bias, *sizes, layer.groups)


def _batch_norm(*dims: int) -> Tell:
    def tell_of(mode: LabelDispatch, layer: Any, x: Tensor) -> Tensor | None:
        if layer.training or layer.momentum is None or layer.running_mean is None or x.dim() not in dims:
            return None
        tensors = x, layer.weight, layer.bias, layer.running_mean, layer.running_var
        return _told(mode, _ATEN.native_batch_norm.default, *tensors, False, layer.momentum, layer.eps)

    return tell_of


def _adaptive_mean(mode: LabelDispatch, layer: Any, x: Tensor) -> Tensor | None:
    """A mean over all pixels where one is left, as torch takes it; it restrides what is not in the plain layout."""
    if x.dim() != 4 or layer.output_size not in (1, (1, 1)) or not x.is_contiguous():
        return None
    return _told(mode, _ATEN.mean.dim, x, [-1, -2], True)


def _layer_norm(mode: LabelDispatch, layer: Any, x: Tensor) -> Tensor | None:
    shape = list(layer.normalized_shape)
    return _told(mode, _ATEN.native_layer_norm.default, x, shape, layer.weight, layer.bias, layer.eps)


def _linear(mode: LabelDispatch, layer: Any, x: Tensor) -> Tensor | None:
    """Two operators more where there are further dimensions; torch does otherwise without a bias or if x is strided."""
    weight, bias = layer.weight, layer.bias
    if bias is None or x.dim() < 2 or not (x.is_meta and weight.is_meta and bias.is_meta and x.is_contiguous()):
        return None
    outputs, inputs = weight.shape
    fits = x.shape[-1] == inputs and bias.shape == (outputs,) and 0 not in x.shape
    if not fits or not x.dtype == weight.dtype == bias.dtype:
        return None
    # What shares storage with x or the weight is never seen by anybody else.
    shape, rows = x.shape, x.numel() // inputs
    if len(shape) > 2:
        x = _made(mode, _ATEN.view.default, (rows, inputs), x, [rows, inputs])
    weight = _made(mode, _ATEN.t.default, (inputs, outputs), weight)
    y = _made(mode, _ATEN.addmm.default, (rows, outputs), bias, x, weight)
    if len(shape) == 2:
        return y
    size = [*shape[:-1], outputs]
    return _made(mode, _ATEN._unsafe_view.default, size, y, size)


def _made(mode: LabelDispatch, func: Any, size: Any, *args: Any) -> Tensor:
    """An operator's output of that size, once the pass has labelled it."""
    inputs = [value for value in args if isinstance(value, Tensor)]
    with torch._C._DisableTorchDispatch():
        out = torch.empty(size, dtype=inputs[0].dtype, device=META)
        mode.after(operator(func), args, {}, out, [out], tuple([mode.source(t) for t in inputs]))
    return out


def _pointwise(func: Any, in_place: Any, *numbers: float) -> Tell:
    def tell_of(mode: LabelDispatch, layer: Any, x: Tensor) -> Tensor | None:
        return _told(mode, in_place if layer.inplace else func, x, *numbers)

    return tell_of


_TOLD: dict[type[nn.Module], Tell] = {
    nn.Conv1d: _convolution,
    nn.Conv2d: _convolution,
    nn.Conv3d: _convolution,
    nn.BatchNorm1d: _batch_norm(2, 3),
    nn.BatchNorm2d: _batch_norm(4),
    nn.BatchNorm3d: _batch_norm(5),
    nn.LayerNorm: _layer_norm,
    nn.Linear: _linear,
    nn.modules.linear.NonDynamicallyQuantizableLinear: _linear,
    nn.AdaptiveAvgPool2d: _adaptive_mean,
    nn.ReLU: _pointwise(_ATEN.relu.default, _ATEN.relu_.default),
    nn.ReLU6: _pointwise(_ATEN.hardtanh.default, _ATEN.hardtanh_.default, 0.0, 6.0),
    nn.SiLU: _pointwise(_ATEN.silu.default, _ATEN.silu_.default),
    nn.Hardswish: _pointwise(_ATEN.hardswish.default, _ATEN.hardswish_.default),
    nn.Hardsigmoid: _pointwise(_ATEN.hardsigmoid.default, _ATEN.hardsigmoid_.default),
}
LEAVES = {kind: _leaf(tell_of) for kind, tell_of in _TOLD.items()}
"""Kind of layer -> its forward while a pass is told of it."""
