"""The trace and the residual blocks of a run's network, with what its recipe keeps out of the cut."""

from __future__ import annotations

from fnmatch import fnmatchcase

from torch import Tensor, nn

from compress import distill, prune
from compress.models.detection import raw_heads
from compress.models.weights import classifier_name
from compress.prune import Blocks, Trace
from compress.recipe.schema import Recipe


def traced(recipe: Recipe, model: nn.Module, example: Tensor, task: str) -> Trace:
    """Trace a network and protect the recipe's patterns and the features that a reused classifier reads.

    Args:
        recipe: what is asked for.
        model: the network.
        example: prepared images, shape (N, C, H, W), N at least 2.
        task: what the network is for.
    """
    trace = prune.trace(model, example[:2], forward=raw_heads(model))
    trace = prune.protect(trace, recipe.prune.protect)
    if distill.reuse(recipe.distill, task) is True:
        head = f"{classifier_name(model)}.weight"
        trace = prune.protect(trace, [head], "the teacher's classifier is reused")
    return trace


def removable(recipe: Recipe, model: nn.Module, example: Tensor) -> Blocks:
    """Find the residual blocks that may go: those without a protected parameter and without a layer of hints inside.

    Args:
        recipe: what is asked for.
        model: the network.
        example: prepared images, shape (N, C, H, W).

    Raises:
        PlanError: there are none.
    """
    found = prune.blocks(model, example[:2], forward=raw_heads(model))
    names = [name for name, _ in model.named_parameters()]
    held = [name for name in names if any(fnmatchcase(name, pattern) for pattern in recipe.prune.protect)]
    taught = [*recipe.distill.hint_layers, *recipe.distill.attention_layers]
    reasons = {}
    for block in found.blocks:
        inside = f"{block.name}."
        if any(name.startswith(inside) for name in held):
            reasons[block.name] = "is protected by the recipe"
        elif any(layer.startswith(inside) for layer in taught):
            reasons[block.name] = "holds a layer that the student is taught by"
    return found.kept_back(reasons).required()
