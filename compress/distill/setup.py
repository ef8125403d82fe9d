"""What a student is trained with: one loss, what learns beside it, and what the teacher costs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor, nn

from compress import cost
from compress.data.images import Batch, ImageData
from compress.distill import registry
from compress.distill.cache import Cache
from compress.distill.classifier import class_means, project_classifier, reuse_classifier
from compress.distill.feature_hooks import FEATURES
from compress.distill.features import FeatureExtractor
from compress.distill.matching import match
from compress.distill.pair import Pair
from compress.distill.registry import LOSSES, Features, LossInputs
from compress.distill.teacher import Storage, forward_flops, stored_features, teacher_features
from compress.models.weights import classifier_name
from compress.prune import Plan
from compress.recipe.schema import DistillRecipe
from compress.train.loop import Loss
from compress.train.tasks import TASKS

if TYPE_CHECKING:
    from lightning.fabric import Fabric


@dataclass(frozen=True)
class Distillation:
    """How one student is trained by its teacher.

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


def set_up(
    recipe: DistillRecipe,
    data: ImageData,
    student: nn.Module,
    teacher: nn.Module,
    plan: Plan,
    *,
    seed: int,
    fabric: Fabric,
    from_teacher: bool = False,
    folder: Path | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Distillation:
    """Prepare everything that the recipe's losses need; the teacher's classifier goes into the student here.

    Args:
        recipe: weights and settings.
        data: the target data.
        student: the cut network, changed in place; ``fold_classifier`` makes its classifier plain again.
        teacher: the full-size network; it is frozen, and moved to the fabric's device.
        plan: teacher to student.
        seed: of the student's training, which decides its augmentation.
        fabric: the device and the processes.
        from_teacher: whether the student was cut from this very teacher; a reused classifier then stays as the repair
            after the cut left it.
        folder: where the teacher's features may be stored; None for nowhere.
        progress: told variants stored and in all.

    Raises:
        RecipeError: a loss is for another task, a layer is unknown or gives no tensors that fit.
    """
    registry.check(recipe, data.task, teacher)
    teacher.requires_grad_(False).eval()
    pair = Pair(recipe, data, student, teacher, plan, seed, from_teacher)
    per_image = _inherit_classifier(pair)
    if not pair.losses:
        return Distillation(_labels_alone(pair), None, per_image, 0.0)
    matched = match(pair)
    train = data.splits["train"]
    teacher.to(fabric.device)
    a_pass = forward_flops(teacher, data.task, train.inputs(0, 1).to(fabric.device))
    once, means = 0.0, None
    if "class_means" in pair.losses:
        means = class_means(teacher, train, len(data.classes))
        if FEATURES in matched.teacher.selected:
            means = means[:, matched.teacher.selected[FEATURES][1]]
        once += a_pass * len(train)
    features = teacher_features(pair, matched.teacher)
    stored, notes = stored_features(pair, matched.teacher, features, Storage(folder, fabric, progress))
    if stored is not None:
        once += a_pass * len(train) * len(stored.variants)
    loss = _weighted_sum(pair, matched.student, _Teacher(features, stored, means))
    step = per_image + matched.flops_per_image + (a_pass if stored is None else 0.0)
    return Distillation(loss, matched.helpers, step, once, notes)


@dataclass(frozen=True)
class _Teacher:
    """What the loss takes from the teacher: features, computed or stored, and class means (classes, D) or None."""

    compute: Callable[[Tensor], Features]
    stored: Cache | None
    means: Tensor | None

    def features(self, batch: Batch) -> Features:
        """Return the teacher's features of a batch, on its device."""
        if self.stored is None:
            return self.compute(batch.images)
        return self.stored.rows(batch.variant, batch.index, batch.images.device)


def _inherit_classifier(pair: Pair) -> float:
    """Put the teacher's classifier into the student as the recipe asks; return the student's FLOPs for one image."""
    recipe, reuse = pair.recipe, registry.reuse(pair.recipe, pair.task)
    if reuse is True:
        reuse_classifier(pair.student, pair.teacher, freeze=recipe.freeze_classifier, keep=pair.from_teacher)
    per_image = float(cost.training_flops(pair.student, pair.data.example(2)))
    if reuse == "projected":
        kept = pair.kept
        assert kept is not None
        project_classifier(pair.student, pair.teacher, kept, freeze=recipe.freeze_classifier, keep=pair.from_teacher)
        # W P is made once a step, forward and backward, not once an image.
        weight = pair.teacher.get_submodule(classifier_name(pair.teacher)).get_parameter("weight")
        per_image += 6.0 * weight.numel() * len(kept) / min(recipe.batch_size, len(pair.data.splits["train"]))
    return per_image


def _labels_alone(pair: Pair) -> Loss:
    """Return the loss of a recipe in which the teacher has no weight."""
    task, recipe = TASKS[pair.task], pair.recipe
    return lambda model, batch: recipe.labels * task.loss(model, batch, recipe.label_smoothing)


def _weighted_sum(pair: Pair, extractor: FeatureExtractor, teacher: _Teacher) -> Loss:
    """Return the loss of labels and teacher; one pass of the student serves both."""
    recipe, wanted, task = pair.recipe, pair.losses, TASKS[pair.task]
    exclusive = _exclusive(pair.teacher)

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        with extractor.hooks.recording() as outputs:
            supervised = task.loss(model, batch, recipe.label_smoothing)
        expected = teacher.features(batch)
        labels = batch.targets if batch.soft is None else batch.soft
        means = None if teacher.means is None else teacher.means.to(batch.images.device)
        inputs = LossInputs(recipe, extractor.extract(outputs), expected, labels, means, exclusive)
        total = recipe.labels * supervised
        for name, weight in wanted.items():
            total = total + weight * LOSSES[name].value(inputs)
        return total

    return loss


def _exclusive(teacher: nn.Module) -> bool:
    """Tell whether a detector's head has one softmax over background and classes: SSD; the others have sigmoids."""
    from torchvision.models.detection.ssd import SSD

    return isinstance(teacher, SSD)
