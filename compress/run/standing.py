"""Which stages of a resumed run still hold: those whose recipe, parents and files are what they were."""

from __future__ import annotations

from collections.abc import Sequence

from compress.recipe.schema import Recipe
from compress.run.ledger import Made, StageEntry
from compress.run.lineage import changed, parents_hash, reader, recipe_hash
from compress.run.stages import STAGES, Stage
from compress.run.workspace import Workspace
from deploy.files import sha256


def made(work: Workspace, stage: Stage, stages: Sequence[Stage] = STAGES) -> Made:
    """Hash the recipe, what earlier stages left and what ``stage`` has just left.

    Raises:
        OSError: a file that the stage should have left is not there.
    """
    return Made(
        recipe=recipe_hash(work.recipe, stages, stage),
        parents=parents_hash(work.ledger.stages),
        outputs={name: sha256(work.out / name) for name in stage.outputs(work.recipe)},
    )


def standing(work: Workspace, todo: Sequence[Stage], stages: Sequence[Stage] = STAGES) -> tuple[int, str | None]:
    """Count the finished stages that still hold.

    A stage holds while it comes in the order wanted now, its files are there as it left them, and it was made by this
    recipe from what the stages before it left. All that follows the first one that does not hold is done again. What
    the last stage left is the user's, who may sign it; entries of earlier versions hold no hashes.

    Returns:
        The count, and a sentence on why the next one does not hold; None where all of them do.
    """
    entries = work.ledger.stages
    for count, (entry, stage) in enumerate(zip(entries, todo, strict=False)):
        if entry.name != stage.name:
            return count, None
        asked = recipe_hash(work.recipe, stages, stage)
        fault = _fault(work, stage, entries[: count + 1], asked, last=count + 1 == len(todo))
        if fault is not None:
            return count, f"{fault}: '{stage.title}' and what follows it are repeated."
    return min(len(entries), len(todo)), None


def _fault(work: Workspace, stage: Stage, entries: Sequence[StageEntry], asked: str, *, last: bool) -> str | None:
    """Say why the last of ``entries``, which is that of ``stage``, does not hold; None where it does."""
    *before, entry = entries
    missing = next((name for name in stage.outputs(work.recipe) if not (work.out / name).is_file()), None)
    if missing is not None:
        return f"{missing} is gone"
    if entry.made is None:
        return None
    if entry.made.recipe != asked:
        return f"The stage {stage.name} was made by another recipe"
    if entry.made.parents != parents_hash(before):
        return f"The stage {stage.name} was made from other files than the stages before it left"
    for name, expected in () if last else entry.made.outputs.items():
        if sha256(work.out / name) != expected:
            return f"{name} is not what the stage {stage.name} left there"
    return None


def first_touched(was: Recipe, now: Recipe) -> int | None:
    """Return the place, among the stages wanted now, of the first one that a change of the recipe touches.

    It reads a key that differs, or comes where another one came; None where all stages stand.
    """
    before, after = ([stage for stage in STAGES if stage.wanted(recipe)] for recipe in (was, now))
    first = min((reader(now, STAGES, key) for key in changed(was, now)), default=len(STAGES))
    touched = [place for place, stage in enumerate(after) if STAGES.index(stage) >= first]
    moved = [place for place, stage in enumerate(after) if before[place : place + 1] != [stage]]
    return min((*touched, *moved), default=None)
