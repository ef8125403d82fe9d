"""The stages that make networks: pretrain, transfer, prune, distil, and what they are compared with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from compress import artifact, cost, distill, prune
from compress.errors import PlanError
from compress.files import replacing
from compress.models.detection import raw_heads
from compress.models.weights import classifier_name, read_weights
from compress.prune import Budget, Plan, Trace
from compress.recipe.schema import DistillRecipe, Recipe, TrainRecipe
from compress.run.progress import Advance, StageView
from compress.run.transfer import fresh, started, started_from
from compress.run.workspace import Workspace
from compress.train import TASKS, Fit, Trainable, evaluate, fit
from compress.train.checkpoint import Checkpoints
from compress.train.log import Log
from compress.train.ranks import check_same, once

PRETRAINED = "checkpoints/pretrained.safetensors"
ANSWERS = "checkpoints/answers"


@dataclass(frozen=True)
class Outcome:
    """What a stage has to say of itself."""

    metrics: dict[str, float] = field(default_factory=dict)
    training_flops: float | None = None
    notes: tuple[str, ...] = ()


StageFunction = Callable[[Workspace, StageView], Outcome]


def _train(
    work: Workspace, advance: Advance, name: str, task: Trainable, recipe: TrainRecipe, budget: float | None = None
) -> Fit:
    """`fit` under a name of this run: it goes on where a killed process left it, and leaves its curves in `logs/`."""
    found = fit(
        task,
        recipe,
        work.fabric,
        advance,
        budget=budget,
        checkpoints=Checkpoints(work.training_state(name)),
        log=Log(work.out / "logs", name, tensorboard=work.recipe.tensorboard),
    )
    check_same(task.model, name)
    return found


def on_validation(work: Workspace, result: Fit) -> str:
    return f"{100 * result.val_accuracy:.1f} % {TASKS[work.target.task].title} on validation"


def pretrain(work: Workspace, view: StageView) -> Outcome:
    """Trains the network on the source domain."""
    recipe = work.recipe
    assert recipe.source is not None
    model = started(recipe.model, work.source, recipe.seed)
    flops = cost.training_flops(model, work.example)
    task = Trainable(model, work.source, flops, recipe.seed)
    result = _train(work, view.advance, "pretrain", task, recipe.source.train)
    once(lambda: _write_weights(model, work.out / PRETRAINED))
    view.notes.append(f"{100 * result.val_accuracy:.1f} % of source validation")
    notes = (*work.source.notes, *result.notes)
    return Outcome({"source_val_accuracy": result.val_accuracy}, result.training_flops, notes)


def _write_weights(model: nn.Module, path: Path) -> None:
    with replacing(path) as temporary:
        save_file({n: t.contiguous() for n, t in model.state_dict().items()}, temporary)


def transfer(work: Workspace, view: StageView) -> Outcome:
    """Fine-tunes the pretrained network on the target: the teacher."""
    recipe = work.recipe
    before = 0.0
    if recipe.source is not None:
        state = read_weights(work.out / PRETRAINED)
        model = started_from(recipe.model, work.target, recipe.seed, state, PRETRAINED)
        before = next(s.training_flops or 0.0 for s in work.ledger.stages if s.name == "pretrain")
    else:
        model = started(recipe.model, work.target, recipe.seed)
    task = Trainable(model, work.target, cost.training_flops(model, work.example), recipe.seed + 1)
    result = _train(work, view.advance, "transfer", task, recipe.transfer)
    work.save(
        "teacher",
        "Dense teacher",
        "teacher",
        model,
        val_accuracy=result.val_accuracy,
        val_metrics=result.metrics,
        training_flops=before + result.training_flops,
    )
    view.notes.append(f"teacher: {on_validation(work, result)}")
    notes = (*work.target.notes, *result.notes)
    return Outcome({"val_accuracy": result.val_accuracy}, result.training_flops, notes)


def twin(work: Workspace, view: StageView) -> Outcome:
    """The teacher's architecture from random weights, target data alone, the teacher's training FLOPs."""
    recipe = work.recipe
    model = fresh(recipe.model, work.target, recipe.seed + 100)
    task = Trainable(model, work.target, cost.training_flops(model, work.example), recipe.seed + 2)
    budget = work.ledger.model("teacher").training_flops
    from_scratch = recipe.transfer.model_copy(update={"backbone_lr": 1.0})
    result = _train(work, view.advance, "twin", task, from_scratch, budget)
    work.save(
        "twin",
        "Teacher's twin from scratch",
        "twin",
        model,
        val_accuracy=result.val_accuracy,
        val_metrics=result.metrics,
        training_flops=result.training_flops,
    )
    view.notes.append(f"without transfer: {on_validation(work, result)}")
    notes = result.notes
    if recipe.model.weights is not None:
        notes += ("The FLOPs that the pretrained weights cost before this run are not counted.",)
    return Outcome({"val_accuracy": result.val_accuracy}, result.training_flops, notes)


def traced(recipe: Recipe, model: nn.Module, example: torch.Tensor, task: str = "classification") -> Trace:
    """The trace, with what the recipe protects: its patterns, and the features that a reused classifier reads."""
    trace = prune.trace(model, example[:2], forward=raw_heads(model))
    trace = prune.protect(trace, recipe.prune.protect)
    if distill.reuse(recipe.distill, task) is True:
        head = f"{classifier_name(model)}.weight"
        trace = prune.protect(trace, [head], "the teacher's classifier is reused")
    return trace


def cut(work: Workspace, view: StageView, measure: Callable[[nn.Module], float]) -> Outcome:
    """Removes whole channels down to the budget, proves the cut and saves the network as it then is.

    Over several rounds a part of the way is cut each time, and the network learns from the teacher in between.

    Args:
        work: the run.
        view: its progress.
        measure: latency of a network as a share of the dense one's, for a latency budget.
    """
    asked = work.recipe.prune
    teacher = work.load("teacher")
    network, flops = teacher, 0.0
    plan: Plan | None = None
    notes: tuple[str, ...] = ()
    for turn in range(1, asked.rounds + 1):

        def found(network: nn.Module = network, turn: int = turn) -> tuple[str, tuple[str, ...]]:
            planned = _planner(work, network)
            if asked.budget.macs is None:
                step, notes = _within_latency(work, planned, network, measure, view)
                return step.to_json(), notes
            left = 1 - (1 - asked.budget.macs) * turn / asked.rounds
            now = cost.macs(network, work.example) / cost.macs(teacher, work.example)
            return planned(Budget(macs=min(1.0, left / now))).to_json(), ()

        text, notes = once(found)
        step = Plan.from_json(text)
        plan = step if plan is None else plan.then(step)
        network = prune.apply(network, step)
        if turn < asked.rounds:
            flops += _recover(work, view, teacher, network, plan, turn)
    whole = plan
    assert whole is not None
    metrics = once(lambda: _prove(work, view, teacher, network, whole, flops))
    return Outcome(metrics, flops or None, tuple(notes))


def _prove(
    work: Workspace, view: StageView, teacher: nn.Module, network: nn.Module, plan: Plan, flops: float
) -> dict[str, float]:
    """Holds the cut network against the masked one, measures and saves it; returns the stage's figures."""
    proof = prune.check(teacher, plan, work.example, seed=work.recipe.seed, forward=raw_heads(teacher))
    measured = evaluate(network, work.target, "val", work.fabric)
    accuracy = measured[TASKS[work.target.task].selects]
    work.save(
        "pruned",
        "Pruned, not trained",
        "pruned",
        network,
        plan=plan,
        val_accuracy=accuracy,
        val_metrics=measured,
        training_flops=flops,
    )
    share = _enter_plan(work, plan, proof)
    view.notes.append(f"{100 * share:.1f} % of the MACs; cut = masked within {proof.worst:.0e}")
    return {"macs_share": share, "val_accuracy": accuracy, "proof": proof.worst}


