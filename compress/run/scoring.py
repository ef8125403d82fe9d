"""What channels are scored by and cut layers are solved on: images that the teacher was trained on."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from compress import prune
from compress.models.detection import raw_heads
from compress.prune import CRITERIA, Plan, Reconstruction, Trace
from compress.run.workspace import Workspace

BATCH = 32


def scores(work: Workspace, trace: Trace, network: nn.Module) -> Tensor:
    """Score every unit of a network by the recipe's criterion; float64 (units,), higher stays."""
    asked = work.recipe.prune
    data = None if CRITERIA[asked.criterion].needs == "weights" else calibration_batches(work)
    seed, forward = work.recipe.seed, raw_heads(network)
    return prune.score(trace, network, asked.criterion, data=data, seed=seed, forward=forward)


def reconstructed(
    work: Workspace, network: nn.Module, small: nn.Module, plan: Plan
) -> tuple[nn.Module, Reconstruction]:
    """Solve the layers of a cut network again for the outputs of the one that it was cut from."""
    data, seed = calibration_batches(work), work.recipe.seed
    return prune.reconstruct(network, small, plan, data, seed=seed, forward=raw_heads(network))


def said_of(report: Reconstruction) -> str:
    """Say what reconstruction was worth, in one sentence."""
    what = "KL divergence from" if report.measure == "kl" else "squared error against"
    kept = sum(layer.kept for layer in report.layers)
    return (
        f"Reconstruction on {report.images} images: {what} the network before the cut {report.before:.3g} as cut, "
        f"{report.after:.3g} solved, on {report.held_out} held-out images; {kept} of {len(report.layers)} layers."
    )


def calibration_batches(work: Workspace) -> list[tuple[Tensor, Tensor | None]]:
    """Draw training images with the run's seed, in batches with their labels where these are tensors."""
    split = work.target.splits["train"]
    count = min(work.recipe.prune.images, len(split))
    chosen = np.sort(np.random.default_rng(work.recipe.seed).permutation(len(split))[:count])
    drawn = (split.batch(torch.from_numpy(part)) for part in np.array_split(chosen, -(-count // BATCH)))
    return [(batch.images, batch.targets if isinstance(batch.targets, Tensor) else None) for batch in drawn]
