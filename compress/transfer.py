"""From pretrained weights to a teacher: the backbone is taken over, the classifier is made for the target."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from compress import models
from compress.data.seeds import hash_seed
from compress.recipe import ModelRecipe


def fresh(recipe: ModelRecipe, classes: int, seed: int) -> nn.Module:
    """The network with random weights drawn from `seed`. Raises ModelError as `models.build` does."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(hash_seed(seed, 3))
        return models.build(recipe.factory, recipe.arguments, classes)


def started_from(recipe: ModelRecipe, classes: int, seed: int, state: dict[str, Tensor], source: str) -> nn.Module:
    """The network with pretrained weights; its classifier is fresh where the number of classes differs.

    Args:
        recipe: the network.
        classes: outputs of the classifier.
        seed: of what is fresh.
        state: the pretrained weights.
        source: what to call them in an error.

    Raises:
        ModelError: the weights are of another architecture.
    """
    model = fresh(recipe, classes, seed)
    models.load_backbone(model, state, source)
    return model
