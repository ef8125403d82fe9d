"""From pretrained weights to a teacher: the backbone is taken over, the classifier is made for the target."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from compress import artifact
from compress.data.images import ImageData
from compress.data.seeds import hash_seed
from compress.errors import ModelError
from compress.models import factory
from compress.models.weights import load_backbone
from compress.models.weights import pretrained as named_weights
from compress.recipe.schema import ModelRecipe
from compress.train.tasks import TASKS


def fresh(recipe: ModelRecipe, data: ImageData, seed: int) -> nn.Module:
    """Build the network for this data with random weights drawn from ``seed``; raise what ``factory.build`` raises."""
    task = TASKS[data.task]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(hash_seed(seed, 3))
        # Whoever reads a recipe from a file holds it against what the user trusts.
        own = [recipe.factory.partition(":")[0]]
        model = factory.build(recipe.factory, recipe.arguments, len(task.outputs(data.classes)), trusted=own)
    task.take_prepared(model, data.example(1).shape[2:])
    return model


def pretrained(recipe: ModelRecipe) -> tuple[dict[str, Tensor], str]:
    """Read the weights that a recipe names and say what to call them: DEFAULT, a file or a saved network's folder.

    Raises:
        ModelError: there are none, or they are those of a cut network.
        ArtifactError: the saved network is damaged.
    """
    assert recipe.weights is not None
    folder = Path(recipe.weights)
    if recipe.weights == "DEFAULT" or not folder.is_dir():
        return named_weights(recipe.factory, recipe.weights), recipe.weights
    about = artifact.describe(folder)
    if about.plan is not None:
        raise ModelError(
            f"model.weights: {folder} holds a network that was cut, which {recipe.factory} at full size cannot start "
            "from; name a folder such as teacher, whose network is whole."
        )
    return artifact.weights(folder, about), f"{folder} (a {about.factory})"


def started(recipe: ModelRecipe, data: ImageData, seed: int) -> nn.Module:
    """Build the network as the recipe starts it: from the weights that it names, else ``fresh``; raise as both do."""
    if recipe.weights is None:
        return fresh(recipe, data, seed)
    return started_from(recipe, data, seed, *pretrained(recipe))


def started_from(recipe: ModelRecipe, data: ImageData, seed: int, state: dict[str, Tensor], source: str) -> nn.Module:
    """Build the network with pretrained weights; its classifier is fresh where the number of classes differs.

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
    load_backbone(model, state, source)
    return model