def _planner(work: Workspace, network: nn.Module) -> Callable[[Budget], Plan]:
    """A function from a budget to a plan for `network`, which is traced and scored once."""
    asked = work.recipe.prune
    trace = traced(work.recipe, network, work.example, work.target.task)
    scores = prune.score(trace, network, asked.criterion, seed=work.recipe.seed)

    def planned(budget: Budget) -> Plan:
        return prune.plan(
            trace,
            scores,
            budget=budget,
            scope=asked.scope,
            round_to=asked.round_to,
            min_kept=asked.min_kept,
            asked={"criterion": asked.criterion},
        )

    return planned


def _recover(work: Workspace, view: StageView, teacher: nn.Module, network: nn.Module, plan: Plan, turn: int) -> float:
    """Distils for a few epochs between two rounds of cutting; returns the FLOPs spent."""
    recipe = work.recipe.distill
    short = recipe.model_copy(update={"epochs": work.recipe.prune.recover_epochs, "training_flops": None})
    rounds = work.recipe.prune.rounds - 1

    def advance(done: int, total: int, text: str) -> None:
        view.advance((turn - 1) * total + done, rounds * total, text)

    seed = work.recipe.seed + 10 + turn
    return taught(work, f"recover-{turn}", short, (teacher, network), plan, seed, advance)[1]


