"""Gradual pruning (Zhu and Gupta, 2017): a little more goes as training goes on, and nothing comes back."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from compress.errors import ModelError
from compress.sparse.magnitude import gradual_density, largest
from compress.sparse.masks import Handle, Layers, Masks, weights_of

TIMES = 100
"""How often masks are chosen anew on the way."""


class Gradual(nn.Module):
    """Masks that thin along a cubic curve while an optimizer steps, the smallest |w| of the whole network first.

    The count of steps is a buffer, so a training that goes on from a checkpoint thins on from where it was; the masks
    follow from the weights, for what went is zero.

    Args:
        keep: weights that stay in the end.
        steps: after so many steps no more goes.
        layers: which kinds.

    Raises:
        ModelError: no step.
    """

    done: Tensor

    def __init__(self, keep: int, steps: int, layers: Layers = "all") -> None:
        super().__init__()
        if steps < 1:
            raise ModelError(f"Gradual pruning was given {steps} steps; give at least one.")
        self.keep, self.steps, self.layers = keep, steps, layers
        self.register_buffer("done", torch.zeros((), dtype=torch.int64))

    def follow(self, network: nn.Module, optimizer: Optimizer) -> Handle:
        """Thin ``network`` after steps of ``optimizer``, until ``remove()`` of what is returned."""
        total = sum(weight.numel() for weight in weights_of(network, self.layers).values())
        every = max(1, self.steps // TIMES)
        masks: list[Masks] = []

        def before(*_: Any) -> None:
            if not masks and int(self.done):  # a training that goes on: what is zero went before
                weights = weights_of(network, self.layers).items()
                masks[:] = [Masks({name: weight.detach() != 0 for name, weight in weights})]

        def after(*_: Any) -> None:
            self.done += 1
            done = int(self.done)
            for gone in masks:  # the step may have moved what went, which is not to come back
                gone.apply_(network)
            if not masks or done % every == 0 or done == self.steps:
                share = gradual_density(done, 0, self.steps, self.keep / total)
                masks[:] = [largest(network, round(total * share), self.layers)]
            masks[0].apply_(network)

        return _Both(optimizer.register_step_pre_hook(before), optimizer.register_step_post_hook(after))


class _Both:
    """Two handles as one."""

    def __init__(self, *handles: Handle) -> None:
        self.handles = handles

    def remove(self) -> None:
        for handle in self.handles:
            handle.remove()
