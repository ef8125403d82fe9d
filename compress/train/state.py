"""The state of a training: what the loop changes at each step, and a checkpoint saves and restores."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn


@dataclass
class TrainingState:
    """Everything that the next step depends on, beside the recipe, the data and the random generators.

    Args:
        network: on its device.
        helpers: what learns beside the network and is not part of it; None where there is nothing.
        optimizer: over the parameters of both.
        best: the best weights so far.
        average: the moving average of the weights; None where none is asked for.
        total: steps of the whole training.
        seed: the seed of everything drawn.
        device: where the network is.
        rank: this process among those that train together.
        done: steps done.
        metrics: the metrics of the last evaluation.
    """

    network: nn.Module
    helpers: nn.Module | None
    optimizer: torch.optim.Optimizer
    best: BestWeights
    average: MovingAverage | None
    total: int
    seed: int
    device: torch.device
    rank: int
    done: int = 0
    metrics: dict[str, float] = field(default_factory=dict)


DIVERGENCE = "divergence"
"""The mean KL divergence from the teacher's answers, in nats, among the metrics of a training that has them."""


class BestWeights:
    """The best weights so far, and what they measured on ``val``.

    Args:
        network: its weights are the best until others are offered.
        selects: the task's metric that selects; higher is better.
    """

    def __init__(self, network: nn.Module, selects: str) -> None:
        self.weights, self.metrics, self.since, self.step = weights_of(network), dict[str, float](), 0, 0
        self.rank, self.selects = (-math.inf, -math.inf), selects

    @property
    def value(self) -> float:
        """The task's metric; -1 where nothing was measured."""
        return self.metrics.get(self.selects, -1.0)

    def offer(self, network: nn.Module, metrics: dict[str, float], step: int) -> None:
        """Take the weights after ``step`` steps if they are no worse.

        By the divergence from the teacher, then the task's metric; without one by that metric, then by the loss.
        """
        value, divergence = metrics[self.selects], metrics.get(DIVERGENCE)
        rank = (value, -metrics.get("loss", 0.0)) if divergence is None else (-divergence, value)
        self.since = 0 if rank > self.rank else self.since + 1
        if rank >= self.rank:
            self.rank, self.weights, self.metrics, self.step = rank, weights_of(network), metrics, step


class MovingAverage:
    """An exponential moving average of the weights; of buffers that are not floating the latest value.

    The decay rises with the steps, min(decay, (1 + t) / (10 + t)), so that the start has little weight.

    Args:
        network: where it starts.
        decay: the largest.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay, self.steps, self.weights = decay, 0, weights_of(network)

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Take one step towards the network's weights."""
        self.steps += 1
        share = 1 - min(self.decay, (1 + self.steps) / (10 + self.steps))
        for name, tensor in network.state_dict().items():
            if tensor.is_floating_point():
                self.weights[name].lerp_(tensor, share)
            else:
                self.weights[name].copy_(tensor)


def weights_of(network: nn.Module) -> dict[str, Tensor]:
    """A copy of the state dict."""
    return {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}
