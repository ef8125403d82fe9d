"""The trace of a run's network, with what its recipe keeps out of the cut."""

from __future__ import annotations

from torch import Tensor, nn

from compress import distill, prune
from compress.models.detection import raw_heads
from compress.models.weights import classifier_name
from compress.prune import Trace
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
