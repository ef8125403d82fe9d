"""How the stages of a run train a network: on labels alone, or from its teacher."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from compress import distill
from compress.prune import Plan
from compress.recipe.schema import AFTER_TRANSFER, DistillRecipe, TrainRecipe
from compress.run.progress import Advance
from compress.run.workspace import Workspace
from compress.train import TASKS, Fit, Trainable, fit
from compress.train.checkpoint import Checkpoints
from compress.train.log import Log
from compress.train.ranks import check_same

TEACHER_OUTPUTS = "checkpoints/answers"
"""Where the teacher's outputs are stored in the run folder."""


@dataclass(frozen=True)
class DistillJob:
    """One training of a student by its teacher.

    Args:
        name: of the training in this run: its checkpoint and its curves bear it.
        recipe: how long, and with which losses.
        teacher: the full-size network.
        student: the cut network, trained in place.
        plan: teacher to student.
        seed: of everything drawn.
        from_start: whether the student may end with the weights that it begins with.
    """

    name: str
    recipe: DistillRecipe
    teacher: nn.Module
    student: nn.Module
    plan: Plan
    seed: int
    from_start: bool = True


@dataclass(frozen=True)
class Distilled:
    """What distilling came to.

    Args:
        fit: the training itself.
        training_flops: of the training and of the teacher's passes before it.
        notes: what a user should know, a sentence each.
    """

    fit: Fit
    training_flops: float
    notes: tuple[str, ...]


def train(
    work: Workspace, advance: Advance, name: str, task: Trainable, recipe: TrainRecipe, budget: float | None = None
) -> Fit:
    """Train under a name of this run: go on where a killed process left off, and leave the curves in ``logs/``.

    Args:
        work: the run.
        advance: told of every step.
        name: of the training.
        task: the network and its data.
        recipe: how it is trained.
        budget: training FLOPs in place of what the recipe says; None for the recipe's.
    """
    found = fit(
        task,
        recipe,
        work.fabric,
        advance,
        budget=budget,
        checkpoints=Checkpoints(work.training_state(name), made_from=work.basis),
        log=Log(work.out / "logs", name, tensorboard=work.recipe.tensorboard),
    )
    check_same(task.model, name)
    return found


def distil_student(work: Workspace, job: DistillJob, advance: Advance) -> Distilled:
    """Train a student under the losses of the job's recipe; both networks come back on the CPU.

    The weights that it begins with are what it ends with where no later ones are better on validation: more accurate,
    or, where a classifier learns from its teacher alone, nearer to the teacher's answers.
    """
    recipe, student = job.recipe, job.student
    data, answered = distill.with_answers(work.target, job.teacher, work.fabric.device)
    setup = distill.set_up(
        recipe,
        data,
        student,
        job.teacher,
        job.plan,
        seed=job.seed,
        fabric=work.fabric,
        from_teacher=work.recipe.order in AFTER_TRANSFER,
        folder=work.out / TEACHER_OUTPUTS,
        progress=lambda done, total: advance(done, total, "teacher's answers"),
    )
    before = setup.flops_once + answered
    said = None
    if data.task == "classification" and not recipe.labels:
        said = distill.answers(job.teacher, data.splits["val"], work.fabric.device)
    task = Trainable(
        student,
        data,
        setup.flops_per_image,
        job.seed,
        setup.loss,
        setup.helpers,
        from_start=job.from_start,
        answers=said,
    )
    budget = None if recipe.training_flops is None else recipe.training_flops - before
    result = train(work, advance, job.name, task, recipe, budget)
    distill.fold_classifier(student)
    # What follows traces and proves on the CPU.
    job.teacher.cpu()
    more = len(data.splits["train"]) - len(work.target.splits["train"])
    learned = (
        (f"{more} images without labels were learned from too, with the classes that the teacher gave them.",)
        if more
        else ()
    )
    return Distilled(result, result.training_flops + before, (*learned, *setup.notes, *result.notes))


def on_validation(work: Workspace, result: Fit) -> str:
    """Say what a training reached on validation data, such as ``97.5 % accuracy on validation``."""
    return f"{100 * result.val_accuracy:.1f} % {TASKS[work.target.task].title} on validation"
