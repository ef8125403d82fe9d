"""From what a network shows in a pass to what is compared: the same names and shapes for student and teacher."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compress.distill import losses
from compress.distill.feature_hooks import FEATURES, HEAD, OUTPUT, Watch, output, parts
from compress.distill.registry import LOSSES, Answers
from compress.recipe.schema import DistillRecipe


class Projection(nn.Module):
    """A learned 1x1 convolution from the student's channels to the teacher's, without a bias.

    Args:
        weight: what it starts as, shape (C_teacher, C_student).
        dim: where the channels are.
    """

    def __init__(self, weight: Tensor, dim: int) -> None:
        super().__init__()
        self.weight, self.dim = nn.Parameter(weight), dim

    def forward(self, x: Tensor) -> Tensor:
        if self.dim == 1 and x.dim() == 4:
            return F.conv2d(x, self.weight[:, :, None, None])
        return F.linear(x.movedim(self.dim, -1), self.weight).movedim(-1, self.dim)


@dataclass(frozen=True)
class Sight:
    """How one network's record becomes its answers.

    Args:
        recipe: which layers are hinted at and mapped.
        wanted: the losses that have weight.
        watch: the network's watch over `places`.
        chosen: name of an answer -> (dimension, which channels of it are compared).
        changed: name of an answer -> a module that it goes through.
    """

    recipe: DistillRecipe
    wanted: Sequence[str]
    watch: Watch
    chosen: Mapping[str, tuple[int, Tensor]] = field(default_factory=dict)
    changed: Mapping[str, nn.Module] = field(default_factory=dict)

    def answers(self, record: Mapping[str, Tensor]) -> Answers:
        """What the losses compare, in float32 or better."""
        found: Answers = {}
        places = {place for name in self.wanted for place in LOSSES[name].places(self.recipe)}
        if OUTPUT in places:
            found[OUTPUT] = output(record)
        if FEATURES in places:
            found[FEATURES] = record[FEATURES]
        if HEAD in places:
            found["anchor classes"], found["anchor boxes"] = anchors(record)
        if "hints" in self.wanted:
            for layer in self.recipe.hint_layers:
                found.update({f"hint {name}": record[name] for name in parts(record, layer)})
        if "attention" in self.wanted:
            for layer in self.recipe.attention_layers:
                found.update({f"map {name}": record[name] for name in parts(record, layer)})
        return {name: self._ready(name, value) for name, value in found.items()}

    def _ready(self, name: str, value: Tensor) -> Tensor:
        if value.dtype in (torch.float16, torch.bfloat16):
            value = value.float()
        if name in self.chosen:
            dim, kept = self.chosen[name]
            value = value.index_select(dim, kept.to(value.device))
        if name in self.changed:
            value = self.changed[name](value)
        return losses.attention_map(value) if name.startswith("map ") else value


def places(recipe: DistillRecipe, wanted: Sequence[str]) -> tuple[str, ...]:
    """What has to be watched for these losses, each once."""
    return tuple(dict.fromkeys(place for name in wanted for place in LOSSES[name].places(recipe)))


def anchors(record: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Class logits (N, anchors, K) and box deltas (N, anchors, 4) of a detector's raw head.

    A dense head gives them so; an RPN gives two lists over the levels, (N, A, H, W) and (N, 4 A, H, W).
    """
    if f"{HEAD}/cls_logits" in record:
        return record[f"{HEAD}/cls_logits"], record[f"{HEAD}/bbox_regression"]
    seen = [record[name] for name in parts(record, f"{HEAD}/0")]
    deltas = [record[name] for name in parts(record, f"{HEAD}/1")]
    logits = [level.permute(0, 2, 3, 1).flatten(1) for level in seen]
    boxes = [level.unflatten(1, (-1, 4)).permute(0, 3, 4, 1, 2).flatten(1, 3) for level in deltas]
    return torch.cat(logits, 1)[..., None], torch.cat(boxes, 1)
