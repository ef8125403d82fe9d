"""PAC-Net (Myung et al., 2022): prune, allocate, calibrate. Transfer that writes into what pruning made free.

Prune: the small weights of a trained network become zero. Allocate: on the source data the rest learns to do without
them, pulled to where it was. Calibrate: on the target data only the pruned ones learn, so what the source taught stays
to the bit; the network is dense in the end.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from compress.sparse.magnitude import largest
from compress.sparse.masks import Handle, Keep, Layers, Masks, Train, bare, together, weights_of


def prune_allocate_calibrate(
    model: nn.Module,
    source: Train,
    target: Train,
    *,
    density: float,
    strength: float,
    head: Iterable[str] = (),
    layers: Layers = "all",
) -> Masks:
    """Move a network to new data without touching what it knew.

    Args:
        model: trained on the source.
        source: trains on the source data; phase ``allocate``.
        target: trains on the target data; phase ``calibrate``.
        density: share of all weights that holds the source, the largest |w| of the network.
        strength: lambda of lambda |w - w_S|^2 while allocating.
        head: patterns of parameters that are the target's own, such as a new classifier: they learn whole.
        layers: which kinds.

    Returns:
        What holds the source.
    """
    own = tuple(head)
    names = [n for n in weights_of(model, layers) if not any(fnmatchcase(n, pattern) for pattern in own)]
    total = sum(p.numel() for n, p in weights_of(model, layers).items() if n in names)
    masks = largest(model, round(density * total), layers, names)
    start = {name: p.detach().clone() for name, p, _ in masks.parameters(model)}
    masks.apply_(model)
    source(model, together(masks.hold, pull_to(start, strength)), "allocate")
    target(model, calibrating(model, masks, own), "calibrate")
    return masks


def pull_to(start: Mapping[str, Tensor], strength: float) -> Keep:
    """Add the gradient of strength * |w - start|^2 before each step, to the parameters that ``start`` names."""

    def register(model: nn.Module, optimizer: Optimizer) -> Handle:
        pairs = [(p, start[name].to(p.device)) for name, p in bare(model).named_parameters() if name in start]

        @torch.no_grad()
        def before(*_: Any) -> None:
            for p, anchor in pairs:
                if p.grad is not None:
                    p.grad.add_(p - anchor, alpha=2 * strength)

        return optimizer.register_step_pre_hook(before)

    return register


def calibrating(model: nn.Module, masks: Masks, head: Iterable[str] = ()) -> Keep:
    """Freeze all that holds the source: the kept weights, and every parameter without a mask that is not of the head.

    Running statistics of norms are no parameters: train with them in eval mode where they are to stay too.
    """
    patterns = tuple(head)
    others = {
        name: torch.ones_like(p, dtype=torch.bool)
        for name, p in bare(model).named_parameters()
        if name not in masks.kept and not any(fnmatchcase(name, pattern) for pattern in patterns)
    }
    return Masks({**masks.kept, **others}).freeze
