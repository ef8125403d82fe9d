"""The training before a cut in which a penalty grows on what is to go."""

from __future__ import annotations

import copy
from collections.abc import Callable

from torch import Tensor, nn

from compress import cost
from compress.data.images import Batch
from compress.prune.sparsify import Sparsifier
from compress.run.cutting import plan_for
from compress.run.progress import Advance
from compress.run.tracing import traced
from compress.run.training import train
from compress.run.workspace import Workspace
from compress.train import TASKS, Fit, Trainable
from compress.train.loop import steps_for

STRENGTHS = {"group_lasso": 1e-4, "growing": 1.0, "scales": 1e-4, "soft": 1.0}
"""Of each kind, where a recipe gives none: those of the papers, of group lasso the order of a weight decay."""


def sparsified(work: Workspace, teacher: nn.Module, advance: Advance) -> tuple[nn.Module, Fit]:
    """Train a copy of the teacher on labels while units are driven towards zero; return it and what it cost.

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
    penalty = Sparsifier(
        trace,
        asked.kind,
        lambda scores: plan_for(trace, scores, recipe.prune),
        strength=asked.strength or STRENGTHS[asked.kind],
        calls=steps * how.accumulate,
        epoch=steps * how.accumulate // asked.epochs,
    )
    loss = _loss(work, penalty, how.label_smoothing)
    task = Trainable(network, work.target, flops, recipe.seed + 6, loss, penalty)
    return network, train(work, advance, "sparsify", task, how)


def _loss(work: Workspace, penalty: Sparsifier, smoothing: float) -> Callable[[nn.Module, Batch], Tensor]:
    """The task's own loss and the penalty."""
    task = TASKS[work.target.task]

    def loss(network: nn.Module, batch: Batch) -> Tensor:
        # First, since soft zeroing changes the weights that the pass reads.
        own = penalty(network)
        return task.loss(network, batch, smoothing) + own

    return loss
