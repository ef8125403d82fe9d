"""BatchNorms of a network, and their running statistics taken anew."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


def norms(network: nn.Module) -> list[_BatchNorm]:
    """Return its BatchNorms."""
    return [module for module in network.modules() if isinstance(module, _BatchNorm)]


def tracking(network: nn.Module) -> list[_BatchNorm]:
    """Return those of its BatchNorms that keep running statistics."""
    return [module for module in norms(network) if module.running_mean is not None]


@contextmanager
def statistics_anew(network: nn.Module) -> Iterator[None]:
    """While it is open, running statistics are those of what the network is given, as plain means over batches.

    The network is in evaluation mode but for the norms that keep statistics; momenta and modes come back at the end.
    """
    held = [(module, module.momentum) for module in tracking(network)]
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    for module, _ in held:
        module.reset_running_stats()
        module.momentum = None  # the plain mean
        module.train()
    try:
        yield
    finally:
        for module, momentum in held:
            module.momentum = momentum
        for other, training in modes:
            other.training = training