def taught(
    work: Workspace,
    name: str,
    recipe: DistillRecipe,
    networks: tuple[nn.Module, nn.Module],
    plan: Plan,
    seed: int,
    advance: Advance,
) -> tuple[Fit, float, tuple[str, ...]]:
    """Trains (teacher, student)[1] under the recipe's losses; also the FLOPs of it all, and what to note."""
    teacher, student = networks
    data, answered = distill.with_answers(work.target, teacher, work.fabric.device)
    lesson = distill.lesson(
        recipe,
        data,
        student,
        teacher,
        plan,
        seed=seed,
        fabric=work.fabric,
        folder=work.out / ANSWERS,
        progress=lambda done, total: advance(0, 1, f"teacher's answers {done} of {total}"),
    )
    task = Trainable(student, data, lesson.flops_per_image, seed, lesson.loss, lesson.helpers)
    once_flops = lesson.flops_once + answered
    budget = None if recipe.training_flops is None else recipe.training_flops - once_flops
    result = _train(work, advance, name, task, recipe, budget)
    distill.fold_classifier(student)
    # Both come back where they were: what follows traces and proves there.
    teacher.cpu()
    more = len(data.splits["train"]) - len(work.target.splits["train"])
    said = (f"{more} images without labels were learned from too, as the teacher classes them.",) if more else ()
    return result, result.training_flops + once_flops, (*said, *lesson.notes, *result.notes)


def _enter_plan(work: Workspace, plan: Plan, proof: prune.Proof) -> float:
    """Writes the plan's figures into the ledger; returns the share of the MACs that is left."""
    asked = work.recipe.prune
    dense, own = work.ledger.model("teacher"), work.ledger.model("pruned")
    work.ledger = work.ledger.model_copy(
        update={
            "plan": {
                "criterion": asked.criterion,
                "scope": asked.scope,
                "round_to": asked.round_to,
                "rounds": asked.rounds,
                "budget": asked.budget.model_dump(exclude_none=True),
                "macs_before": dense.macs,
                "macs_after": own.macs,
                "params_before": dense.params,
                "params_after": own.params,
                "proof": proof.model_dump(),
                "groups": [g.model_dump() for g in plan.groups],
                "protected": plan.protected,
            }
        }
    )
    return own.macs / dense.macs


