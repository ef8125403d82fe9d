"""Turn recorded layer outputs into what the losses compare: the same names and shapes for student and teacher."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compress.distill import losses
from compress.distill.feature_hooks import FEATURES, HEAD, OUTPUT, FeatureHooks, logits_among, names_under
from compress.distill.registry import LOSSES, Features
from compress.recipe.schema import DistillRecipe


class Projection(nn.Module):
    """A learned 1x1 convolution from the student's channels to the teacher's, without a bias.

    Args:
        weight: its initial value, shape (C_teacher, C_student).
        dim: the dimension that holds the channels.
    """

    def __init__(self, weight: Tensor, dim: int) -> None:
        super().__init__()
        self.weight, self.dim = nn.Parameter(weight), dim

    def forward(self, x: Tensor) -> Tensor:
        if self.dim == 1 and x.dim() == 4:
            return F.conv2d(x, self.weight[:, :, None, None])
        return F.linear(x.movedim(self.dim, -1), self.weight).movedim(-1, self.dim)


@dataclass(frozen=True)
class FeatureExtractor:
    """Extract from one network's recorded outputs the features that the losses compare.

    Args:
        recipe: which layers are used for hints and attention maps.
        wanted: the losses with a weight other than 0.
        hooks: the network's hooks at ``places``.
        selected: feature name -> (dimension, indices of the channels that are compared).
        transforms: feature name -> a module that the feature passes through.
    """

    recipe: DistillRecipe
    wanted: Sequence[str]
    hooks: FeatureHooks
    selected: Mapping[str, tuple[int, Tensor]] = field(default_factory=dict)
    transforms: Mapping[str, nn.Module] = field(default_factory=dict)

    def extract(self, outputs: Mapping[str, Tensor]) -> Features:
        """The features that the losses compare, in float32 or better."""
        found: Features = {}
        needed = places(self.recipe, self.wanted)
        if OUTPUT in needed:
            found[OUTPUT] = logits_among(outputs)
        if FEATURES in needed:
            found[FEATURES] = outputs[FEATURES]
        if HEAD in needed:
            found["anchor classes"], found["anchor boxes"] = anchor_outputs(outputs)
        if "hints" in self.wanted:
            for layer in self.recipe.hint_layers:
                found.update({f"hint {name}": outputs[name] for name in names_under(outputs, layer)})
        if "attention" in self.wanted:
            for layer in self.recipe.attention_layers:
                found.update({f"map {name}": outputs[name] for name in names_under(outputs, layer)})
        return {name: self._prepared(name, value) for name, value in found.items()}

    def _prepared(self, name: str, value: Tensor) -> Tensor:
        if value.dtype in (torch.float16, torch.bfloat16):
            value = value.float()
        if name in self.selected:
            dim, kept = self.selected[name]
            value = value.index_select(dim, kept.to(value.device))
        if name in self.transforms:
            value = self.transforms[name](value)
        return losses.attention_map(value) if name.startswith("map ") else value


def places(recipe: DistillRecipe, wanted: Sequence[str]) -> tuple[str, ...]:
    """The places whose outputs these losses need, each once."""
    return tuple(dict.fromkeys(place for name in wanted for place in LOSSES[name].places(recipe)))


def anchor_outputs(outputs: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Class logits (N, anchors, K) and box deltas (N, anchors, 4) of a detector's raw head.

    A dense head returns them in this shape; an RPN returns two lists over the levels, (N, A, H, W) and (N, 4 A, H, W).
    """
    if f"{HEAD}/cls_logits" in outputs:
        return outputs[f"{HEAD}/cls_logits"], outputs[f"{HEAD}/bbox_regression"]
    objectness = [outputs[name] for name in names_under(outputs, f"{HEAD}/0")]
    deltas = [outputs[name] for name in names_under(outputs, f"{HEAD}/1")]
    logits = [level.permute(0, 2, 3, 1).flatten(1) for level in objectness]
    boxes = [level.unflatten(1, (-1, 4)).permute(0, 3, 4, 1, 2).flatten(1, 3) for level in deltas]
    return torch.cat(logits, 1)[..., None], torch.cat(boxes, 1)
