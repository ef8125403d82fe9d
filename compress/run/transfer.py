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
from compress.recipe.schema import ModelRecipe, Recipe
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


def teacher_of(recipe: Recipe, data: ImageData) -> nn.Module:
    """Build the network as the target's stages start it: trained already where ``transfer`` is null.

    Raises:
        ModelError: what ``started`` raises, or the weights are not of a network for just these classes.
        ArtifactError: as ``started`` does.
    """
    if recipe.transfer is not None:
        return started(recipe.model, data, recipe.seed)
    outputs = TASKS[data.task].outputs(data.classes)
    folder = Path(recipe.model.weights or "")
    if folder.is_dir() and (own := artifact.describe(folder).classes) != outputs:
        raise ModelError(
            f"transfer is null and the network in {folder} is for {_few(own)}, the target's classes are "
            f"{_few(outputs)}; give both the same classes in the same order, or give transfer."
        )
    state, source = pretrained(recipe.model)
    model = fresh(recipe.model, data, recipe.seed)
    own_state = {name: t for name, t in model.state_dict().items() if not name.endswith("num_batches_tracked")}
    odd = [name for name, t in own_state.items() if name not in state or state[name].shape != t.shape]
    if odd:
        raise ModelError(
            f"transfer is null, but the weights {source} do not fit this network for {len(outputs)} classes "
            f"('{odd[0]}' is the first of {len(odd)} differences); name the weights of the trained network, or give "
            "transfer."
        )
    return started_from(recipe.model, data, recipe.seed, state, source)


def _few(names: tuple[str, ...]) -> str:
    return f"{len(names)} classes ({', '.join(names[:5])}{' ...' if len(names) > 5 else ''})"
