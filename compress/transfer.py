"""From pretrained weights to a teacher: the backbone is taken over, the classifier is made for the target."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from compress import models
from compress.data.images import ImageData
from compress.data.seeds import hash_seed
from compress.recipe import ModelRecipe
from compress.train.tasks import TASKS


def fresh(recipe: ModelRecipe, data: ImageData, seed: int) -> nn.Module:
    """The network for this data with random weights drawn from `seed`. Raises ModelError as `models.build` does."""
    task = TASKS[data.task]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(hash_seed(seed, 3))
        model = models.build(recipe.factory, recipe.arguments, len(task.outputs(data.classes)))
    task.take_prepared(model, data.example(1).shape[2:])
    return model


def started_from(recipe: ModelRecipe, data: ImageData, seed: int, state: dict[str, Tensor], source: str) -> nn.Module:
    """The network with pretrained weights; its classifier is fresh where the number of classes differs.

    Args:
        recipe: the network.
        data: what it is for.
        seed: of what is fresh.
        state: the pretrained weights.
        source: what to call them in an error.

    Raises:
        ModelError: the weights are of another architecture.
    """
    model = fresh(recipe, data, seed)
    models.load_backbone(model, state, source)
    return model
