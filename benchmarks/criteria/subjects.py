"""What the study cuts: a trained network, images to calibrate on, images to choose by, and the test."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from benchmarks.criteria import cifar, vit
from compress.errors import RecipeError
from compress.recipe.loading import load_recipe
from compress.run.ledger import Ledger
from compress.run.prepare import prepare
from compress.run.scoring import drawn, pairs
from compress.run.workspace import Workspace

Split = Literal["selection", "test"]
Batch = tuple[Tensor, Tensor | None]

BATCH = 64


@dataclass(frozen=True)
class Subject:
    """One trained network and its data.

    Args:
        name: what lines call it.
        network: the dense network, in eval mode.
        calibration: from a number of images and a seed to batches of training images.
        judged: from a split to batches of images and labels.
        round_to: kept channels are multiples of it.
    """

    name: str
    network: nn.Module
    calibration: Callable[[int, int], Sequence[Batch]]
    judged: Callable[[Split], Iterator[tuple[Tensor, Tensor]]]
    round_to: int = 1


def subject(name: str) -> Subject:
    """Return what goes by a name: ``resnet20``, ``resnet56``, ``vit``, or the folder of a classifier's run.

    Raises:
        DataError, RecipeError: its data or the run is missing.
    """
    if name in ("resnet20", "resnet56"):
        return Subject(name, cifar.network(int(name.removeprefix("resnet"))), _cifar_calibration, _cifar_judged)
    if name == "vit":
        return Subject(name, vit.network(), _cifar_calibration, _vit_judged)
    folder = Path(name)
    if not (folder / "teacher").is_dir():
        raise RecipeError(f"There is no subject '{name}'; give resnet20, resnet56, vit or the folder of a run.")
    return _of_run(folder)


def _cifar_calibration(images: int, seed: int) -> list[Batch]:
    drawn = cifar.calibration(images, seed)
    return list(zip(drawn.images.split(BATCH), drawn.labels.split(BATCH), strict=True))


def _cifar_judged(split: Split) -> Iterator[tuple[Tensor, Tensor]]:
    found = cifar.selection() if split == "selection" else cifar.test()
    yield from zip(found.images.split(250), found.labels.split(250), strict=True)


def _vit_judged(split: Split) -> Iterator[tuple[Tensor, Tensor]]:
    """It did not learn from all training images, so that those left can choose."""
    found = cifar.training(vit.LEARNT, cifar.ALL) if split == "selection" else cifar.test()
    yield from zip(found.images.split(250), found.labels.split(250), strict=True)


def _of_run(folder: Path) -> Subject:
    recipe = load_recipe(folder / "recipe.yaml")
    if not Ledger.read(folder / "ledger.json").models:
        raise RecipeError(f"{folder} has no teacher yet; run its first stage.")
    work = prepare(recipe, folder, resume=True)
    network = work.load("teacher").eval()
    return Subject(
        folder.name, network, partial(_run_calibration, work), partial(_run_judged, work), recipe.prune.round_to
    )


def _run_calibration(work: Workspace, images: int, seed: int) -> Sequence[Batch]:
    """Draw training images as a run of that seed would."""
    return pairs(drawn(work.target.splits["train"], images, seed))


def _run_judged(work: Workspace, split: Split) -> Iterator[tuple[Tensor, Tensor]]:
    for batch in work.target.splits["val" if split == "selection" else "test"].batches(BATCH):
        assert isinstance(batch.targets, Tensor)
        yield batch.images, batch.targets


@torch.no_grad()
def answers_right(network: nn.Module, judged: Iterator[tuple[Tensor, Tensor]]) -> Tensor:
    """Tell for each image whether the network names its class; bool (images,)."""
    network.eval()
    return torch.cat([network(images).argmax(1) == labels for images, labels in judged])