def _within_latency(
    work: Workspace,
    planned: Callable[[Budget], Plan],
    teacher: nn.Module,
    measure: Callable[[nn.Module], float],
    view: StageView,
) -> tuple[Plan, tuple[str, ...]]:
    """Bisects the MACs for the largest network whose measured latency is within the target."""
    asked = work.recipe.prune
    target = asked.budget.latency
    assert target is not None
    trace = traced(work.recipe, teacher, work.example, work.target.task)
    low, high, tries = prune.smallest_share(trace, asked.round_to, asked.min_kept), 1.0, 7
    best: tuple[Plan, float] | None = None
    fastest = 1.0
    for attempt in range(tries):
        share = low if attempt == 0 else (low + high) / 2
        # A hair above the floor, so that rounding does not push the floor out of reach.
        plan = planned(Budget(macs=min(1.0, share * 1.0001)))
        ratio = measure(prune.apply(teacher, plan))
        fastest = min(fastest, ratio)
        view.advance(attempt + 1, tries, f"{100 * share:.0f} % of the MACs: latency x {ratio:.2f}")
        if ratio <= target:
            low, best = share, (plan, ratio)
        elif attempt == 0:
            break
        else:
            high = share
    if best is None:
        raise PlanError(
            f"A latency of {target:g} of the dense one is impossible here: the smallest network that the recipe "
            f"allows measured {fastest:.2f}; ask for latency: {min(1.0, fastest * 1.05):.2f} or more, "
            "or lower prune.min_kept."
        )
    return best[0], (f"Measured latency of the cut network: {best[1]:.3f} of the dense one's.",)


def distil(work: Workspace, view: StageView) -> Outcome:
    """Trains the pruned network under the teacher's eyes: the student."""
    plan = _plan(work)
    student = work.load("pruned")
    networks, seed = (work.load("teacher"), student), work.recipe.seed + 3
    result, flops, notes = taught(work, "distill", work.recipe.distill, networks, plan, seed, view.advance)
    student.requires_grad_(True)
    work.save(
        "student",
        "Student: pruned and distilled",
        "student",
        student,
        plan=plan,
        val_accuracy=result.val_accuracy,
        val_metrics=result.metrics,
        training_flops=work.ledger.model("pruned").training_flops + flops,
    )
    view.notes.append(f"student: {on_validation(work, result)}")
    return Outcome({"val_accuracy": result.val_accuracy}, flops, notes)


def finetuned(work: Workspace, view: StageView) -> Outcome:
    """The same pruned network fine-tuned on labels alone, with the training FLOPs of distilling."""
    before = work.ledger.model("pruned").training_flops
    return _without_teacher(work, view, "finetuned", "Pruned and fine-tuned, no teacher", work.load("pruned"), before)


def scratch(work: Workspace, view: StageView) -> Outcome:
    """The same small architecture from random weights, with all of the student's training FLOPs."""
    dense = fresh(work.recipe.model, work.target, work.recipe.seed + 200)
    # Weights are drawn for the dense network and then cut: the scale is off by the width alone, which norms undo.
    small = prune.apply(dense, _plan(work))
    return _without_teacher(work, view, "scratch", "Small network from scratch", small, 0.0)


def _without_teacher(
    work: Workspace, view: StageView, name: str, title: str, model: nn.Module, before: float
) -> Outcome:
    """Trains on labels alone until the network has cost what the student has; `before` is spent already."""
    budget = work.ledger.model("student").training_flops - before
    recipe = work.recipe.distill.model_copy(update={"backbone_lr": 1.0} if name == "scratch" else {})
    task = Trainable(model, work.target, cost.training_flops(model, work.example), work.recipe.seed + 4)
    result = _train(work, view.advance, name, task, recipe, budget)
    work.save(
        name,
        title,
        name,
        model,
        plan=_plan(work),
        val_accuracy=result.val_accuracy,
        val_metrics=result.metrics,
        training_flops=before + result.training_flops,
    )
    view.notes.append(on_validation(work, result))
    return Outcome({"val_accuracy": result.val_accuracy}, result.training_flops, result.notes)


def _plan(work: Workspace) -> Plan:
    plan = artifact.describe(work.folder("pruned")).plan
    assert plan is not None
    return plan
