"""The stage that cuts: whole channels, and blocks, go until the budget is met, and the cut is proved."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from compress import cost, prune
from compress.files import read_bytes, write_text
from compress.models.detection import raw_heads
from compress.prune import CRITERIA, Budget, Evolution, Plan, Sensitivity, Trace
from compress.prune.allocation import Limits
from compress.prune.drop import Judges
from compress.prune.schedule import left_after
from compress.run.calibration import calibration_images
from compress.run.cutting import plan_for, within_drop
from compress.run.latency import LatencyJob, within_latency
from compress.run.ledger import ModelEntry, Outcome
from compress.run.measuring import measured_on
from compress.run.order import before_cut, on_source
from compress.run.progress import StageView
from compress.run.scoring import drawn, pairs, reconstructed, said_of, scored, scores, scoring_images
from compress.run.sensitivity import SENSITIVITY, plain, sensitivity_of
from compress.run.sparse import sparsified
from compress.run.tracing import traced
from compress.run.training import DistillJob, distil_student, on_validation
from compress.run.workspace import MadeNetwork, Workspace
from compress.train import TASKS, evaluate
from compress.train.ranks import once


def cut(work: Workspace, view: StageView) -> Outcome:
    """Remove whole channels down to the budget, prove the cut and save the network as it then is.

    Residual blocks that a training before the cut emptied go first; channels then go as far as the budget still asks.

    Over several rounds a part of the way is cut each time, and the network learns from the teacher in between.

    Raises:
        PlanError: a latency budget that no plan within the recipe's bounds meets.
    """
    asked = work.recipe.prune
    teacher, flops = before_cut(work), 0.0
    network = teacher
    plan: Plan | None = None
    notes: list[str] = []
    if asked.sparsify is not None:
        pressed = sparsified(work, teacher, view.advance)
        network, plan = pressed.network, pressed.gone
        flops += pressed.fit.training_flops
        said = f"After training with {asked.sparsify.kind}, before the cut: {on_validation(work, pressed.fit)}."
        notes.append(f"{said} {pressed.said}".rstrip())
        if plan is not None:
            network = prune.apply(network, plan)
    for turn in range(1, asked.rounds + 1):

        def found(network: nn.Module = network, turn: int = turn) -> tuple[str, tuple[str, ...]]:
            step, said = _step(work, view, (teacher, network), turn)
            return step.to_json(), said

        text, told = once(found)
        step = Plan.from_json(text)
        plan = step if plan is None else plan.then(step)
        whole, network = network, prune.apply(network, step)
        notes += told
        if asked.reconstruct or asked.budget.max_drop is not None:
            # Every process of a run does the same on the same images.
            network, report = reconstructed(work, whole, network, step)
            notes.append(said_of(report))
        if turn < asked.rounds:
            flops += _recover(work, view, (teacher, network), plan, turn)
    done = plan
    assert done is not None
    if work.recipe.order == "SP-T":
        flops += on_source(work, view, network, done)
    if asked.sensitivity:
        once(lambda: _sensitivity(work, view, teacher))
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
    measured = work.out / SENSITIVITY
    bound: dict[str, Any] = {"budget": asked.budget.model_dump(exclude_none=True)}
    if asked.ratio is not None or asked.widths_from is not None:
        bound = {"ratio": asked.ratio} if asked.widths_from is None else {"widths_from": asked.widths_from}
    curves = plain(Sensitivity.from_json(read_bytes(measured))) if asked.sensitivity else None
    return {
        "criterion": asked.criterion,
        "scope": asked.scope,
        "round_to": asked.round_to,
        "reconstruct": asked.reconstruct,
        "rounds": asked.rounds,
        **({"schedule": asked.schedule} if asked.rounds > 1 else {}),
        **bound,
        **({} if asked.sparsify is None else {"sparsify": asked.sparsify.kind}),
        **({} if asked.search is None else {"search": asked.search.model_dump()}),
        "macs_before": dense.macs,
        "macs_after": pruned.macs,
        "params_before": dense.params,
        "params_after": pruned.params,
        "proof": proof.model_dump(),
        **({} if not plan.blocks else {"blocks": {name: block.becomes for name, block in plan.blocks.items()}}),
        "groups": [g.model_dump() for g in plan.groups],
        "protected": plan.protected,
        **({} if curves is None else {"sensitivity": curves}),
    }


def _step(
    work: Workspace, view: StageView, networks: tuple[nn.Module, nn.Module], turn: int
) -> tuple[Plan, tuple[str, ...]]:
    """Plan one round; return its plan and notes of what was measured for it."""
    asked, (teacher, network) = work.recipe.prune, networks
    trace = traced(work.recipe, network, work.example, work.target.task)
    values = scores(work, trace, network)

    def planned(budget: Budget) -> Plan:
        return plan_for(trace, values, asked, budget)

    if asked.search is not None:
        return _searched(work, networks, trace, values, view)
    if asked.budget.latency is not None:
        return _within_latency(work, networks, trace, values, turn, view)
    if asked.budget.max_drop is not None:
        return _within_drop(work, planned, (trace, network), view)
    of_blocks = asked.sparsify is not None and asked.sparsify.blocks
    if asked.rounds == 1 and (asked.ratio is not None or not of_blocks):
        return plan_for(trace, values, asked), ()
    assert asked.budget.macs is not None
    left = left_after(turn, asked.rounds, asked.budget.macs, asked.schedule)
    now = cost.macs(network, work.example) / cost.macs(teacher, work.example)
    return planned(Budget(macs=min(1.0, left / now))), ()


def _sensitivity(work: Workspace, view: StageView, teacher: nn.Module) -> None:
    """Measure the teacher's sensitivity on validation images and leave it in the run folder."""
    recipe, task = work.recipe, TASKS[work.target.task]
    trace = traced(recipe, teacher, work.example, work.target.task)
    images = scoring_images(work)
    judging = drawn(work.target.splits["val"], recipe.prune.images, recipe.seed)
    found = sensitivity_of(
        trace,
        teacher,
        lambda name: scored(trace, teacher, name, images, task, seed=recipe.seed),
        measured_on(task, judging, work.target.classes),
        criterion=recipe.prune.criterion,
        metric=task.title,
        criteria=tuple(CRITERIA),
        advance=view.advance,
    )
    write_text(work.out / SENSITIVITY, found.model_dump_json(indent=1) + "\n")


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
    work: Workspace, networks: tuple[nn.Module, nn.Module], trace: Trace, values: Tensor, turn: int, view: StageView
) -> tuple[Plan, tuple[str, ...]]:
    """Return the plan that meets the latency, or a part of the way to it, and a note of what was measured.

    Raises:
        PlanError: the narrowest network that the recipe allows is too slow.
    """
    job = LatencyJob(work.recipe, work.target.task, work.example, calibration_images(work)[:4], advance=view.advance)
    found, said = within_latency(job, networks, trace, values, turn)
    view.notes.append(f"latency x {found.reading.share:.3f} of the dense network's")
    return found.plan, (said,)


