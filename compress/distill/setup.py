"""What a student is trained with: one loss, what learns beside it, and what the teacher costs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from compress import cost
from compress.data.images import Batch, ImageData, Split
from compress.data.seeds import hash_seed
from compress.distill import cache, registry
from compress.distill.channels import kept_channels
from compress.distill.classifier import class_means, project_classifier, projection, reuse_classifier
from compress.distill.feature_hooks import FEATURES, FeatureHooks, LayerOutputs, forward_for, names_under
from compress.distill.features import FeatureExtractor, Projection, places
from compress.distill.registry import LOSSES, Features, LossInputs
from compress.errors import RecipeError
from compress.models.weights import classifier_name, weights_hash
from compress.prune import Plan
from compress.recipe.schema import DistillRecipe
from compress.train.loop import Loss
from compress.train.tasks import TASKS, Task

if TYPE_CHECKING:
    from lightning.fabric import Fabric

BATCH = 64
"""Images of one pass of the teacher while its answers are stored."""


@dataclass(frozen=True)
class Lesson:
    """How one student is taught.

    Args:
        loss: for the training loop.
        helpers: projections that learn beside the student; None where there are none.
        flops_per_image: FLOPs of one image's step: student, projections, and the teacher's pass unless it is stored.
        flops_once: FLOPs before the first step: the pass for the class means, the passes that are stored.
        notes: what a user should know, a sentence each.
    """

    loss: Loss
    helpers: nn.Module | None
    flops_per_image: float
    flops_once: float
    notes: tuple[str, ...] = ()


def lesson(
    recipe: DistillRecipe,
    data: ImageData,
    student: nn.Module,
    teacher: nn.Module,
    plan: Plan,
    *,
    seed: int,
    fabric: Fabric,
    folder: Path | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Lesson:
    """Prepares everything that the recipe's losses need; the teacher's classifier goes into the student here.

    Args:
        recipe: weights and settings.
        data: the target data.
        student: the cut network, changed in place; `fold_classifier` makes its classifier plain again.
        teacher: the full-size network; it is frozen, and moved to the fabric's device.
        plan: teacher to student.
        seed: of the student's training, which decides its augmentation.
        fabric: the device and the processes.
        folder: where the teacher's answers may be stored; None for nowhere.
        progress: told variants stored and in all.

    Raises:
        RecipeError: a loss is for another task, a layer is unknown or gives no tensors that fit.
    """
    registry.check(recipe, data.task, teacher)
    wanted, task = registry.weights(recipe, data.task), TASKS[data.task]
    teacher.requires_grad_(False).eval()
    device, train = fabric.device, data.splits["train"]
    kept = kept_features(teacher, plan) if _classifies(recipe, data.task) else None
    reuse = registry.reuse(recipe, data.task)
    once = 0.0
    if reuse is True:
        reuse_classifier(student, teacher, freeze=recipe.freeze_classifier)
    per_image = float(cost.training_flops(student, data.example(2)))
    if reuse == "projected":
        assert kept is not None
        project_classifier(student, teacher, kept, freeze=recipe.freeze_classifier)
        # W P is made once a step, forward and backward, not once an image.
        weight = teacher.get_submodule(classifier_name(teacher)).get_parameter("weight")
        per_image += 6.0 * weight.numel() * len(kept) / min(recipe.batch_size, len(train))
    if not wanted:
        return Lesson(_taught_by_labels(recipe, task), None, per_image, once)
    own, other, helpers, extra = _extractors(recipe, data, student, teacher, plan, kept, seed)
    per_image += extra
    teacher.to(device)
    a_pass = forward_flops(teacher, data.task, train.inputs(0, 1).to(device))
    means = None
    if "class_means" in wanted:
        means = class_means(teacher, train, len(data.classes))
        if FEATURES in other.selected:
            means = means[:, other.selected[FEATURES][1]]
        once += a_pass * len(train)
    exclusive = _exclusive(teacher)
    answer = _answering(other, forward_for(teacher, data.task))
    stored, note = _stored(recipe, train, teacher, other, answer, seed, fabric, folder, progress)
    if stored is None:
        per_image += a_pass
    else:
        once += a_pass * len(train) * len(stored.variants)

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        with own.hooks.recording() as outputs:
            supervised = task.loss(model, batch, recipe.label_smoothing)
        if stored is None:
            expected = answer(batch.images)
        else:
            expected = stored.rows(batch.variant, batch.index, batch.images.device)
        labels = batch.targets if batch.soft is None else batch.soft
        centre = None if means is None else means.to(batch.images.device)
        inputs = LossInputs(recipe, own.extract(outputs), expected, labels, centre, exclusive)
        total = recipe.labels * supervised
        for name, weight in wanted.items():
            total = total + weight * LOSSES[name].value(inputs)
        return total

    return Lesson(loss, helpers, per_image, once, note)


def kept_features(teacher: nn.Module, plan: Plan) -> Tensor:
    """Which of the features that the teacher's classifier reads the student still has, int64 (D_student,)."""
    name = f"{classifier_name(teacher)}.weight"
    return torch.from_numpy(plan.kept_indices((name, 1), teacher.get_parameter(name).shape[1]))


