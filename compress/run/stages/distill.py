"""The stages that train the cut network: from its teacher, and for comparison without one."""

from __future__ import annotations

from torch import nn

from compress import cost, prune
from compress.run.ledger import Outcome
from compress.run.progress import StageView
from compress.run.training import DistillJob, distil_student, on_validation, train
from compress.run.transfer import fresh
from compress.run.workspace import MadeNetwork, Workspace
from compress.train import Fit, Trainable

AS_CUT = "On validation nothing that distilling came to was better than the network as it was cut: that is the student."


def distil(work: Workspace, view: StageView) -> Outcome:
    """Train the pruned network under its teacher: the student."""
    plan, student = work.plan(), work.load("pruned")
    if work.recipe.order == "S-T-P":
        return _as_cut(work, view, student)
    teacher = work.load("sparse" if work.recipe.distill.teacher == "sparse" else "teacher")
    job = DistillJob("distill", work.recipe.distill, teacher, student, plan, work.recipe.seed + 3)
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
    beside = work.ledger.model("teacher").val_accuracy
    more = "" if beside is None else f"; the teacher {100 * beside:.1f} %"
    view.notes.append(f"student: {on_validation(work, result.fit)}{more}")
    if not result.fit.best_step:
        view.notes.append("that is the network as it was cut, since training came to nothing better")
    return Outcome(
        metrics={"val_accuracy": result.fit.val_accuracy},
        training_flops=result.training_flops,
        notes=(*((AS_CUT,) if not result.fit.best_step else ()), *result.notes),
        models=(work.save(student, made),),
    )


def _as_cut(work: Workspace, view: StageView, student: nn.Module) -> Outcome:
    """Take the cut network for the student as it is: the order ends with the cut."""
    entry = work.ledger.model("pruned")
    title = "Student: pruned, not trained since"
    made = MadeNetwork(
        "student", title, "student", entry.val_accuracy or 0.0, entry.val_metrics, entry.training_flops, work.plan()
    )
    view.notes.append("nothing is trained after the cut")
    return Outcome(metrics={"val_accuracy": made.val_accuracy}, models=(work.save(student, made),))


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


def scratch_e(work: Workspace, view: StageView) -> Outcome:
    """Train the small architecture from random weights for as many epochs as the large network had: Scratch-E.

    Liu et al., Rethinking the Value of Network Pruning, 2019.
    """
    per_image = [work.ledger.model(name).macs for name in ("pruned", "teacher")]
    return _from_scratch(work, view, "scratch_e", per_image[0] / per_image[1])


def scratch_b(work: Workspace, view: StageView) -> Outcome:
    """Train it with as many FLOPs as the large network's training took: Scratch-B of the same paper."""
    return _from_scratch(work, view, "scratch_b", 1.0)


def _from_scratch(work: Workspace, view: StageView, name: str, share: float) -> Outcome:
    """Train from random weights as transfer does, with a share of the large network's training FLOPs.

    What the pruned network's own training cost is beyond that, as in the paper, unless the recipe counts it.
    """
    recipe, ledger = work.recipe, work.ledger
    assert recipe.transfer is not None
    more = ledger.model("student").training_flops if recipe.distill.count_finetuning else 0.0
    budget = share * ledger.model("teacher").training_flops + more
    small = prune.apply(fresh(recipe.model, work.target, recipe.seed + 200), work.plan())
    task = Trainable(small, work.target, cost.training_flops(small, work.example), recipe.seed + 4)
    how = recipe.transfer.model_copy(update={"backbone_lr": 1.0, "freeze_epochs": 0})
    result = train(work, view.advance, name, task, how, budget)
    title = f"Small network from scratch: {name.replace('_', '-').capitalize()}"
    return _compared(work, view, small, (name, title), result)


def _without_teacher(
    work: Workspace, view: StageView, name: str, title: str, model: nn.Module, before: float
) -> Outcome:
    """Train on labels alone until the network has cost what the student has; ``before`` FLOPs are spent already."""
    budget = work.ledger.model("student").training_flops - before
    recipe = work.recipe.distill.model_copy(update={"backbone_lr": 1.0} if name == "scratch" else {})
    flops, pretrained = cost.training_flops(model, work.example), name != "scratch"
    task = Trainable(model, work.target, flops, work.recipe.seed + 4, from_start=pretrained)
    result = train(work, view.advance, name, task, recipe, budget)
    return _compared(work, view, model, (name, title), result, before)


def _compared(
    work: Workspace, view: StageView, model: nn.Module, said: tuple[str, str], result: Fit, before: float = 0.0
) -> Outcome:
    """Save a network that was trained beside the student, under a name and a title; ``before`` FLOPs came earlier."""
    name, title = said
    flops = before + result.training_flops
    made = MadeNetwork(name, title, name, result.val_accuracy, result.metrics, flops, work.plan())
    view.notes.append(on_validation(work, result))
    return Outcome(
        metrics={"val_accuracy": result.val_accuracy},
        training_flops=result.training_flops,
        notes=result.notes,
        models=(work.save(model, made),),
    )
