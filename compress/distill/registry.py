"""The losses that a recipe can weigh: one dict from its key to what the loss looks at and how it is computed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches

import torch
from torch import Tensor, nn

from compress.distill import losses
from compress.distill.feature_hooks import FEATURES, HEAD, OUTPUT
from compress.errors import RecipeError
from compress.models.weights import classifier_name
from compress.recipe.schema import DistillRecipe

Features = dict[str, Tensor]
"""What the losses compare of one network on a batch: images first, the same names for student and teacher."""


@dataclass(frozen=True)
class LossInputs:
    """What a loss is computed from: one batch as student and teacher see it.

    Args:
        recipe: weights and settings.
        student: the student's features.
        teacher: the teacher's features, without a gradient.
        targets: the batch's labels.
        means: class means of the teacher, in the width of the student's features, shape (classes, D).
        exclusive: a detector's classes are one softmax with the background first.
    """

    recipe: DistillRecipe
    student: Features
    teacher: Features
    targets: Tensor
    means: Tensor | None
    exclusive: bool

    def pair(self, name: str) -> tuple[Tensor, Tensor]:
        """Return the student's feature of that name, and the teacher's."""
        return self.student[name], self.teacher[name]

    def mean(self, kind: str, loss: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """Average ``loss`` over all features whose name starts with ``kind``."""
        return torch.stack([loss(*self.pair(name)) for name in self.student if name.startswith(f"{kind} ")]).mean()


@dataclass(frozen=True)
class LossSpec:
    """One loss by its key.

    Args:
        value: the loss of a batch, a scalar.
        places: whose outputs it needs.
        tasks: what it is for; a weight that the recipe leaves out is the number given here.
    """

    value: Callable[[LossInputs], Tensor]
    places: Callable[[DistillRecipe], tuple[str, ...]]
    tasks: Mapping[str, float]


def _at(*places: str) -> Callable[[DistillRecipe], tuple[str, ...]]:
    return lambda recipe: places


def _class_means(inputs: LossInputs) -> Tensor:
    assert inputs.means is not None
    return losses.class_mean_loss(*inputs.pair(FEATURES), inputs.means, inputs.targets)


def _relation(loss: Callable[[Tensor, Tensor], Tensor]) -> Callable[[LossInputs], Tensor]:
    return lambda inputs: loss(*(x.flatten(1) for x in inputs.pair(FEATURES)))


def _head_classes(inputs: LossInputs) -> Tensor:
    student, teacher = inputs.pair("anchor classes")
    return losses.anchor_class_loss(student, teacher, inputs.recipe.temperature, exclusive=inputs.exclusive)


def _head_boxes(inputs: LossInputs) -> Tensor:
    logits = inputs.teacher["anchor classes"]
    return losses.anchor_box_loss(
        *inputs.pair("anchor boxes"), logits, inputs.recipe.box_confidence, exclusive=inputs.exclusive
    )


_HINTS = {"squared": losses.hint_loss, "cosine": losses.cosine_hint_loss}

_EVERY = {"classification": 0.0, "segmentation": 0.0, "detection": 0.0}

LOSSES: dict[str, LossSpec] = {
    "logits": LossSpec(
        lambda inputs: losses.logits_loss(*inputs.pair(OUTPUT), inputs.recipe.temperature),
        _at(OUTPUT),
        {"classification": 1.0},
    ),
    "class_means": LossSpec(_class_means, _at(FEATURES), {"classification": 1.0}),
    "relation_distance": LossSpec(_relation(losses.relation_distance_loss), _at(FEATURES), {"classification": 0.0}),
    "relation_angle": LossSpec(_relation(losses.relation_angle_loss), _at(FEATURES), {"classification": 0.0}),
    "hints": LossSpec(
        lambda inputs: inputs.mean("hint", _HINTS[inputs.recipe.hint_loss]), lambda r: r.hint_layers, _EVERY
    ),
    "attention": LossSpec(
        lambda inputs: inputs.mean("map", losses.attention_loss), lambda r: r.attention_layers, _EVERY
    ),
    "pixels": LossSpec(
        lambda inputs: losses.pixel_loss(*inputs.pair(OUTPUT), inputs.recipe.temperature),
        _at(OUTPUT),
        {"segmentation": 1.0},
    ),
    "channels": LossSpec(
        lambda inputs: losses.channel_loss(*inputs.pair(OUTPUT), inputs.recipe.temperature),
        _at(OUTPUT),
        {"segmentation": 0.0},
    ),
    "head_classes": LossSpec(_head_classes, _at(HEAD), {"detection": 1.0}),
    "head_boxes": LossSpec(_head_boxes, _at(HEAD), {"detection": 1.0}),
}


def weights(recipe: DistillRecipe, task: str) -> dict[str, float]:
    """Return the losses that ``recipe`` wants for a task, each with its weight; those of weight 0 are left out.

    Raises:
        RecipeError: a loss has weight that is not for the task.
    """
    found = {}
    for name, term in LOSSES.items():
        asked = getattr(recipe, name)
        if asked and task not in term.tasks:
            fit = ", ".join(key for key, other in LOSSES.items() if task in other.tasks)
            raise RecipeError(
                f"distill.{name}: {asked:g} is for {' and '.join(term.tasks)}, this run is {task}; "
                f"set it to 0 and weigh some of {fit}."
            )
        weight = term.tasks.get(task, 0.0) if asked is None else asked
        if weight:
            found[name] = weight
    return found


def check_layers(recipe: DistillRecipe, model: nn.Module) -> None:
    """Raise RecipeError, naming the nearest, for a hint or attention layer that ``model`` does not have."""
    paths = [name for name, _ in model.named_modules() if name]
    for key in ("hint_layers", "attention_layers"):
        for layer in getattr(recipe, key):
            if layer not in paths:
                near = get_close_matches(layer, paths, 4, 0.3) or paths[:4]
                raise RecipeError(
                    f"distill.{key}: {type(model).__name__} has no layer '{layer}'; near it are {', '.join(near)}."
                )


def reuse(recipe: DistillRecipe, task: str) -> bool | str:
    """Tell what becomes of the classifier: the teacher's as it is (True), ``projected``, or the student's own (False).

    Raises:
        RecipeError: it is asked for in a task that has no linear classifier.
    """
    asked = recipe.reuse_classifier
    if asked and task != "classification":
        raise RecipeError(f"distill.reuse_classifier: {asked} is for classification, this run is {task}; leave it out.")
    return task == "classification" if asked is None else asked


def reads_features(recipe: DistillRecipe, task: str) -> bool:
    """Tell whether a loss looks at the classifier's input."""
    return any(FEATURES in LOSSES[name].places(recipe) for name in weights(recipe, task))


def check(recipe: DistillRecipe, task: str, model: nn.Module) -> None:
    """Check everything in ``distill`` that can be wrong for a network and a task, before anything is trained.

    Raises:
        RecipeError: a loss or the classifier's reuse is for another task, or a layer is unknown.
        ModelError: the network has no classifier, and the recipe needs one.
    """
    weights(recipe, task)
    check_layers(recipe, model)
    if reuse(recipe, task) or reads_features(recipe, task):
        classifier_name(model)
