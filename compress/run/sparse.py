"""The training before a cut in which a penalty grows on what is to go."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor, nn

from compress import cost
from compress.data.images import Batch
from compress.prune import Blocks, Plan, plan_of_blocks, score
from compress.prune.sparsify import Sparsifier, gone_units
from compress.prune.structures import StructureScales
from compress.prune.units import Trace
from compress.recipe.schema import TrainRecipe
from compress.run.cutting import plan_for
from compress.run.progress import Advance
from compress.run.tracing import removable, traced
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


class Sparsified(NamedTuple):
    """A whole network after such a training, what that cost, and what was found beside it.

    Args:
        network: not cut yet.
        fit: its training.
        said: what there is to say beside it, or nothing.
        gone: the plan of the blocks that go; None where blocks were not asked for.
    """

    network: nn.Module
    fit: Fit
    said: str = ""
    gone: Plan | None = None


def sparsified(work: Workspace, teacher: nn.Module, advance: Advance) -> Sparsified:
    """Train a copy of the teacher on labels while units, or residual branches, are driven towards zero.

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
        return Sparsified(network, train(work, advance, "sparsify", task, how))
    blocks = removable(recipe, network, work.example) if asked.blocks else None
    if asked.kind == "structures":
        return _by_scales(work, advance, (network, blocks or trace), (how, steps, flops), strength)
    penalty = Sparsifier(
        trace,
        asked.kind,
        lambda scores: plan_for(trace, scores, recipe.prune),
        strength=strength,
        calls=steps * how.accumulate,
        epoch=steps * how.accumulate // asked.epochs,
    )
    task = Trainable(network, work.target, flops, recipe.seed + 6, _loss(work, penalty, how.label_smoothing), penalty)
    return Sparsified(network, train(work, advance, "sparsify", task, how))


def _by_scales(
    work: Workspace,
    advance: Advance,
    scaled: tuple[nn.Module, Trace | Blocks],
    length: tuple[TrainRecipe, int, int],
    strength: float,
) -> Sparsified:
    """Train with scales on structures and fold them into the weights.

    Args:
        work: the run.
        advance: told of the progress.
        scaled: the network and its structures.
        length: how the training goes, its optimizer steps, and the FLOPs of an image.
        strength: of the scales' penalty.
    """
    (network, structures), (how, steps, flops) = scaled, length
    scales = StructureScales(
        structures,
        strength=strength,
        rate=lambda step: how.lr * cosine(step, steps, how.warmup),
        parts=how.accumulate,
    )
    scales.attach(network)
    loss = _loss(work, scales, how.label_smoothing)
    task = Trainable(network, work.target, flops, work.recipe.seed + 6, loss, scales)
    found = train(work, advance, "sparsify", task, how)
    scales.cpu().fold(network)
    of = f"{scales.zeros} of {int(scales.free.sum())}"
    if not isinstance(structures, Blocks):
        return Sparsified(network, found, f"{of} channels have a scale of exactly zero.")
    gone = scales.at_zero(structures)
    went = f" and go whole: {', '.join(gone)}" if gone else ""
    said = f"{of} residual blocks have a scale of exactly zero{went}."
    return Sparsified(network, found, said, plan_of_blocks(structures, gone))


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
