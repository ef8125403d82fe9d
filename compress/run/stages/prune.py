"""The stage that cuts: whole channels go until the budget is met, and the cut is proved."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from compress import cost, prune
from compress.models.detection import raw_heads
from compress.prune import Budget, Plan
from compress.run.calibration import calibration_images
from compress.run.latency import LatencyJob, within_latency
from compress.run.ledger import ModelEntry, Outcome
from compress.run.progress import StageView
from compress.run.scoring import reconstructed, said_of, scores
from compress.run.tracing import traced
from compress.run.training import DistillJob, distil_student
from compress.run.workspace import MadeNetwork, Workspace
from compress.train import TASKS, evaluate
from compress.train.ranks import once


def cut(work: Workspace, view: StageView) -> Outcome:
    """Remove whole channels down to the budget, prove the cut and save the network as it then is.

    Over several rounds a part of the way is cut each time, and the network learns from the teacher in between.

    Raises:
        PlanError: a latency budget that no plan within the recipe's bounds meets.
    """
    asked = work.recipe.prune
    teacher = work.load("teacher")
    network, flops = teacher, 0.0
    plan: Plan | None = None
    notes: list[str] = []
    for turn in range(1, asked.rounds + 1):

        def found(network: nn.Module = network, turn: int = turn) -> tuple[str, tuple[str, ...]]:
            if asked.budget.latency is not None:
                step, measured = _within_latency(work, (teacher, network), turn / asked.rounds, view)
                return step.to_json(), measured
            planned = _planner(work, network)
            if asked.rounds == 1:
                return planned(asked.budget).to_json(), ()
            assert asked.budget.macs is not None
            left = 1 - (1 - asked.budget.macs) * turn / asked.rounds
            now = cost.macs(network, work.example) / cost.macs(teacher, work.example)
            return planned(Budget(macs=min(1.0, left / now))).to_json(), ()

        text, said = once(found)
        step = Plan.from_json(text)
        plan = step if plan is None else plan.then(step)
        whole, network = network, prune.apply(network, step)
        notes += said
        if asked.reconstruct:
            # Every process of a run does the same on the same images.
            network, report = reconstructed(work, whole, network, step)
            notes.append(said_of(report))
        if turn < asked.rounds:
            flops += _recover(work, view, (teacher, network), plan, turn)
    done = plan
    assert done is not None
    proved = once(lambda: _proved(work, view, (teacher, network), done, flops).model_dump_json())
    return Outcome.model_validate_json(proved).model_copy(update={"notes": tuple(notes)})


def _proved(
    work: Workspace, view: StageView, networks: tuple[nn.Module, nn.Module], plan: Plan, flops: float
) -> Outcome:
    """Hold the cut network against the masked teacher, measure it and save it.

    Args:
        work: the run.
        view: its progress.
        networks: the teacher and the cut network.
        plan: from one to the other.
        flops: what recovering between rounds trained with.
    """
    teacher, network = networks
    proof = prune.check(teacher, plan, work.example, seed=work.recipe.seed, forward=raw_heads(teacher))
    measured = evaluate(network, work.target, "val", work.fabric)
    accuracy = measured[TASKS[work.target.task].selects]
    made = MadeNetwork("pruned", "Pruned, not trained", "pruned", accuracy, measured, flops, plan)
    entry, dense = work.save(network, made), work.ledger.model("teacher")
    share = entry.macs / dense.macs
    view.notes.append(f"{100 * share:.1f} % of the MACs; cut = masked within {proof.worst:.0e}")
    return Outcome(
        metrics={"macs_share": share, "val_accuracy": accuracy, "proof": proof.worst},
        training_flops=flops or None,
        models=(entry,),
        plan=_figures(work, plan, proof, dense, entry),
    )


def _figures(work: Workspace, plan: Plan, proof: prune.Proof, dense: ModelEntry, pruned: ModelEntry) -> dict[str, Any]:
    """Return what the ledger holds of the plan."""
    asked = work.recipe.prune
    return {
        "criterion": asked.criterion,
        "scope": asked.scope,
        "round_to": asked.round_to,
        "reconstruct": asked.reconstruct,
        "rounds": asked.rounds,
        "budget": asked.budget.model_dump(exclude_none=True),
        "macs_before": dense.macs,
        "macs_after": pruned.macs,
        "params_before": dense.params,
        "params_after": pruned.params,
        "proof": proof.model_dump(),
        "groups": [g.model_dump() for g in plan.groups],
        "protected": plan.protected,
    }


def _planner(work: Workspace, network: nn.Module) -> Callable[[Budget], Plan]:
    """Trace and score a network once and return a function from a budget to its plan."""
    asked = work.recipe.prune
    trace = traced(work.recipe, network, work.example, work.target.task)
    scored = scores(work, trace, network)

    def planned(budget: Budget) -> Plan:
        return prune.plan(
            trace,
            scored,
            budget=budget,
            scope=asked.scope,
            round_to=asked.round_to,
            min_kept=asked.min_kept,
            max_ratio=asked.max_ratio,
            asked={"criterion": asked.criterion},
        )

    return planned


def _recover(work: Workspace, view: StageView, networks: tuple[nn.Module, nn.Module], plan: Plan, turn: int) -> float:
    """Distil for a few epochs between two rounds of cutting; return the FLOPs spent.

    Args:
        work: the run.
        view: its progress.
        networks: the teacher and the network as it is cut so far.
        plan: from one to the other.
        turn: number of the round that is over, from 1.
    """
    teacher, network = networks
    asked = work.recipe.prune
    short = work.recipe.distill.model_copy(update={"epochs": asked.recover_epochs, "training_flops": None})
    rounds = asked.rounds - 1

    def advance(done: int, total: int, text: str) -> None:
        view.advance((turn - 1) * total + done, rounds * total, text)

    job = DistillJob(f"recover-{turn}", short, teacher, network, plan, work.recipe.seed + 10 + turn)
    return distil_student(work, job, advance).training_flops


def _within_latency(
    work: Workspace, networks: tuple[nn.Module, nn.Module], part: float, view: StageView
) -> tuple[Plan, tuple[str, ...]]:
    """Return the plan that meets the latency, or a part of the way to it, and a note of what was measured.

    Raises:
        PlanError: the narrowest network that the recipe allows is too slow.
    """
    trace = traced(work.recipe, networks[1], work.example, work.target.task)
    scored = scores(work, trace, networks[1])
    job = LatencyJob(work.recipe, work.target.task, work.example, calibration_images(work)[:4], advance=view.advance)
    found, said = within_latency(job, networks, trace, scored, part)
    view.notes.append(f"latency x {found.reading.share:.3f} of the dense network's")
    return found.plan, (said,)
