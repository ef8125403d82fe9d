"""One run: from a recipe to a folder with networks, engines, records and a report."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

from compress import stages
from compress.errors import RecipeError
from compress.ledger import StageEntry
from compress.preflight import alone
from compress.recipe import Recipe
from compress.run import lower, measure, pack
from compress.run.prepare import prepare
from compress.run.variants import ENGINES, PARITY, variants_of
from compress.stages import Outcome, StageFunction
from compress.ui import StageView, Ui
from compress.workspace import Workspace

__all__ = ["run"]


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
    if (ranks := int(os.environ.get("WORLD_SIZE", "1"))) > 1:
        raise RecipeError(f"A run works in one process, torchrun started {ranks}; start niwaki run without torchrun.")
    work = prepare(recipe, out, ui, resume)
    with alone(out):
        _forget_lost(work)
        return _carry_out(work, ui)


def _carry_out(work: Workspace, ui: Ui) -> Path:
    todo = _stages(work.recipe)
    for number, (name, title, function) in enumerate(todo, start=1):
        if work.ledger.done(name):
            ui.line(f"[{number:>2}/{len(todo)}] {title}: done before")
            continue
        start = time.perf_counter()
        with ui.stage(number, len(todo), title) as view:
            outcome = function(work, view)
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
    from deploy.report import write_report

    return write_report(work.out)


def _outputs(recipe: Recipe) -> dict[str, list[str]]:
    """What each stage leaves that a later one, or the user, needs."""
    return {
        "pretrain": [stages.PRETRAINED],
        "transfer": ["teacher/model.json", "teacher/model.safetensors"],
        "twin": ["checkpoints/twin/model.safetensors"],
        "prune": ["pruned/model.json", "pruned/model.safetensors"],
        "distill": ["student/model.json", "student/model.safetensors"],
        "finetuned": ["checkpoints/finetuned/model.safetensors"],
        "scratch": ["checkpoints/scratch/model.safetensors"],
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
    found: list[tuple[bool, str, str, Callable[..., Outcome]]] = [
        (recipe.source is not None, "pretrain", "Pretrain on the source domain", stages.pretrain),
        (True, "transfer", "Fine-tune on the target: the teacher", stages.transfer),
        (recipe.twin, "twin", "Train the teacher's twin from scratch", stages.twin),
        (True, "prune", "Prune whole channels and prove the cut", _cut),
        (True, "distill", "Distil the student from the teacher", stages.distil),
        (
            "finetuned" in recipe.distill.compare,
            "finetuned",
            "Fine-tune it without a teacher",
            stages.finetuned,
        ),
        (
            "scratch" in recipe.distill.compare,
            "scratch",
            "Train the small network from scratch",
            stages.scratch,
        ),
        (True, "export", "Lower to ONNX and check parity", lower.export),
        (bool(recipe.deploy.rtx_targets), "build", "Build TensorRT-RTX engines", lower.build),
        (True, "test", "Measure accuracy on the test split", measure.test),
        (True, "bench", "Measure latency, interleaved", measure.bench),
        (True, "bundle", "Pack the bundle", pack.bundle),
    ]
    return [(name, title, function) for wanted, name, title, function in found if wanted]


def _cut(work: Workspace, view: StageView) -> Outcome:
    return stages.cut(work, view, measure.share_of_dense(work))
