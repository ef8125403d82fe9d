"""Reuse the teacher's classifier in the student: as it is, or behind a learned projection that can be folded away."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from compress.data.images import Split
from compress.distill.feature_hooks import FEATURES, FeatureHooks
from compress.models.weights import classifier_name


def reuse_classifier(student: nn.Module, teacher: nn.Module, *, freeze: bool = True, keep: bool = False) -> None:
    """Give the student the teacher's classifier; both read features of the same width.

    After SimKD (Chen et al., Knowledge Distillation with the Reused Teacher Classifier, 2022); Model Pruning
    with Model Transfer (2023) also reuses it. Freezing it is our choice.

    Args:
        student: changed in place.
        teacher: the full-size network.
        freeze: whether it stays fixed.
        keep: leave the student's own, which came from the teacher and may have been solved again since.
    """
    own = student.get_submodule(classifier_name(student))
    if not keep:
        own.load_state_dict(teacher.get_submodule(classifier_name(teacher)).state_dict())
    own.requires_grad_(not freeze)


class Projected(nn.Module):
    """The weight W P of a classifier: the teacher's W, and a learned projection P of the student's features.

    Args:
        weight: W, shape (classes, D) or, for a 1x1 convolution, (classes, D, 1, 1).
        kept: which of the D features the student has, int64 (D_student,).
        freeze: whether W stays fixed.
        keep: whether the student's weight at the start stays what it is, where W's rank allows it.
    """

    def __init__(self, weight: Tensor, kept: Tensor, *, freeze: bool, keep: bool = False) -> None:
        super().__init__()
        self.teacher = nn.Parameter(weight.detach().clone(), requires_grad=not freeze)
        self.kept, self.keep = kept, keep

    def forward(self, projection: Tensor) -> Tensor:
        """Map P, shape (D, D_student), to W P in the shape of the student's weight."""
        product = self.teacher.flatten(1) @ projection
        return product.reshape(*product.shape, *self.teacher.shape[2:])

    def right_inverse(self, weight: Tensor) -> Tensor:
        """The initial P: it selects what is left, and adds the least that gives ``weight`` if asked to."""
        start = weight.new_zeros(self.teacher.shape[1], len(self.kept))
        start[self.kept, torch.arange(len(self.kept))] = 1
        if not self.keep:
            return start
        whole = self.teacher.detach().flatten(1)
        return start + torch.linalg.pinv(whole) @ (weight.flatten(1) - whole @ start)


def project_classifier(
    student: nn.Module, teacher: nn.Module, kept: Tensor, *, freeze: bool = True, keep: bool = False
) -> None:
    """Make the student's classifier compute with W P and the teacher's bias, where P is learned.

    After SimKD (Chen et al., 2022), whose projector is convolutional and stays in the network; ours is one
    matrix, so that ``fold_classifier`` can remove it.

    Args:
        student: its classifier reads D_student features.
        teacher: its classifier reads D.
        kept: which of the D the student has, int64 (D_student,).
        freeze: keep W and b fixed and learn P alone.
        keep: begin with the student's own weight and bias, which came from the teacher and may have been solved again.
    """
    own = student.get_submodule(classifier_name(student))
    theirs = teacher.get_submodule(classifier_name(teacher))
    weight, bias = theirs.get_parameter("weight"), theirs.bias
    if isinstance(bias, Tensor):
        assert isinstance(own.bias, Tensor)
        if not keep:
            own.bias.data.copy_(bias.detach())
        own.bias.requires_grad_(not freeze)
    parametrize.register_parametrization(own, "weight", Projected(weight, kept, freeze=freeze, keep=keep))


def projection(model: nn.Module) -> nn.Parameter | None:
    """P, shape (D, D_student), or None without one; detectors and segmenters have no classifier to project."""
    own = next((m for m in reversed([*model.modules()]) if isinstance(m, nn.Linear)), None)
    if own is None or not parametrize.is_parametrized(own, "weight"):
        return None
    return own.get_parameter("parametrizations.weight.original")


def fold_classifier(student: nn.Module) -> None:
    """Fold P into the weight, W = W_teacher P, and leave a plain layer; do nothing where there is no P."""
    if projection(student) is not None:
        own = student.get_submodule(classifier_name(student))
        parametrize.remove_parametrizations(own, "weight", leave_parametrized=True)


def class_means(teacher: nn.Module, split: Split, classes: int) -> Tensor:
    """Mean feature of each class over the un-augmented training images, shape (classes, D)."""
    hooks = FeatureHooks(teacher, (FEATURES,))
    sums: Tensor | None = None
    counts = torch.zeros(classes)
    device = next(teacher.parameters()).device
    with torch.no_grad():
        for batch in split.batches(256):
            with hooks.recording() as outputs:
                teacher(batch.images.to(device))
            features = outputs[FEATURES].float().flatten(1).cpu()
            if sums is None:
                sums = torch.zeros(classes, features.shape[1])
            sums.index_add_(0, batch.targets, features)
            counts += torch.bincount(batch.targets, minlength=classes)
    assert sums is not None
    return sums / counts.clamp_min(1)[:, None]
