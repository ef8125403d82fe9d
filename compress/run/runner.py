"""Carrying out a recipe: stage after stage, in one process or several, from the start or from where a run stopped."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import torch.distributed as dist

from compress.errors import TrainingError
from compress.recipe.schema import Recipe
from compress.run.ledger import Outcome
from compress.run.lineage import basis
from compress.run.preflight import alone
from compress.run.prepare import join, prepare, take_up
from compress.run.progress import StageView, Ui
from compress.run.stages import STAGES, Stage
from compress.run.standing import made, standing
from compress.run.workspace import Workspace
from compress.terminal import plain
from compress.train import make_fabric
from compress.train.fabric import deterministic, is_first
from compress.train.ranks import leave, once

# What gloo, NCCL and torch's store say when a connection to another process breaks.
_BROKEN_CONNECTION = ("connection closed", "connection reset", "broken pipe", "gloo/transport")


def run(recipe: Recipe, out: Path, ui: Ui, *, resume: bool = False) -> Path:
    """Do everything that ``recipe`` asks for and leave it in ``out``.

    Args:
        recipe: what is asked for.
        out: the run folder; it appears only after the recipe, the data and the model were checked.
        ui: where progress goes.
        resume: go on with the run that ``out`` holds; what is done is not done again.

    Returns:
        The path of the report.

    Raises:
        NiwakiError, DeployError: one sentence about what cannot be used and the way out.
    """
    make_fabric(recipe.device, recipe.precision)
    prepared: list[Workspace] = []
    afresh = resume and not (out / "ledger.json").exists()
    try:
        # Every image is decoded and the network traced: many seconds in which nothing else is said.
        with ui.waiting("Checking the recipe, the data and the network"):
            once(lambda: prepared.append(prepare(recipe, out, resume)))
        work = prepared[0] if prepared else join(recipe, out)
        if afresh and is_first():
            ui.line(f"{plain(out)} holds no run yet, so one begins; --out names the folder of another.")
        with alone(out) if is_first() else nullcontext(), deterministic(recipe.deterministic):
            report = _carry_out(work, ui)
    except RuntimeError as error:
        if not dist.is_initialized() or not _lost_another_process(error):
            raise
        raise TrainingError(
            "Another process of this run ended before the run was over; --resume continues from the last good state."
        ) from None
    leave()
    return report


def _lost_another_process(error: RuntimeError) -> bool:
    """Tell whether the error means that another process of the run has ended."""
    message = str(error).lower()
    return isinstance(error, dist.DistError) or any(sign in message for sign in _BROKEN_CONNECTION)


def _carry_out(work: Workspace, ui: Ui) -> Path:
    todo = [stage for stage in STAGES if stage.wanted(work.recipe)]
    once(lambda: take_up(work, ui))
    once(lambda: _take_back(work, todo, ui))
    work.share_ledger()
    done = len(work.ledger.stages)
    for number, stage in enumerate(todo, start=1):
        if number <= done:
            ui.line(f"[{number:>2}/{len(todo)}] {stage.title}: done before")
            continue
        with ui.stage(number, len(todo), stage.title) as view:
            _do(work, view, stage)
    from deploy.report import write_report

    return Path(once(lambda: str(write_report(work.out))))


def _take_back(work: Workspace, todo: Sequence[Stage], ui: Ui) -> None:
    """Forget the stages whose work no longer holds, and say why."""
    count, why = standing(work, todo, STAGES)
    if why is not None:
        ui.line(why)
        work.log("again", why=why)
    work.take_back(count)


def _do(work: Workspace, view: StageView, stage: Stage) -> None:
    """Do one stage and enter it into the ledger."""
    start = time.perf_counter()
    work.basis = basis(work.recipe, STAGES, stage, work.ledger.stages)

    def enter(outcome: Outcome) -> None:
        seconds = time.perf_counter() - start
        work.finish(stage.name, stage.title, seconds, outcome, made(work, stage, STAGES))

    if stage.ranks == "all":
        outcome = stage.run(work, view)
        once(lambda: enter(outcome))
    else:
        once(lambda: enter(stage.run(work, view)))
    work.share_ledger()
