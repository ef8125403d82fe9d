"""Where the cut stands among the trainings: source, target, prune, target, or another order of these.

The orders are those of Model Pruning with Model Transfer (2023): S-T-P-T cuts the network that has learned the target,
S-P-T the one that the source left, SP-T likewise and trains it on the source once more, S-T-P trains nothing after the
cut. Whatever the order, the teacher is the whole network after transfer.
"""

from __future__ import annotations

import torch
from torch import nn

from compress import cost
from compress.errors import RecipeError
from compress.models.weights import classifier_name, read_weights
from compress.prune import Plan
from compress.recipe.schema import AFTER_TRANSFER
from compress.run.progress import StageView
from compress.run.training import train
from compress.run.transfer import started, started_from
from compress.run.workspace import Workspace
from compress.train import TASKS, Trainable

PRETRAINED = "checkpoints/pretrained.safetensors"
"""Where the stage that trains on the source leaves its weights."""


def before_cut(work: Workspace) -> nn.Module:
    """Return the network that the recipe's order cuts."""
    recipe = work.recipe
    if recipe.order in AFTER_TRANSFER:
        return work.load("sparse" if recipe.distill.teacher == "sparse" else "teacher")
    if recipe.source is None:
        return started(recipe.model, work.target, recipe.seed)
    state = read_weights(work.out / PRETRAINED)
    return started_from(recipe.model, work.target, recipe.seed, state, PRETRAINED)


def check_order(work: Workspace) -> None:
    """Raise RecipeError where the cut network cannot be trained on the source: its heads are for other classes."""
    if work.recipe.order != "SP-T" or work.target.task == "classification":
        return
    of_source, of_target = _outputs(work)
    if of_source != of_target:
        raise RecipeError(
            f"order: SP-T trains the network that is cut on the source, which has {of_source} classes, the target "
            f"{of_target}; give both the same number, or take S-P-T."
        )


def _outputs(work: Workspace) -> tuple[int, int]:
    """How many outputs the network has for the source, and for the target."""
    source, target = (len(TASKS[data.task].outputs(data.classes)) for data in (work.source, work.target))
    return source, target


def on_source(work: Workspace, view: StageView, network: nn.Module, plan: Plan) -> float:
    """Train the cut network on the source as the whole one was; return the FLOPs spent.

    Where the source has other classes, its own classifier takes the place of the target's meanwhile.
    """
    recipe = work.recipe
    assert recipe.source is not None
    path, own = "", None
    of_source, of_target = _outputs(work)
    if of_source != of_target:
        path = classifier_name(network)
        own = network.get_submodule(path)
        network.set_submodule(path, _of_source(work, path, plan), strict=True)
    task = Trainable(network, work.source, cost.training_flops(network, work.example), recipe.seed + 8)
    found = train(work, view.advance, "source-again", task, recipe.source.train)
    if own is not None:
        network.set_submodule(path, own, strict=True)
    view.notes.append(f"{100 * found.val_accuracy:.1f} % of source validation after the cut")
    return found.training_flops


def _of_source(work: Workspace, path: str, plan: Plan) -> nn.Linear:
    """The classifier that the source was learned with, as far as its inputs are still there."""
    state = read_weights(work.out / PRETRAINED)
    weight, bias = state[f"{path}.weight"], state.get(f"{path}.bias")
    slot = plan.slots.get(f"{path}.weight:1")
    kept = weight if slot is None else weight[:, list(slot.kept)]
    made = nn.Linear(kept.shape[1], kept.shape[0], bias=bias is not None)
    with torch.no_grad():
        made.weight.copy_(kept)
        if bias is not None:
            made.bias.copy_(bias)
    return made
