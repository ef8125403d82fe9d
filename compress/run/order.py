"""Where the cut stands among the trainings: source, target, prune, target, or another order of these.

The orders are those of Model Pruning with Model Transfer (2023): S-T-P-T cuts the network that has learned the target,
S-P-T the one that the source left, SP-T likewise and trains it on the source once more, S-T-P trains nothing after the
cut. Whatever the order, the teacher is the whole network after transfer.
"""

from __future__ import annotations

from torch import nn

from compress import cost
from compress.errors import RecipeError
from compress.models.weights import read_weights
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
    """Raise RecipeError where the cut network cannot be trained on the source: it is for other outputs."""
    if work.recipe.order != "SP-T":
        return
    counts = [len(TASKS[data.task].outputs(data.classes)) for data in (work.source, work.target)]
    if counts[0] != counts[1]:
        raise RecipeError(
            f"order: SP-T trains the network that is cut on the source, which has {counts[0]} classes, the target "
            f"{counts[1]}; give both as many, or take S-P-T."
        )


def on_source(work: Workspace, view: StageView, network: nn.Module) -> float:
    """Train the cut network on the source as the whole one was; return the FLOPs spent."""
    recipe = work.recipe
    assert recipe.source is not None
    task = Trainable(network, work.source, cost.training_flops(network, work.example), recipe.seed + 8)
    found = train(work, view.advance, "source-again", task, recipe.source.train)
    view.notes.append(f"{100 * found.val_accuracy:.1f} % of source validation after the cut")
    return found.training_flops
