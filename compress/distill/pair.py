"""A student and its teacher, as the parts of a distillation's setup hand them around."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from compress.data.images import ImageData
from compress.distill import registry
from compress.models.weights import classifier_name
from compress.prune import Plan
from compress.recipe.schema import DistillRecipe


@dataclass(frozen=True)
class Pair:
    """Two networks and what one learns from the other on.

    Args:
        recipe: weights and settings.
        data: the target data.
        student: the cut network.
        teacher: the full-size network.
        plan: teacher to student.
        seed: of the student's training, which decides its augmentation.
        from_teacher: whether the student was cut from this very teacher: its classifier is then the teacher's already,
            as the repair after the cut left it.
    """

    recipe: DistillRecipe
    data: ImageData
    student: nn.Module
    teacher: nn.Module
    plan: Plan
    seed: int
    from_teacher: bool = False

    @property
    def task(self) -> str:
        """What both networks are for."""
        return self.data.task

    @property
    def losses(self) -> dict[str, float]:
        """The losses that have weight, each with it."""
        return registry.weights(self.recipe, self.task)

    @property
    def kept(self) -> Tensor | None:
        """Which of the teacher's features the student still has, int64 (D_student,); None where nothing reads them."""
        if registry.reuse(self.recipe, self.task) or registry.reads_features(self.recipe, self.task):
            return kept_features(self.teacher, self.plan)
        return None


def kept_features(teacher: nn.Module, plan: Plan) -> Tensor:
    """Return which of the features that the teacher's classifier reads the student still has, int64 (D_student,)."""
    name = f"{classifier_name(teacher)}.weight"
    return torch.from_numpy(plan.kept_indices((name, 1), teacher.get_parameter(name).shape[1]))