def forward_flops(model: nn.Module, task: str, image: Tensor) -> float:
    """FLOPs of one pass over one image (1, C, H, W), as far as the losses look; the model asks for no gradient."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        forward_for(model, task)(image)
    return float(counter.get_total_flops())


def _classifies(recipe: DistillRecipe, task: str) -> bool:
    return bool(registry.reuse(recipe, task)) or registry.reads_features(recipe, task)


def _taught_by_labels(recipe: DistillRecipe, task: Task) -> Loss:
    return lambda model, batch: recipe.labels * task.loss(model, batch, recipe.label_smoothing)


def _answering(extractor: FeatureExtractor, run: Callable[[Tensor], Any]) -> Callable[[Tensor], Features]:
    """The teacher's answers to images (N, C, H, W), without a gradient."""

    @torch.no_grad()
    def answer(images: Tensor) -> Features:
        with extractor.hooks.recording() as outputs:
            run(images)
        return extractor.extract(outputs)

    return answer


def _exclusive(teacher: nn.Module) -> bool:
    """Whether a detector's head has one softmax over background and classes: SSD; the others have sigmoids."""
    from torchvision.models.detection.ssd import SSD

    return isinstance(teacher, SSD)


# How the two networks' answers come to have one shape -----------------------------------------------------------


def _extractors(
    recipe: DistillRecipe,
    data: ImageData,
    student: nn.Module,
    teacher: nn.Module,
    plan: Plan,
    kept: Tensor | None,
    seed: int,
) -> tuple[FeatureExtractor, FeatureExtractor, nn.Module | None, float]:
    """Both networks' extractors, the projections between them and the FLOPs that those add to an image's step."""
    wanted = registry.weights(recipe, data.task)
    watched = places(recipe, list(wanted))
    own = FeatureExtractor(recipe, list(wanted), FeatureHooks(student, watched))
    other = FeatureExtractor(recipe, list(wanted), FeatureHooks(teacher, watched))
    example = data.example(2)
    records = [_recorded(net, extractor, data.task, example) for net, extractor in ((student, own), (teacher, other))]
    shapes = [{n: tuple(t.shape) for n, t in record.items()} for record in records]
    for layer in (*recipe.hint_layers, *recipe.attention_layers):
        if not names_under(records[1], layer):
            raise RecipeError(f"distill: the layer '{layer}' gives no tensor in a forward pass; name one that does.")
    selected: dict[str, tuple[int, Tensor]] = {}
    transforms: dict[str, nn.Module] = {}
    if FEATURES in watched and kept is not None:
        if projection(student) is not None:
            transforms[FEATURES] = _Through(student)
        elif shapes[0][FEATURES] != shapes[1][FEATURES]:
            selected[FEATURES] = (-1, kept)
    uneven = _uneven(recipe, shapes[0], shapes[1])
    found = _plan_of_places(teacher, plan, data, example, uneven, watched) if uneven else {}
    flops, generator = 0.0, torch.Generator().manual_seed(hash_seed(seed, 31))
    helpers = nn.ModuleDict()
    for name, (dim, size) in uneven.items():
        narrow = shapes[0][name][dim]
        indices = found.get(name)
        known = indices is not None and len(indices) == narrow
        if known and recipe.hint_match == "channels":
            assert indices is not None
            selected[f"hint {name}"] = (dim, indices)
            continue
        weight = torch.randn(size, narrow, generator=generator) / narrow**0.5
        if known:
            assert indices is not None
            weight = torch.zeros(size, narrow)
            weight[indices, torch.arange(narrow)] = 1
        transforms[f"hint {name}"] = helpers[str(len(helpers))] = Projection(weight, dim)
        positions = records[0][name][0].numel() / narrow
        flops += 6.0 * positions * narrow * size
    own = replace(own, transforms=transforms)
    return own, replace(other, selected=selected), helpers if len(helpers) else None, flops


