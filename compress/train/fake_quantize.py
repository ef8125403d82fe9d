"""Quantization-aware training: round weights and inputs of convolutions and linear layers in the forward pass."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from compress.errors import NiwakiError


@contextmanager
def rounded(model: nn.Module, images: Sequence[Tensor]) -> Iterator[nn.Module]:
    """Inside, make the layers of ``model`` compute with int8 values; gradients pass as if nothing were rounded.

    As in Jacob et al., Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference
    (2018), with the straight-through gradient of Bengio et al. (2013): weights symmetric per output channel, inputs per
    tensor over the mean range that ``images`` show, unsigned where nothing is negative. BatchNorm need not be folded
    first: it scales whole output channels and thereby their steps.

    Args:
        model: changed in place, and restored at the end with the trained weights; names of parameters and modules
            stay as they are.
        images: float32 (N, C, H, W) each, from training data; best one by one, as int8 files are calibrated.

    Raises:
        NiwakiError: no image was given, or the model has no plain convolution or linear layer.
    """
    layers = [module for module in model.modules() if type(module) in _ROUNDED]
    if not layers or not images:
        raise NiwakiError(f"{len(layers)} layers and {len(images)} batches of images: rounding needs both; add some.")
    for layer, (low, high) in zip(layers, _extremes(model, layers, images), strict=True):
        layer.__class__ = _ROUNDED[type(layer)]
        vars(layer)["_span"] = (low, high)
    try:
        yield model
    finally:
        for layer in layers:
            layer.__class__ = _PLAIN[type(layer)]
            del vars(layer)["_span"]


@torch.no_grad()
def _extremes(model: nn.Module, layers: list[nn.Module], images: Sequence[Tensor]) -> list[tuple[float, float]]:
    """The smallest and largest input of each layer, means over the batches; (0, 0) for a layer that is never run.

    NNCF's calibration takes means too: a rare peak is clipped in the int8 file as it is here.
    """
    seen: dict[nn.Module, list[tuple[float, float]]] = {layer: [] for layer in layers}

    def look(layer: nn.Module, given: tuple[Tensor, ...]) -> None:
        seen[layer].append((float(given[0].min()), float(given[0].max())))

    hooks = [layer.register_forward_pre_hook(look) for layer in layers]
    flags = [(module, module.training) for module in model.modules()]
    device = next(model.parameters()).device
    try:
        model.eval()
        for batch in images:
            model(batch.to(device))
    finally:
        for hook in hooks:
            hook.remove()
        for module, training in flags:
            module.training = training
    means = (np.mean(pairs, axis=0) if pairs else (0.0, 0.0) for pairs in seen.values())
    return [(float(low), float(high)) for low, high in means]


def round_input(x: Tensor, low: float, high: float) -> Tensor:
    """Round ``x`` to 256 steps: from 0 on if ``low`` is 0 or more, else symmetric about 0."""
    if high <= 0 and low >= 0:
        return x
    if low >= 0:
        return _on_steps(x, high / 255, 0, 255)
    return _on_steps(x, max(-low, high) / 127, -128, 127)


def round_weight(weight: Tensor) -> Tensor:
    """Round ``weight`` to 255 steps around 0, of a size for each output channel."""
    peaks = weight.detach().abs().flatten(1).amax(1).float()
    steps = torch.where(peaks > 0, peaks / 127, torch.ones_like(peaks))
    return _on_steps(weight, steps.reshape(-1, *[1] * (weight.dim() - 1)).to(weight.dtype), -127, 127)


def _on_steps(x: Tensor, step: float | Tensor, low: int, high: int) -> Tensor:
    """Round ``x`` to multiples of ``step`` from ``low`` to ``high``; the gradient is that of the clamp alone.

    Torch's own fake_quantize operators do not support meta tensors, on which costs are counted.
    """
    places = (x / step).clamp(low, high)
    return (places + (places.round() - places).detach()) * step


class _RoundedConv2d(nn.Conv2d):
    _span: tuple[float, float]

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(round_input(x, *self._span), round_weight(self.weight), self.bias)


class _RoundedLinear(nn.Linear):
    _span: tuple[float, float]

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(round_input(x, *self._span), round_weight(self.weight), self.bias)


_ROUNDED: dict[type, type] = {nn.Conv2d: _RoundedConv2d, nn.Linear: _RoundedLinear}
_PLAIN: dict[type, type] = {rounded: plain for plain, rounded in _ROUNDED.items()}
