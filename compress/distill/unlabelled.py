"""Images without labels in a student's training: the teacher says what they show."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from PIL import Image
from torch import nn

from compress.data.images import ImageData, Images, Split
from compress.distill.teacher import answers, forward_flops

UNLABELLED = "unlabelled"
"""The split that holds them; what its targets say is not looked at."""


@dataclass(frozen=True)
class _Joined:
    """Images of one sequence after those of another."""

    first: Images
    second: Images

    def __len__(self) -> int:
        return len(self.first) + len(self.second)

    def __getitem__(self, index: int) -> Image.Image:
        own = len(self.first)
        return self.first[index] if index < own else self.second[index - own]


def with_answers(data: ImageData, teacher: nn.Module, device: torch.device) -> tuple[ImageData, float]:
    """Let ``train`` go on with the images of ``unlabelled``, each labelled with the class that the teacher gives it.

    Pseudo-labels (Lee, Pseudo-Label: The Simple and Efficient Semi-Supervised Learning Method, 2013) from a larger
    network instead of from the one that learns; the losses between the two see these images like any others.

    Args:
        data: the target data; without such images, or for another task than classification, it comes back as it is.
        teacher: the full-size network; it is put into eval mode, frozen and moved to the device.
        device: where it runs.

    Returns:
        The data, and the FLOPs of the teacher's passes.
    """
    train, more = data.splits["train"], data.splits.get(UNLABELLED)
    if more is None or data.task != "classification":
        return data, 0.0
    said = answers(teacher, more, device).argmax(1)
    joined = Split(_Joined(train.images, more.images), torch.cat([train.labels, said]), train.reader)
    splits: Mapping[str, Split] = {**data.splits, "train": joined}
    return replace(data, splits=splits), forward_flops(teacher, data.task, more.inputs(0, 1).to(device)) * len(more)
