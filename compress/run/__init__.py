"""One run: from a recipe to a folder with networks, engines, records and a report."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import torch.distributed as dist

from compress.errors import TrainingError
from compress.recipe.schema import Recipe
from compress.run.ledger import Ledger, StageEntry
from compress.run.preflight import alone
from compress.run.prepare import join, prepare, take_up
from compress.run.progress import StageView, Ui
from compress.run.stages import bundle, export, measure, train
from compress.run.stages.qat import aware
from compress.run.stages.train import Outcome, StageFunction
from compress.run.variants import AWARE, ENGINES, PARITY, variants_of
from compress.run.workspace import Workspace
from compress.train import make_fabric
from compress.train.fabric import deterministic, is_first
from compress.train.ranks import leave, once

__all__ = ["run"]

TOGETHER = {"pretrain", "transfer", "twin", "prune", "distill", "finetuned", "scratch", AWARE}
"""The stages that train: all processes of a run take part in them, the first one alone does the others."""


def run(recipe: Recipe, out: Path, ui: Ui, *, resume: bool = False) -> Path:
    """Does everything that `recipe` asks for and leaves it in `out`.

    Args:
        recipe: what is asked for.
        out: the run folder; it appears only after the recipe, the data and the model were checked.
        ui: where progress goes.
        resume: go on with the run that `out` holds; what is done is not done again.

    Raises:
        NiwakiError, DeployError: one sentence about what cannot be used and the way out.
    """
    make_fabric(recipe.device, recipe.precision)
    mine: list[Workspace] = []
    try:
        once(lambda: mine.append(prepare(recipe, out, resume)))
        work = mine[0] if mine else join(recipe, out)
        with alone(out) if is_first() else nullcontext(), deterministic(recipe.deterministic):
            report = _carry_out(work, ui)
    except RuntimeError as error:
        if not dist.is_initialized() or not _lost_the_others(error):
            raise
        raise TrainingError(
            "Another process of this run ended in the middle of it; --resume goes on from the last good state."
        ) from None
    leave()
    return report


def _lost_the_others(error: RuntimeError) -> bool:
    """Whether that is what gloo and NCCL say of a process that is gone."""
    said = str(error).lower()
    return isinstance(error, dist.DistError) or any(
        sign in said for sign in ("connection closed", "connection reset", "broken pipe", "gloo/transport")
    )


def _carry_out(work: Workspace, ui: Ui) -> Path:
    once(lambda: take_up(work, ui))
    once(lambda: _forget_lost(work))
    _agree_on_ledger(work)
    todo = _stages(work.recipe)
    for number, (name, title, function) in enumerate(todo, start=1):
        if work.ledger.done(name):
            ui.line(f"[{number:>2}/{len(todo)}] {title}: done before")
            continue
        with ui.stage(number, len(todo), title) as view:
            _do(work, view, name, title, function)
    from deploy.report import write_report

    return Path(once(lambda: str(write_report(work.out))))


def _do(work: Workspace, view: StageView, name: str, title: str, function: StageFunction) -> None:
    """Does one stage and enters it into the ledger."""
    start = time.perf_counter()

    def enter(outcome: Outcome) -> None:
        work.finish(
            StageEntry(
                name=name,
                title=title,
                seconds=time.perf_counter() - start,
                training_flops=outcome.training_flops,
                metrics=outcome.metrics,
                notes=outcome.notes,
            )
        )

    if name in TOGETHER:
        outcome = function(work, view)
        once(lambda: enter(outcome))
    else:
        once(lambda: enter(function(work, view)))
    _agree_on_ledger(work)


def _agree_on_ledger(work: Workspace) -> None:
    """Gives the other processes the ledger of the first."""
    told = once(work.ledger.model_dump_json)
    if not is_first():
        work.ledger = Ledger.model_validate_json(told)


def _outputs(recipe: Recipe) -> dict[str, list[str]]:
    """What each stage leaves that a later one, or the user, needs."""
    return {
        "pretrain": [train.PRETRAINED],
        "transfer": ["teacher/model.json", "teacher/model.safetensors"],
        "twin": ["checkpoints/twin/model.safetensors"],
        "prune": ["pruned/model.json", "pruned/model.safetensors"],
        "distill": ["student/model.json", "student/model.safetensors"],
        "finetuned": ["checkpoints/finetuned/model.safetensors"],
        "scratch": ["checkpoints/scratch/model.safetensors"],
        AWARE: [f"checkpoints/{AWARE}/model.safetensors"],
        "export": [PARITY, *(variant.onnx for variant in variants_of(recipe))],
        "build": [ENGINES],
        "bench": ["bench.json"],
        "bundle": ["bundle/manifest.json"],
    }


def _forget_lost(work: Workspace) -> None:
    """Takes back the stages whose files are gone, and all that came after them, so that they are done again."""
    outputs = _outputs(work.recipe)
    for k, entry in enumerate(work.ledger.stages):
        if not all((work.out / name).is_file() for name in outputs.get(entry.name, [])):
            work.ledger = work.ledger.model_copy(update={"stages": work.ledger.stages[:k]})
            return


def _stages(recipe: Recipe) -> list[tuple[str, str, StageFunction]]:
    """Name, title and function of each stage that the recipe asks for, in order."""
    deploy = recipe.deploy
    found: list[tuple[bool, str, str, Callable[..., Outcome]]] = [
        (recipe.source is not None, "pretrain", "Pretrain on the source domain", train.pretrain),
        (True, "transfer", "Fine-tune on the target: the teacher", train.transfer),
        (recipe.twin, "twin", "Train the teacher's twin from scratch", train.twin),
        (True, "prune", "Prune whole channels and prove the cut", _cut),
        (True, "distill", "Distil the student from the teacher", train.distil),
        (
            "finetuned" in recipe.distill.compare,
            "finetuned",
            "Fine-tune it without a teacher",
            train.finetuned,
        ),
        (
            "scratch" in recipe.distill.compare,
            "scratch",
            "Train the small network from scratch",
            train.scratch,
        ),
        (deploy is not None and deploy.qat is not None, AWARE, "Fine-tune the student for int8", aware),
        (deploy is not None, "export", "Lower to ONNX and check parity", export.export),
        (deploy is not None and bool(deploy.rtx_targets), "build", "Build TensorRT-RTX engines", export.build),
        (True, "test", "Measure accuracy on the test split", measure.test),
        (deploy is not None, "bench", "Measure latency, interleaved", measure.bench),
        (deploy is not None, "bundle", "Pack the bundle", bundle.bundle),
    ]
    return [(name, title, function) for wanted, name, title, function in found if wanted]


def _cut(work: Workspace, view: StageView) -> Outcome:
    return train.cut(work, view, measure.share_of_dense(work))
