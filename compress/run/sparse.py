"""The training before a cut in which a penalty grows on what is to go."""

from __future__ import annotations

import copy
from collections.abc import Callable

from torch import Tensor, nn

from compress import cost
from compress.data.images import Batch
from compress.prune import score
from compress.prune.sparsify import Sparsifier, gone_units
from compress.prune.structures import StructureScales
from compress.prune.units import Trace
from compress.recipe.schema import SparsifyRecipe, TrainRecipe
from compress.run.cutting import plan_for
from compress.run.progress import Advance
from compress.run.tracing import traced
from compress.run.training import train
from compress.run.workspace import Workspace
from compress.sparse.unit_gsm import UnitGSM
from compress.train import TASKS, Fit, Trainable
from compress.train.loop import OptimizerOf, steps_for
from compress.train.schedule import cosine

STRENGTHS = {"group_lasso": 1e-4, "growing": 1.0, "scales": 1e-4, "soft": 1.0, "structures": 0.01, "unit_gsm": 5e-4}
"""Of each kind, where a recipe gives none: those of the papers, of group lasso the order of a weight decay."""

MOMENTUM = 0.98
"""Of ``unit_gsm``: what the paper on single weights takes for networks with norms."""


def sparsified(work: Workspace, teacher: nn.Module, advance: Advance) -> tuple[nn.Module, Fit, str]:
    """Train a copy of the teacher on labels while units are driven towards zero.

    Returns:
        the network, what it cost, and what there is to say beside it, or nothing.

    The weights at the end are taken, not those that were best on validation: these would be from before the penalty.
    """
    recipe, asked = work.recipe, work.recipe.prune.sparsify
    assert asked is not None
    assert recipe.transfer is not None
    network = copy.deepcopy(teacher).requires_grad_(True)
    trace = traced(recipe, network, work.example, work.target.task)
    update = {
        "epochs": asked.epochs, "training_flops": None, "lr": asked.lr or recipe.transfer.lr, "evaluations": 1,
        "patience": None, "freeze_epochs": 0, "ema": 0.0, "compile": False,
    }  # fmt: skip
    how = recipe.transfer.model_copy(update=update)
    images, flops = len(work.target.splits["train"]), cost.training_flops(network, work.example)
    steps = steps_for(how, images, flops)
    strength = asked.strength or STRENGTHS[asked.kind]
    if asked.kind == "unit_gsm":
        task = Trainable(
            network, work.target, flops, recipe.seed + 6, optimizer=_by_units(work, trace, network, strength)
        )
        return network, train(work, advance, "sparsify", task, how), ""
    helper = _helper(work, trace, (how, steps), asked, strength)
    if isinstance(helper, StructureScales):
        helper.attach(network)
    task = Trainable(network, work.target, flops, recipe.seed + 6, _loss(work, helper, how.label_smoothing), helper)
    found = train(work, advance, "sparsify", task, how)
    if not isinstance(helper, StructureScales):
        return network, found, ""
    helper.cpu().fold(network)
    return network, found, f"{helper.zeros} of {int(helper.free.sum())} channels have a scale of exactly zero."


def _helper(
    work: Workspace, trace: Trace, length: tuple[TrainRecipe, int], asked: SparsifyRecipe, strength: float
) -> Sparsifier | StructureScales:
    """What drives units towards zero; ``length`` is how the training goes and its optimizer steps."""
    how, steps = length
    if asked.kind == "structures":
        return StructureScales(
            trace,
            strength=strength,
            rate=lambda step: how.lr * cosine(step, steps, how.warmup),
            parts=how.accumulate,
        )
    assert asked.kind != "unit_gsm"
    return Sparsifier(
        trace,
        asked.kind,
        lambda scores: plan_for(trace, scores, work.recipe.prune),
        strength=strength,
        calls=steps * how.accumulate,
        epoch=steps * how.accumulate // asked.epochs,
    )


def _by_units(work: Workspace, trace: Trace, network: nn.Module, decay: float) -> OptimizerOf:
    """Global sparse momentum over units; as many learn in a step as the plan of the largest filters keeps."""
    plan = plan_for(trace, score(trace, network, "l2"), work.recipe.prune)
    keep = sum(len(group.units) for group in trace.groups) - int(gone_units(trace, plan).sum())
    return lambda model, how: UnitGSM(model, trace, how.lr, keep, MOMENTUM, decay)


def _loss(work: Workspace, penalty: nn.Module, smoothing: float) -> Callable[[nn.Module, Batch], Tensor]:
    """The task's own loss and the penalty."""
    task = TASKS[work.target.task]

    def loss(network: nn.Module, batch: Batch) -> Tensor:
        # First, since soft zeroing changes the weights that the pass reads.
        own = penalty(network)
        total: Tensor = task.loss(network, batch, smoothing) + own
        return total

    return loss
