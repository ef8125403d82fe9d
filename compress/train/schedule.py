"""Optimizer, learning rates and their schedule."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import nn

from compress.models.weights import classifier_name
from compress.recipe.schema import TrainRecipe


def is_head(model: nn.Module, name: str) -> bool:
    """Whether a parameter belongs to what transfer initialises anew: the classifier, or all but the backbone."""
    if isinstance(getattr(model, "backbone", None), nn.Module):
        return not name.startswith("backbone.")
    return name.startswith(f"{classifier_name(model)}.")


def depths(model: nn.Module) -> dict[str, int]:
    """Each parameter's distance from the network's end, counted in blocks as they are registered (``features.3``)."""
    blocks: dict[str, int] = {}
    places = {}
    for name, _ in model.named_parameters():
        parts = name.split(".")[:-1]
        number = next((k for k, part in enumerate(parts) if part.isdigit()), len(parts) - 1)
        places[name] = blocks.setdefault(".".join(parts[: number + 1]), len(blocks))
    return {name: len(blocks) - 1 - place for name, place in places.items()}


def make_optimizer(
    model: nn.Module, recipe: TrainRecipe, helpers: Iterable[nn.Parameter] = ()
) -> torch.optim.Optimizer:
    """Make the optimizer: only matrices decay; ``backbone_lr`` and ``layer_decay`` scale the rate below the head."""
    distance = depths(model) if recipe.layer_decay < 1 else {}
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            scale = 1.0 if is_head(model, name) else recipe.backbone_lr
            scale *= recipe.layer_decay ** distance.get(name, 0)
            groups.setdefault((scale, parameter.dim() > 1), []).append(parameter)
    for parameter in helpers:
        groups.setdefault((1.0, parameter.dim() > 1), []).append(parameter)
    settings = [
        {"params": own, "lr": recipe.lr * scale, "weight_decay": recipe.weight_decay if decays else 0.0}
        for (scale, decays), own in groups.items()
    ]
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(settings, lr=recipe.lr)
    return torch.optim.SGD(settings, lr=recipe.lr, momentum=recipe.momentum, nesterov=recipe.momentum > 0)


def cosine(step: int, total: int, warmup: float) -> float:
    """The rate's factor: linear warm-up over a share of the steps, then half a cosine down to zero."""
    rising = max(1, round(warmup * total))
    if step < rising:
        return (step + 1) / rising
    return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, total - rising)))
