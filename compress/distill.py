"""From a teacher to a student: the losses, each a function, and their weighted sum."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compress.data.images import Batch, Split
from compress.models import classifier_name
from compress.recipe import DistillRecipe
from compress.train.loop import Loss


def logits_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T^2 KL(teacher / T || student / T), mean over the batch (Hinton et al., Distilling the Knowledge, 2015).

    Args:
        student: logits of shape (N, classes).
        teacher: logits of shape (N, classes), no gradient.
        temperature: T.
    """
    log_student = F.log_softmax(student / temperature, dim=1)
    log_teacher = F.log_softmax(teacher / temperature, dim=1)
    return temperature**2 * F.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True)


def class_mean_loss(student: Tensor, teacher: Tensor, means: Tensor, labels: Tensor) -> Tensor:
    """Pulls features towards their class's mean, as the full-size network computes it.

    mean over n of 1 - <s_n, m_y / |m_y|> / max(|s_n|, |t_n|): direction and norm. That features are aligned to
    class means follows Model Pruning with Model Transfer (2023); the formula is the norm-and-direction loss,
    and taking it here is our choice, since the paper's own is not published.

    Args:
        student: features of shape (N, D).
        teacher: features of the same images, shape (N, D), no gradient.
        means: class means, shape (classes, D).
        labels: shape (N,).
    """
    directions = F.normalize(means, dim=1)[labels]
    norms = torch.maximum(student.norm(dim=1), teacher.norm(dim=1)).clamp_min(1e-8)
    return (1 - (student * directions).sum(1) / norms).mean()


def reuse_classifier(student: nn.Module, teacher: nn.Module) -> None:
    """Gives the student the teacher's classifier, frozen; both read features of the same width.

    After SimKD (Chen et al., Knowledge Distillation with the Reused Teacher Classifier, 2022); Model Pruning
    with Model Transfer (2023) reuses it likewise. Freezing it is our choice.
    """
    own = student.get_submodule(classifier_name(student))
    own.load_state_dict(teacher.get_submodule(classifier_name(teacher)).state_dict())
    own.requires_grad_(False)


class Tap:
    """Runs a network and keeps what its classifier was fed, shape (N, D)."""

    def __init__(self, model: nn.Module) -> None:
        self.layer = model.get_submodule(classifier_name(model))

    @contextmanager
    def open(self) -> Iterator[list[Tensor]]:
        seen: list[Tensor] = []
        handle = self.layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        try:
            yield seen
        finally:
            handle.remove()


def class_means(teacher: nn.Module, split: Split, classes: int) -> Tensor:
    """Mean feature of each class over the un-augmented training images, shape (classes, D)."""
    tap = Tap(teacher)
    sums: Tensor | None = None
    counts = torch.zeros(classes)
    device = next(teacher.parameters()).device
    with torch.inference_mode(), tap.open() as seen:
        for batch in split.batches(256):
            teacher(batch.images.to(device))
            features = seen.pop().float().cpu()
            if sums is None:
                sums = torch.zeros(classes, features.shape[1])
            sums.index_add_(0, batch.targets, features)
            counts += torch.bincount(batch.targets, minlength=classes)
    assert sums is not None
    return sums / counts.clamp_min(1)[:, None]


def student_loss(recipe: DistillRecipe, student: nn.Module, teacher: nn.Module, kept: Tensor, means: Tensor) -> Loss:
    """The weighted sum that the recipe asks for.

    Args:
        recipe: the weights; a loss of weight 0 costs nothing.
        student: the network that learns; its features are tapped.
        teacher: the full-size network, in eval mode, on the student's device.
        kept: which of the teacher's features the student still has, int64, shape (D_student,).
        means: the teacher's class means, shape (classes, D_teacher).
    """
    own, others = Tap(student), Tap(teacher)
    teacher.requires_grad_(False).eval()

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        inputs, labels = batch.images, batch.targets
        wanted = labels if batch.soft is None else batch.soft
        with torch.no_grad(), others.open() as seen:
            expected = teacher(inputs)
        target = seen[0][:, kept.to(inputs.device)]
        with own.open() as seen:
            logits = model(inputs)
        total = recipe.labels * F.cross_entropy(logits, wanted, label_smoothing=recipe.label_smoothing)
        if recipe.logits:
            total = total + recipe.logits * logits_loss(logits, expected, recipe.temperature)
        if recipe.class_means:
            centre = means[:, kept].to(inputs.device)
            total = total + recipe.class_means * class_mean_loss(seen[0], target, centre, labels)
        return total

    return loss
