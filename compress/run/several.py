"""Several networks from one teacher: a run for each share of the MACs, the later ones with the teacher of the first."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from compress.errors import RecipeError
from compress.files import write_text
from compress.prune import Budget
from compress.recipe.schema import Recipe
from compress.run.ledger import Ledger
from compress.run.progress import Ui
from compress.run.runner import run
from compress.run.stages import STAGES
from compress.run.workspace import saved_in

_BEFORE = STAGES[: [stage.name for stage in STAGES].index("prune")]


def parts(recipe: Recipe) -> dict[str, Recipe]:
    """Return a recipe for each network of a table, by the name of its folder."""
    shares = recipe.prune.table
    return {
        f"macs-{share:g}": recipe.model_copy(
            update={"prune": recipe.prune.model_copy(update={"budget": Budget(macs=share), "table": ()})}
        )
        for share in shares
    }


def run_several(recipe: Recipe, out: Path, ui: Ui, *, resume: bool = False) -> list[Path]:
    """Do everything that ``recipe`` asks for, once for each share of the MACs, and return the folders.

    Args:
        recipe: with a table of shares.
        out: a folder that holds a run for each.
        ui: where progress goes.
        resume: go on with the runs that ``out`` holds.

    Raises:
        NiwakiError, DeployError: as ``run``.
    """
    found: list[Path] = []
    for name, part in parts(recipe).items():
        folder = out / name
        if found and not folder.exists():
            _with_teacher(part, found[0], folder)
            ui.line(f"{name}: with the teacher of {found[0].name}")
            run(part, folder, ui, resume=True)
        else:
            ui.line(f"{name}:")
            run(part, folder, ui, resume=resume)
        found.append(folder)
    return found


def _with_teacher(recipe: Recipe, first: Path, folder: Path) -> None:
    """Begin a run with the stages before the cut of another one, which ask for the same."""
    ledger = Ledger.read(first / "ledger.json")
    todo = [stage for stage in _BEFORE if stage.wanted(recipe)]
    if [entry.name for entry in ledger.stages[: len(todo)]] != [stage.name for stage in todo]:
        raise RecipeError(f"The run in {first} holds no complete teacher; start it again in another folder.")
    begun = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(begun, ignore_errors=True)
    for stage in todo:
        for path in map(Path, stage.outputs(recipe)):
            (begun / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(first / path, begun / path)
    (begun / "checkpoints").mkdir(exist_ok=True)
    write_text(begun / "recipe.yaml", recipe.to_yaml())
    _begin(ledger, len(todo), begun).write(begun / "ledger.json")
    begun.replace(folder)


def _begin(ledger: Ledger, count: int, folder: Path) -> Ledger:
    """The ledger of the first stages, which read nothing that another share of the MACs changes."""
    untested: dict[str, Any] = {"test_accuracy": None, "test_correct": None, "test_total": None}
    untested |= {"test_metrics": {}, "test_reliability": ()}
    there = tuple(
        model.model_copy(update=untested) for model in ledger.models if (folder / saved_in(model.name)).is_dir()
    )
    return ledger.model_copy(update={"stages": ledger.stages[:count], "models": there, "plan": None, "differing": None})
