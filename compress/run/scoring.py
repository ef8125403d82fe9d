"""What channels are scored by and cut layers are solved on: images that the teacher was trained on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from compress import prune
from compress.data.images import Batch, Split
from compress.models.detection import learning, raw_heads
from compress.prune import CRITERIA, Plan, Reconstruction, Trace
from compress.run.workspace import Workspace
from compress.train import TASKS
from compress.train.tasks import Task

BATCH = 32


def scores(work: Workspace, trace: Trace, network: nn.Module) -> Tensor:
    """Score every unit of a network by the recipe's criterion; float64 (units,), higher stays."""
    asked = work.recipe.prune
    images = [] if CRITERIA[asked.criterion].needs == "weights" else scoring_images(work)
    return scored(trace, network, asked.criterion, images, TASKS[work.target.task], seed=work.recipe.seed)


def scored(
    trace: Trace,
    network: nn.Module,
    criterion: str,
    images: Sequence[Batch],
    task: Task,
    *,
    seed: int = 0,
    trial: bool = False,
) -> Tensor:
    """Score every unit of a network by a criterion.

    Gradients are those of a classifier's own answers, without labels, and of the task's own loss in other tasks.

    Args:
        trace: of the network, a detector's of its raw heads.
        network: the network.
        criterion: a name in ``CRITERIA``.
        images: with their targets; none for criteria of weights.
        task: what the network is for.
        seed: of everything random.
        trial: only whether the criterion can judge this network is asked, see ``prune.score``.

    Returns:
        float64 (units,), higher stays.

    Raises:
        PlanError: the criterion cannot judge this network.
    """
    needs = CRITERIA[criterion].needs if criterion in CRITERIA else "weights"
    if needs == "weights":
        return prune.score(trace, network, criterion, seed=seed)
    if needs == "gradients" and task.name != "classification":
        # Detectors are fed their boxes too, and answer with their losses.
        given = [((batch.images, batch.targets), None) for batch in images]
        loss, forward = _as_it_is, loss_of(task)
        return prune.score(trace, network, criterion, data=given, loss=loss, seed=seed, forward=forward, trial=trial)
    # A teacher has learnt these images by heart: their labels tell it little, what changes its answers tells more.
    alone = [batch.images for batch in images]
    return prune.score(trace, network, criterion, data=alone, seed=seed, forward=raw_heads(network), trial=trial)


def loss_of(task: Task) -> Callable[[nn.Module, Any], Tensor]:
    """Return a function from a network in eval mode and a pair of images and targets to the task's own loss."""

    def forward(network: nn.Module, inputs: Any) -> Tensor:
        images, targets = inputs
        # The norms stay as they are, and what an R-CNN draws of its regions is always the same.
        with learning(network), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return task.loss(network, Batch(images, targets, torch.arange(len(images))))

    return forward


def _as_it_is(outputs: Any, targets: Any) -> Tensor:
    return outputs


def reconstructed(
    work: Workspace, network: nn.Module, small: nn.Module, plan: Plan
) -> tuple[nn.Module, Reconstruction]:
    """Solve the layers of a cut network again for the outputs of the one that it was cut from."""
    data, seed = pairs(scoring_images(work)), work.recipe.seed
    return prune.reconstruct(network, small, plan, data, seed=seed, forward=raw_heads(network))


def said_of(report: Reconstruction) -> str:
    """Say what reconstruction was worth, in one sentence."""
    what = "KL divergence from" if report.measure == "kl" else "squared error against"
    kept = sum(layer.kept for layer in report.layers)
    return (
        f"Reconstruction on {report.images} images: {what} the network before the cut {report.before:.3g} as cut, "
        f"{report.after:.3g} solved, on {report.held_out} held-out images; {kept} of {len(report.layers)} layers."
    )


def scoring_images(work: Workspace) -> list[Batch]:
    """Draw the run's training images to score by and to solve on."""
    return drawn(work.target.splits["train"], work.recipe.prune.images, work.recipe.seed)


def drawn(split: Split, count: int, seed: int) -> list[Batch]:
    """Draw up to ``count`` images of a split, in batches, in the order of the split."""
    count = min(count, len(split))
    chosen = np.sort(np.random.default_rng(seed).permutation(len(split))[:count])
    return [split.batch(torch.from_numpy(part)) for part in np.array_split(chosen, -(-count // BATCH))]


def pairs(images: Sequence[Batch]) -> list[tuple[Tensor, Tensor | None]]:
    """Return images and their targets where these are tensors, as criteria and reconstruction take them."""
    return [(batch.images, batch.targets if isinstance(batch.targets, Tensor) else None) for batch in images]
