"""The teacher's side of a distillation: its features of a batch, computed in every step or stored once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from compress.data.images import Split
from compress.distill import cache
from compress.distill.feature_hooks import forward_for
from compress.distill.features import FeatureExtractor
from compress.distill.pair import Pair
from compress.distill.registry import Features
from compress.models.weights import weights_hash

if TYPE_CHECKING:
    from lightning.fabric import Fabric

BATCH = 64
"""Images of one pass of the teacher while its features or answers are stored."""
_HEADER = 1 << 20
"""Bytes that a stored file may have beside its tensors."""


@dataclass(frozen=True)
class Storage:
    """Where the teacher's features may be stored, and by whom.

    Args:
        folder: of all caches of the run; None for nowhere.
        fabric: the device and the processes.
        progress: told variants stored and in all.
    """

    folder: Path | None
    fabric: Fabric
    progress: Callable[[int, int], None]


def forward_flops(model: nn.Module, task: str, image: Tensor) -> float:
    """Count the FLOPs of one pass over one image (1, C, H, W), as far as the losses look, without gradients."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        forward_for(model, task)(image)
    return float(counter.get_total_flops())


def answers(teacher: nn.Module, split: Split, device: torch.device) -> Tensor:
    """Return a classifier's logits for every image of a split, (N, classes), in order, on the CPU.

    Args:
        teacher: it is put into eval mode, frozen and moved to the device.
        split: the images.
        device: where it runs.
    """
    teacher.requires_grad_(False).eval().to(device)
    with torch.no_grad():
        return torch.cat([teacher(batch.images.to(device)).float().cpu() for batch in split.batches(BATCH)])


def teacher_features(pair: Pair, extractor: FeatureExtractor) -> Callable[[Tensor], Features]:
    """Return a function from images (N, C, H, W) to the teacher's features, without a gradient."""
    run = forward_for(pair.teacher, pair.task)

    @torch.no_grad()
    def features(images: Tensor) -> Features:
        with extractor.hooks.recording() as outputs:
            run(images)
        return extractor.extract(outputs)

    return features


def stored_features(
    pair: Pair, extractor: FeatureExtractor, features: Callable[[Tensor], Features], storage: Storage
) -> tuple[cache.Cache | None, tuple[str, ...]]:
    """Return the stored features, computed where they are not there; None, and why, where they cannot be stored.

    Args:
        pair: both networks and their data.
        extractor: the teacher's.
        features: what computes them.
        storage: where they go.
    """
    recipe, train = pair.recipe, pair.data.splits["train"]
    folder, fabric = storage.folder, storage.fabric
    variants = 1 if recipe.augment == "none" else recipe.augment_variants
    if folder is None or variants is None or not recipe.teacher_cache_mb or recipe.mixup or recipe.cutmix:
        return None, ()
    probe = features(train.inputs(0, 2).to(fabric.device))
    needed = cache.size(probe, len(train), variants)
    if needed > recipe.teacher_cache_mb * 1_000_000:
        return None, (
            f"The teacher's answers would take {needed / 1e6:.0f} MB, more than distill.teacher_cache_mb allows "
            f"({recipe.teacher_cache_mb}), so the teacher runs in every step.",
        )
    key = _key(pair, extractor, probe, variants)
    if fabric.is_global_zero:
        cache.fill(
            folder,
            key,
            variants,
            lambda variant: _images(pair, variant),
            lambda batch: features(batch.to(fabric.device)),
            storage.progress,
            needed + _HEADER,
        )
    fabric.barrier()
    return cache.read(folder, key, variants, needed + _HEADER), ()


def _images(pair: Pair, variant: int) -> Iterator[Tensor]:
    """Yield one variant of all training images in the split's order, in batches."""
    train = pair.data.splits["train"]
    for start in range(0, len(train), BATCH):
        index = torch.arange(start, min(start + BATCH, len(train)))
        yield train.batch(index, pair.recipe.augment, pair.seed, variant).images


def _key(pair: Pair, extractor: FeatureExtractor, probe: Features, variants: int) -> str:
    """Name everything that the features depend on: weights, images, augmentation and what is compared."""
    recipe, train = pair.recipe, pair.data.splits["train"]
    sample = torch.linspace(0, len(train) - 1, min(32, len(train))).long()
    augmented = train.batch(sample, recipe.augment, pair.seed).images
    return cache.key_of(
        weights=weights_hash(pair.teacher),
        images=cache.images_hash([train.gather(sample), augmented]),
        count=len(train),
        augment=recipe.augment,
        seed=pair.seed if recipe.augment != "none" else 0,
        variants=variants,
        answers={name: list(value.shape[1:]) for name, value in probe.items()},
        chosen={name: [dim, kept.tolist()] for name, (dim, kept) in extractor.selected.items()},
    )
