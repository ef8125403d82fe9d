"""The stage that cuts: whole channels go until the budget is met, and the cut is proved."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from compress import cost, prune
from compress.errors import PlanError
from compress.models.detection import raw_heads
from compress.prune import Budget, Plan
from compress.run.latency import share_of_dense
from compress.run.ledger import ModelEntry, Outcome
from compress.run.progress import StageView
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
    notes: tuple[str, ...] = ()
    for turn in range(1, asked.rounds + 1):

        def found(network: nn.Module = network, turn: int = turn) -> tuple[str, tuple[str, ...]]:
            planned = _planner(work, network)
            if asked.budget.macs is None:
                step, notes = _within_latency(work, planned, network, view)
                return step.to_json(), notes
            left = 1 - (1 - asked.budget.macs) * turn / asked.rounds
            now = cost.macs(network, work.example) / cost.macs(teacher, work.example)
            return planned(Budget(macs=min(1.0, left / now))).to_json(), ()

        text, notes = once(found)
        step = Plan.from_json(text)
        plan = step if plan is None else plan.then(step)
        network = prune.apply(network, step)
        if turn < asked.rounds:
            flops += _recover(work, view, (teacher, network), plan, turn)
    whole = plan
    assert whole is not None
    proved = once(lambda: _proved(work, view, (teacher, network), whole, flops).model_dump_json())
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
    work: Workspace, planned: Callable[[Budget], Plan], teacher: nn.Module, view: StageView
) -> tuple[Plan, tuple[str, ...]]:
    """Bisect the MACs for the largest network whose measured latency is within the target.

    Returns:
        The plan, and a note of what it measured.

    Raises:
        PlanError: the smallest network that the recipe allows is too slow.
    """
    asked = work.recipe.prune
    target = asked.budget.latency
    assert target is not None
    measure = share_of_dense(work)
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
