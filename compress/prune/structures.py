"""Sparse structure selection: a scale on every structure that training drives to exactly zero (Huang and Wang, 2018).

Data-Driven Sparse Structure Selection for Deep Neural Networks multiplies what a structure gives by a scale, and trains
the scales by an accelerated proximal gradient, beside the weights' own optimizer. Structures are here either the
channels of a trace, after their norms, or the branches of residual blocks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from compress.errors import PlanError
from compress.prune.residual import Blocks
from compress.prune.units import Trace

MOMENTUM = 0.9
"""The paper's, of the scales."""


def proximal_step(
    scales: Tensor, velocity: Tensor, gradient: Tensor, rate: float, strength: float, momentum: float = MOMENTUM
) -> tuple[Tensor, Tensor]:
    """One step of the paper's accelerated proximal gradient; all tensors (structures,).

    z = soft(scales - rate * gradient, rate * strength)
    v = z - scales + momentum * v
    scales = max(0, z + momentum * v)

    Returns:
        scales and velocity after the step.
    """
    moved = scales - rate * gradient
    thresholded = moved.sign() * (moved.abs() - rate * strength).clamp(min=0)
    velocity = thresholded - scales + momentum * velocity
    return (thresholded + momentum * velocity).clamp(min=0), velocity


class StructureScales(nn.Module):
    """Scales on a network's free channels or residual branches while it is trained, from one towards zero.

    The network computes with them from ``attach`` to ``fold``. Every forward pass has to be announced by a call, as a
    penalty is; the scales step when the last pass of an optimizer step has gone backward. They lie in buffers, so that
    a training that goes on from a checkpoint goes on with them; several processes step by their mean gradient.

    Args:
        structures: the trace of the network, whose scales are one a unit, or its blocks, whose scales are one a block.
        strength: gamma, of the paper's penalty on the scales' sum.
        rate: from an optimizer step, counted from 0, to the learning rate there.
        parts: forward passes of an optimizer step.

    Raises:
        PlanError: no norm gives the free channels, or no block can go.
    """

    free: Tensor
    scales: Tensor
    velocity: Tensor
    called: Tensor

    def __init__(
        self, structures: Trace | Blocks, *, strength: float, rate: Callable[[int], float], parts: int = 1
    ) -> None:
        super().__init__()
        self.strength, self.rate, self.parts = strength, rate, parts
        if isinstance(structures, Blocks):
            free, self._layers, self._weights = _behind_branches(structures.required())
        else:
            free, self._layers, self._weights = _behind_norms(structures)
        self.register_buffer("free", free, persistent=False)
        self.register_buffer("scales", torch.ones(len(free)))
        self.register_buffer("velocity", torch.zeros(len(free)))
        self.register_buffer("called", torch.zeros((), dtype=torch.int64))
        self._handles: list[RemovableHandle] = []
        self._leaf: Tensor | None = None
        self._back = 0

    @property
    def zeros(self) -> int:
        """How many free structures have a scale of zero."""
        return int((self.scales[self.free] == 0).sum())

    def at_zero(self, found: Blocks) -> list[str]:
        """The names of the blocks, those that the scales stand for, whose scale is zero."""
        return [block.name for block, scale in zip(found.blocks, self.scales.tolist(), strict=True) if scale == 0]

    def attach(self, network: nn.Module) -> None:
        """Let what the norms of ``network``, or the last layers of its branches, give be multiplied by the scales."""
        for name, places in self._layers.items():
            layer = network.get_submodule(name)
            self._handles.append(layer.register_forward_hook(self._multiplying(places)))

    def forward(self, network: nn.Module) -> Tensor:
        """Announce a forward pass in training; zero, for the penalty is in the scales' own steps."""
        if int(self.called) % self.parts == 0:
            self._back = 0
            leaf = self.scales.detach().clone().requires_grad_()
            leaf.register_post_accumulate_grad_hook(self._went_back)
            self._leaf = leaf
        self.called += 1
        return next(network.parameters()).new_zeros(())

    @torch.no_grad()
    def fold(self, network: nn.Module) -> None:
        """Multiply the layers' own weights by the scales and take the hooks away: the outputs stay what they were."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        for name, places in self._weights.items():
            parameter = network.get_parameter(name)
            own = self.scales[places.to(self.scales.device)].to(parameter)
            parameter.mul_(own.view(-1, *[1] * (parameter.dim() - 1)))

    def _multiplying(self, places: Tensor) -> Callable[[nn.Module, Any, Any], Any]:
        def multiply(layer: nn.Module, _: Any, output: Any) -> Any:
            if isinstance(layer, nn.MultiheadAttention):
                return (multiplied(layer, output[0]), *output[1:])
            return multiplied(layer, output)

        def multiplied(layer: nn.Module, output: Tensor) -> Tensor:
            learning = torch.is_grad_enabled() and self._leaf is not None
            scales = self._leaf if learning else self.scales
            assert scales is not None
            own = scales[places.to(scales.device)].to(output)
            # A LayerNorm has its channels last, every other norm second; a branch has one scale for all.
            last = isinstance(layer, nn.LayerNorm) or len(own) == 1
            return output * (own if last else own.view(1, -1, *[1] * (output.dim() - 2)))

        return multiply

    @torch.no_grad()
    def _went_back(self, leaf: Tensor) -> None:
        """Step, once the gradients of all passes of an optimizer step are summed up."""
        self._back += 1
        if self._back < self.parts:
            return
        gradient = leaf.grad
        assert gradient is not None
        if dist.is_initialized():
            dist.all_reduce(gradient)
            gradient = gradient / dist.get_world_size()
        rate = self.rate(int(self.called - 1) // self.parts)
        scales, velocity = proximal_step(self.scales, self.velocity, gradient, rate, self.strength)
        self.scales.copy_(torch.where(self.free, scales, self.scales))
        self.velocity.copy_(torch.where(self.free, velocity, self.velocity))
        self._leaf = None


_Places = tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]
"""Which structures are free, bool; layer -> the structures its outputs belong to; parameter -> those of its rows."""


def _behind_norms(trace: Trace) -> _Places:
    free = torch.zeros(trace.units, dtype=torch.bool)
    for group in trace.groups:
        free[torch.from_numpy(group.units)] = True
    norms = {
        name.removesuffix(".weight"): torch.from_numpy(trace.slots[name, dim])
        for group in trace.groups
        for name, dim in group.slots
        if name.endswith(".weight") and len(trace.parameters.get(name, ())) == 1
        if trace.roles[name, dim] == "producer" and name not in trace.buffers
    }
    if not norms:
        raise PlanError("No norm gives this network's channels, as 'structures' needs; take group_lasso or growing.")
    own = (name for name in trace.parameters if name.rpartition(".")[0] in norms and name not in trace.buffers)
    return free, norms, {name: norms[name.rpartition(".")[0]] for name in own}


def _behind_branches(found: Blocks) -> _Places:
    places = [torch.tensor([k]) for k in range(len(found.blocks))]
    layers = {end: place for block, place in zip(found.blocks, places, strict=True) for end in block.ends}
    own = {name: place for block, place in zip(found.blocks, places, strict=True) for name in block.weights}
    return torch.ones(len(places), dtype=torch.bool), layers, own
