"""What a network costs: MACs, parameters and the FLOPs of training it."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from compress.models.detection import raw_heads


def _convolution_backward(
    gradient: Sequence[int], x: Sequence[int], weight: Sequence[int], *rest: Any, **_: Any
) -> int:
    """Torch's own count leaves groups out: each element of the weight meets each output position once an image."""
    transposed, mask = rest[4], rest[7]
    positions = x if transposed else gradient
    return 2 * positions[0] * prod(positions[2:]) * prod(weight) * (bool(mask[0]) + bool(mask[1]))


_BACKWARD = {torch.ops.aten.convolution_backward: _convolution_backward}


def parameters(model: nn.Module) -> int:
    """Number of parameters, shared ones once."""
    return sum(p.numel() for p in model.parameters())


def macs(model: nn.Module, example: Tensor) -> int:
    """Multiply-accumulates of one forward pass on one image (convolutions and matrix products).

    Of a detector what its weights do is counted: body and raw heads, without decoding and suppression.
    """
    # Torch's counter hooks what asks for a gradient and stumbles over views of parameters that have none.
    network = copy.deepcopy(model).to("meta").eval().requires_grad_(False)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        _outputs(network, example[:1].to("meta"))
    return counter.get_total_flops() // 2


def training_flops(model: nn.Module, example: Tensor) -> int:
    """FLOPs of one forward and backward pass on one image, counted by torch (two a multiply-accumulate)."""
    network = copy.deepcopy(model).to("meta").train()
    batch = example[:1].to("meta").expand(2, *example.shape[1:])
    with FlopCounterMode(display=False, custom_mapping=_BACKWARD) as counter:
        torch.stack([output.sum() for output in _tensors(_outputs(network, batch))]).sum().backward()
    return counter.get_total_flops() // 2


def _outputs(network: nn.Module, batch: Tensor) -> Any:
    heads = raw_heads(network)
    return network(batch) if heads is None else heads(network, batch)


def _tensors(value: Any) -> Iterator[Tensor]:
    """Every tensor in nested lists and dicts."""
    if isinstance(value, Tensor):
        yield value
    else:
        for part in value.values() if isinstance(value, Mapping) else value:
            yield from _tensors(part)
