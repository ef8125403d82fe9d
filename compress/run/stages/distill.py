"""The stages that train the cut network: from its teacher, and for comparison without one."""

from __future__ import annotations

from torch import nn

from compress import cost, prune
from compress.run.ledger import Outcome
from compress.run.progress import StageView
from compress.run.training import DistillJob, distil_student, on_validation, train
from compress.run.transfer import fresh
from compress.run.workspace import MadeNetwork, Workspace
from compress.train import Trainable


def distil(work: Workspace, view: StageView) -> Outcome:
    """Train the pruned network under its teacher: the student."""
    plan, student = work.plan(), work.load("pruned")
    job = DistillJob("distill", work.recipe.distill, work.load("teacher"), student, plan, work.recipe.seed + 3)
    result = distil_student(work, job, view.advance)
    student.requires_grad_(True)
    made = MadeNetwork(
        "student",
        "Student: pruned and distilled",
        "student",
        result.fit.val_accuracy,
        result.fit.metrics,
        work.ledger.model("pruned").training_flops + result.training_flops,
        plan,
    )
    view.notes.append(f"student: {on_validation(work, result.fit)}")
    return Outcome(
        metrics={"val_accuracy": result.fit.val_accuracy},
        training_flops=result.training_flops,
        notes=result.notes,
        models=(work.save(student, made),),
    )


def finetuned(work: Workspace, view: StageView) -> Outcome:
    """Fine-tune the same pruned network on labels alone, with the training FLOPs of distilling."""
    before = work.ledger.model("pruned").training_flops
    return _without_teacher(work, view, "finetuned", "Pruned and fine-tuned, no teacher", work.load("pruned"), before)


def scratch(work: Workspace, view: StageView) -> Outcome:
    """Train the same small architecture from random weights, with all of the student's training FLOPs."""
    dense = fresh(work.recipe.model, work.target, work.recipe.seed + 200)
    # Weights are drawn for the dense network and then cut: the scale is off by the width alone, which norms undo.
    small = prune.apply(dense, work.plan())
    return _without_teacher(work, view, "scratch", "Small network from scratch", small, 0.0)


def _without_teacher(
    work: Workspace, view: StageView, name: str, title: str, model: nn.Module, before: float
) -> Outcome:
    """Train on labels alone until the network has cost what the student has; ``before`` FLOPs are spent already."""
    budget = work.ledger.model("student").training_flops - before
    recipe = work.recipe.distill.model_copy(update={"backbone_lr": 1.0} if name == "scratch" else {})
    task = Trainable(model, work.target, cost.training_flops(model, work.example), work.recipe.seed + 4)
    result = train(work, view.advance, name, task, recipe, budget)
    flops = before + result.training_flops
    made = MadeNetwork(name, title, name, result.val_accuracy, result.metrics, flops, work.plan())
    view.notes.append(on_validation(work, result))
    return Outcome(
        metrics={"val_accuracy": result.val_accuracy},
        training_flops=result.training_flops,
        notes=result.notes,
        models=(work.save(model, made),),
    )