class _Through(nn.Module):
    """The student's features in the teacher's width: P f."""

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


def _uneven(
    recipe: DistillRecipe, own: Mapping[str, tuple[int, ...]], other: Mapping[str, tuple[int, ...]]
) -> dict[str, tuple[int, int]]:
    """Hinted tensors of which the student has fewer channels: name -> (their dimension, how many the teacher has)."""
    found = {}
    for name, shape in other.items():
        layer = name.split("/")[0].split("#")[0]
        if layer not in recipe.hint_layers or own.get(name) == shape:
            continue
        dims = [d for d, (a, b) in enumerate(zip(own.get(name, ()), shape, strict=False)) if a != b]
        if len(own.get(name, ())) != len(shape) or len(dims) != 1:
            raise RecipeError(
                f"distill.hint_layers: '{layer}' gives {shape} in the teacher and {own.get(name)} in the student, "
                "which differ in more than their channels; name another layer."
            )
        found[name] = (dims[0], shape[dims[0]])
    return found


def _plan_of_places(
    teacher: nn.Module,
    plan: Plan,
    data: ImageData,
    example: Tensor,
    axes: Mapping[str, tuple[int, int]],
    watched: tuple[str, ...],
) -> dict[str, Tensor]:
    layers = tuple(place for place in watched if place in {n.split("/")[0].split("#")[0] for n in axes})
    return kept_channels(teacher, plan, example, lambda net, images: forward_for(net, data.task)(images), axes, layers)


# The teacher's answers, stored ------------------------------------------------------------------------------------


def _stored(
    recipe: DistillRecipe,
    train: Split,
    teacher: nn.Module,
    extractor: FeatureExtractor,
    answer: Callable[[Tensor], Features],
    seed: int,
    fabric: Fabric,
    folder: Path | None,
    progress: Callable[[int, int], None],
) -> tuple[cache.Cache | None, tuple[str, ...]]:
    """The stored answers, computed where they are not there; None, and why, where they cannot be stored."""
    variants = 1 if recipe.augment == "none" else recipe.augment_variants
    if folder is None or variants is None or not recipe.teacher_cache_mb or recipe.mixup or recipe.cutmix:
        return None, ()

    def images(variant: int) -> Iterator[Tensor]:
        for start in range(0, len(train), BATCH):
            index = torch.arange(start, min(start + BATCH, len(train)))
            yield train.batch(index, recipe.augment, seed, variant).images

    probe = answer(train.inputs(0, 2).to(fabric.device))
    needed = cache.size(probe, len(train), variants)
    if needed > recipe.teacher_cache_mb * 1_000_000:
        return None, (
            f"The teacher's answers would take {needed / 1e6:.0f} MB, more than distill.teacher_cache_mb allows "
            f"({recipe.teacher_cache_mb}), so the teacher passes in every step.",
        )
    sample = torch.linspace(0, len(train) - 1, min(32, len(train))).long()
    key = cache.key_of(
        weights=weights_hash(teacher),
        images=cache.images_hash([train.gather(sample), train.batch(sample, recipe.augment, seed).images]),
        count=len(train),
        augment=recipe.augment,
        seed=seed if recipe.augment != "none" else 0,
        variants=variants,
        answers={name: list(value.shape[1:]) for name, value in probe.items()},
        chosen={name: [dim, kept.tolist()] for name, (dim, kept) in extractor.selected.items()},
    )
    if fabric.is_global_zero:
        cache.fill(folder, key, variants, images, lambda batch: answer(batch.to(fabric.device)), progress)
    fabric.barrier()
    return cache.read(folder, key, variants), ()
