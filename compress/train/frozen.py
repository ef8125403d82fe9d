"""A trunk that does not learn reads each image once; its head then learns from what the trunk said."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from compress.data.images import CACHE_BYTES, Batch, Split
from compress.models.weights import classifier_name
from compress.train.norms import freeze_statistics

_BATCH = 64


@dataclass(frozen=True)
class FrozenTrunk:
    """What a classifier's head reads of every image of a split.

    Args:
        head: the last linear layer, and the dropout right before it; the network's own modules.
        features: what it reads, shape (images, ...), by index, where the head is.
    """

    head: nn.Module
    features: Tensor

    def read(self, batch: Batch) -> Batch:
        """The batch with features in place of images."""
        return replace(batch, images=self.features[batch.index.to(self.features.device)])


def frozen_trunk(network: nn.Module, split: Split, device: torch.device) -> FrozenTrunk | None:
    """Read every image of a split once, without augmentation; the network is left in eval mode.

    Args:
        network: a classifier on ``device``.
        split: the images.
        device: where features are kept.

    Returns:
        None where that would not be the same training: something in the trunk is drawn anew in every step, the network
        is more than trunk and head, or the features would take more than prepared images may.
    """
    head, place = _head(network)
    example = next(iter(split.batches(2))).images.to(device)
    with torch.no_grad(), torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        freeze_statistics(network.train())
        drawn = _read(network, place, example)[0]
        still, answers = _read(network.eval(), place, example)
        if drawn is None or still is None or not isinstance(answers, Tensor) or not torch.equal(drawn, still):
            return None
        if not torch.allclose(head(still), answers, rtol=1e-4, atol=1e-5):
            return None
        if still[0].numel() * still.element_size() * len(split) > CACHE_BYTES:
            return None
        parts = [_read(network, place, batch.images.to(device))[0] for batch in split.batches(_BATCH)]
    return FrozenTrunk(head, torch.cat([part for part in parts if part is not None]))


def _head(network: nn.Module) -> tuple[nn.Module, nn.Module]:
    """The head, and the first module of it that runs."""
    path = classifier_name(network)
    last = network.get_submodule(path)
    parent = network.get_submodule(path.rpartition(".")[0])
    if not isinstance(parent, nn.Sequential) or parent[-1] is not last:
        return last, last
    first = len(parent) - 1
    while first and isinstance(parent[first - 1], nn.Dropout):
        first -= 1
    return parent[first:], parent[first]


def _read(network: nn.Module, place: nn.Module, images: Tensor) -> tuple[Tensor | None, object]:
    """What ``place`` reads in one pass, None unless it runs once, and what the network answers."""
    seen: list[Tensor] = []
    handle = place.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    try:
        answers = network(images)
    finally:
        handle.remove()
    return (seen[0] if len(seen) == 1 and len(seen[0]) == len(images) else None), answers
