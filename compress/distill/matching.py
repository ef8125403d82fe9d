"""How the features of student and teacher come to have one shape, so that a loss can compare them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compress.data.seeds import hash_seed
from compress.distill.channels import kept_channels
from compress.distill.classifier import projection
from compress.distill.feature_hooks import FEATURES, FeatureHooks, LayerOutputs, forward_for, names_under
from compress.distill.features import FeatureExtractor, Projection, places
from compress.distill.pair import Pair
from compress.errors import RecipeError
from compress.recipe.schema import DistillRecipe

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Matched:
    """Two extractors whose features have the same names and shapes.

    Args:
        student: the student's.
        teacher: the teacher's.
        helpers: projections that learn beside the student; None where there are none.
        flops_per_image: what those add to the step of one image.
    """

    student: FeatureExtractor
    teacher: FeatureExtractor
    helpers: nn.Module | None
    flops_per_image: float


@dataclass(frozen=True)
class _Narrower:
    """A hinted tensor of which the student has fewer channels: their dimension, and how many each network has."""

    dim: int
    student: int
    teacher: int


def match(pair: Pair) -> Matched:
    """Make the extractors of both networks, with selections and projections where their widths differ.

    Raises:
        RecipeError: a layer gives no tensors, or tensors that differ in more than their channels.
    """
    recipe, wanted = pair.recipe, list(pair.losses)
    hooked = places(recipe, wanted)
    student = FeatureExtractor(recipe, wanted, FeatureHooks(pair.student, hooked))
    teacher = FeatureExtractor(recipe, wanted, FeatureHooks(pair.teacher, hooked))
    example = pair.data.example(2)
    outputs = _recorded(pair.student, student, pair.task, example)
    theirs = _recorded(pair.teacher, teacher, pair.task, example)
    shapes, wide = ({n: tuple(t.shape) for n, t in held.items()} for held in (outputs, theirs))
    for layer in (*recipe.hint_layers, *recipe.attention_layers):
        if not names_under(wide, layer):
            raise RecipeError(f"distill: the layer '{layer}' gives no tensor in a forward pass; name one that does.")
    selected: dict[str, tuple[int, Tensor]] = {}
    transforms: dict[str, nn.Module] = {}
    if FEATURES in hooked and (kept := pair.kept) is not None:
        if projection(pair.student) is not None:
            transforms[FEATURES] = _ThroughClassifier(pair.student)
        elif shapes[FEATURES] != wide[FEATURES]:
            selected[FEATURES] = (-1, kept)
    flops, generator = 0.0, torch.Generator().manual_seed(hash_seed(pair.seed, 31))
    helpers = nn.ModuleDict()
    narrower = _narrower(recipe, shapes, wide)
    known = _known_channels(pair, narrower, hooked) if narrower else {}
    for name, width in narrower.items():
        indices = known.get(name)
        if indices is not None and len(indices) != width.student:
            indices = None
        if indices is not None and recipe.hint_match == "channels":
            selected[f"hint {name}"] = (width.dim, indices)
            continue
        transforms[f"hint {name}"] = helpers[str(len(helpers))] = _projection(width, indices, generator)
        positions = outputs[name][0].numel() / width.student
        flops += 6.0 * positions * width.student * width.teacher
    student = replace(student, transforms=transforms)
    return Matched(student, replace(teacher, selected=selected), helpers if len(helpers) else None, flops)


def _projection(width: _Narrower, indices: Tensor | None, generator: torch.Generator) -> Projection:
    """Make a projection that starts by placing the channels where they were, or at random where that is unknown."""
    weight = torch.randn(width.teacher, width.student, generator=generator) / width.student**0.5
    if indices is not None:
        weight = torch.zeros(width.teacher, width.student)
        weight[indices, torch.arange(width.student)] = 1
    return Projection(weight, width.dim)


class _ThroughClassifier(nn.Module):
    """The student's features in the teacher's width: P f, by the projection inside its classifier."""

    def __init__(self, student: nn.Module) -> None:
        super().__init__()
        # In a list, so that it is not a module of this one.
        self._student = [student]

    def forward(self, features: Tensor) -> Tensor:
        weight = projection(self._student[0])
        assert weight is not None
        return F.linear(features.flatten(1), weight.to(features.dtype))


def _recorded(net: nn.Module, extractor: FeatureExtractor, task: str, example: Tensor) -> LayerOutputs:
    """Record what a network computes on the example in eval mode, and give it its mode back."""
    training = net.training
    net.eval()
    with torch.no_grad(), extractor.hooks.recording() as outputs:
        forward_for(net, task)(example.to(next(net.parameters()).device))
    net.train(training)
    return dict(outputs)


def _narrower(recipe: DistillRecipe, student: Shapes, teacher: Shapes) -> dict[str, _Narrower]:
    """Find the hinted tensors of which the student has fewer channels, by their names.

    Raises:
        RecipeError: they differ in more than that.
    """
    found = {}
    for name, shape in teacher.items():
        layer = _layer(name)
        if layer not in recipe.hint_layers or student.get(name) == shape:
            continue
        narrow = student.get(name, ())
        dims = [d for d, (a, b) in enumerate(zip(narrow, shape, strict=False)) if a != b]
        if len(narrow) != len(shape) or len(dims) != 1:
            raise RecipeError(
                f"distill.hint_layers: '{layer}' gives {shape} in the teacher and {student.get(name)} in the student, "
                "which differ in more than their channels; name another layer."
            )
        found[name] = _Narrower(dims[0], narrow[dims[0]], shape[dims[0]])
    return found


def _layer(name: str) -> str:
    """Return the layer that a recorded tensor is of."""
    return name.split("/")[0].split("#")[0]


def _known_channels(pair: Pair, narrower: Mapping[str, _Narrower], hooked: tuple[str, ...]) -> dict[str, Tensor]:
    """Return the indices of the teacher's channels that the plan leaves, by name, where the trace can tell."""
    layers = tuple(place for place in hooked if place in {_layer(name) for name in narrower})
    axes = {name: (width.dim, width.teacher) for name, width in narrower.items()}

    def run(net: nn.Module, images: Tensor) -> object:
        return forward_for(net, pair.task)(images)

    return kept_channels(pair.teacher, pair.plan, pair.data.example(2), run, axes, layers)