def _searched(
    work: Workspace, networks: tuple[nn.Module, nn.Module], trace: Trace, values: Tensor, view: StageView
) -> tuple[Plan, tuple[str, ...]]:
    """Search the groups' shares for the best accuracy on validation, BatchNorm's statistics taken anew each time.

    Returns:
        The plan, and a note of how many candidates were judged.
    """
    asked, network = work.recipe.prune, networks[1]
    assert asked.search is not None
    key, images = TASKS[work.target.task].selects, pairs(scoring_images(work))

    def fitness(small: nn.Module) -> float:
        fresh = prune.recalibrated(small, images, forward=raw_heads(small))
        return evaluate(fresh, work.target, "val", work.fabric, every=2)[key]

    limits = Limits(round_to=asked.round_to, min_kept=asked.min_kept, max_ratio=asked.max_ratio)
    how = Evolution(asked.search.population, asked.search.generations, seed=work.recipe.seed)
    found = prune.evolve(
        trace, values, network, fitness, budget=asked.budget, search=how, limits=limits, advance=view.advance
    )
    return found.plan, (
        f"A search judged {found.tried} networks on half of the validation images, untrained: the same share of every "
        f"group or better, {100 * found.history[0]:.1f} % at first and {100 * found.fitness:.1f} % in the end.",
    )


def _within_drop(
    work: Workspace, planned: Callable[[Budget], Plan], networks: tuple[Trace, nn.Module], view: StageView
) -> tuple[Plan, tuple[str, ...]]:
    """Find the smallest network within the drop: searched on half of the validation images, confirmed on all.

    Returns:
        The plan, and a note of what it lost.

    Raises:
        PlanError: no network that was tried is within it.
    """
    key = TASKS[work.target.task].selects

    def accuracy(every: int) -> Callable[[nn.Module], float]:
        return lambda network: evaluate(network, work.target, "val", work.fabric, every=every)[key]

    def repaired(small: nn.Module, plan: Plan) -> nn.Module:
        return reconstructed(work, networks[1], small, plan)[0]

    judges = Judges(accuracy(2), accuracy(1))
    found = within_drop(networks, planned, repaired, judges, work.recipe.prune, view.advance)
    share = 100 * found.share
    return found.plan, (f"{share:.0f} % of the MACs lose {found.drop:.1f} points on validation before any training.",)
