"""What is checked before a run writes anything, and what keeps two processes out of one folder."""

from __future__ import annotations

import fcntl
import re
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import IO

import numpy as np
import torch

from compress import artifact, data, distill, prune
from compress.errors import PlanError, RecipeError
from compress.prune import CRITERIA, Trace
from compress.prune.planning import why_nothing_is_free
from compress.recipe.loading import load_recipe
from compress.recipe.schema import Recipe
from compress.run.cutting import plan_for
from compress.run.latency import check_latency
from compress.run.lineage import changed
from compress.run.scoring import scored
from compress.run.stages import STAGES
from compress.run.standing import first_touched
from compress.run.tracing import removable, traced
from compress.run.transfer import fresh, teacher_of
from compress.train import TASKS

_LOG = "log.jsonl"
# Data workers of a run that was killed hold its lock until they look for it, which torch's do every five seconds.
_LINGER = 7.0
_UNFINISHED = re.compile(r"\.(recipe\.yaml|ledger\.json)\.\d+\.tmp")  # what `compress.files.replacing` writes to

# What `replacing` of both sides and `write_bundle` write to.
_TEMPORARY = re.compile(r"\.(?P<name>.+)\.(\d+\.tmp|[a-z0-9_]{8})(?P<suffix>\.\w+)?")


def going_on(recipe: Recipe, out: Path, resume: bool) -> bool:
    """Tell whether ``out`` holds a run to go on with; raise RecipeError where it holds anything else."""
    if out.exists() and not out.is_dir():
        raise RecipeError(f"--out {out} is a file; name a folder.")
    if not out.exists() or _never_began(out):
        return False
    if not (out / "ledger.json").is_file() or not (out / "recipe.yaml").is_file():
        raise RecipeError(f"The folder {out} is not empty and holds no run; choose another --out.")
    if not resume:
        raise RecipeError(
            f"The folder {out} already holds a run; add --resume to continue it, or choose another --out."
        )
    was = stored(out, recipe)
    if was is None:
        raise RecipeError(f"The folder {out} holds a run of another recipe; choose another --out.")
    keys = changed(was, recipe)
    if keys and (first_touched(was, recipe) == 0 or (recipe.deploy is None and was.deploy is not None)):
        raise RecipeError(
            f"The folder {out} holds a run of another recipe, from which nothing could be kept ({_few(keys)} differs); "
            "choose another --out, undo the change, or remove the folder to start again."
        )
    return True


def _never_began(out: Path) -> bool:
    """Tell whether ``out`` is empty, or holds no more than a run leaves that was killed before its first ledger.

    Such a run has locked its log and written nothing to it; without one, a ``recipe.yaml`` there may be the user's.
    """
    names = {path.name for path in out.iterdir()}
    log, checkpoints = out / _LOG, out / "checkpoints"
    locked = log.is_file() and log.stat().st_size == 0
    left = {name for name in names if name in (_LOG, "recipe.yaml", "checkpoints") or _UNFINISHED.fullmatch(name)}
    unused = not checkpoints.exists() or (checkpoints.is_dir() and not any(checkpoints.iterdir()))
    return not names or (locked and unused and left == names)


def sweep(out: Path) -> None:
    """Remove what a killed run was writing to under another name; the caller holds the folder."""
    # Children first, so that a folder that is removed is not looked into any more.
    for path in sorted(out.rglob(".*"), reverse=True):
        found = _TEMPORARY.fullmatch(path.name)
        if found is None or path.is_symlink() or not found["name"].endswith(found["suffix"] or ""):
            continue
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def stored(out: Path, asked: Recipe) -> Recipe | None:
    """Return the recipe of the run in ``out``; None where it is none.

    It is compared and not run; the only code of the user's own that it may name is what ``asked`` names.
    """
    trusted = [function.partition(":")[0] for function in asked.functions().values()]
    try:
        return load_recipe(out / "recipe.yaml", trusted=trusted)
    except RecipeError:
        return None


def what_changed(was: Recipe, now: Recipe) -> str:
    """Say in a sentence which keys of a resumed run's recipe are others now, and what is done again for it."""
    wanted = [stage for stage in STAGES if stage.wanted(now)]
    place = first_touched(was, now)
    again = "nothing is repeated" if place is None else f"it continues from '{wanted[place].title}'"
    return f"The recipe of this run differs in {_few(changed(was, now))}: {again}."


def _few(keys: Sequence[str]) -> str:
    more = f" and {len(keys) - 5} more" if len(keys) > 5 else ""
    return ", ".join(keys[:5]) + more


def check_model(recipe: Recipe, target: data.ImageData) -> None:
    """Build, load and trace the network and check that the budget can be met, before any training."""
    if recipe.transfer is not None:
        data.check(recipe.transfer, target.task, "transfer")
    data.check(recipe.distill, target.task, "distill")
    check_preprocessing(recipe)
    example = target.example(2)
    model = teacher_of(recipe, target)
    names = [name for name, _ in model.named_parameters()]
    for pattern in recipe.prune.protect:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise RecipeError(f"prune.protect: '{pattern}' matches no parameter (the first one is '{names[0]}').")
    distill.check(recipe.distill, target.task, model)
    trace = traced(recipe, model, example, target.task)
    TASKS[target.task].check(model, example)
    if not trace.groups:
        raise PlanError(f"No channel of {recipe.model.factory} is free to go: {why_nothing_is_free(trace)}.")
    _check_prune(recipe, trace)
    if recipe.prune.sparsify is not None and recipe.prune.sparsify.blocks:
        removable(recipe, model, example)
    if CRITERIA[recipe.prune.criterion].needs == "gradients":
        # Not every loss has the derivatives that a criterion asks for.
        two = target.splits["train"].batch(torch.arange(min(2, len(target.splits["train"]))))
        scored(trace, model, recipe.prune.criterion, [two], TASKS[target.task], trial=True)
    if recipe.prune.budget.latency is not None:
        check_latency(recipe, target, model, trace)


def check_preprocessing(recipe: Recipe) -> None:
    """Hold the pixels that a saved network was trained on against those that it would get now; the size may differ.

    A background, and the bits of a picture, count where both state them: without one what would need it is refused.

    Raises:
        RecipeError: they differ, which would cost accuracy without a word.
        ArtifactError: ``model.weights`` is a folder and no saved network.
    """
    folder = Path(recipe.model.weights or "")
    if recipe.model.weights in (None, "DEFAULT") or not folder.is_dir():
        return
    own = artifact.describe(folder).preprocessing
    asked = recipe.preprocessing.model_dump(mode="json")
    # Networks of earlier versions state no order of colours, which was always this one.
    for key, stated in {"channels": "RGB", **own}.items() if own else ():
        was, now = (list(one) if isinstance(one, list | tuple) else one for one in (stated, asked.get(key)))
        unasked = key == "size" or (key in ("background", "bits") and None in (was, now))
        unasked |= key == "padding" and asked["resize"] != "letterbox"
        if key in asked and was != now and not unasked:
            raise RecipeError(
                f"preprocessing.{key} is {now}, but the network in {folder} (model.weights) was trained with {was}; "
                f"use that, or name its {artifact.WEIGHTS} to start from it nevertheless."
            )


def _check_prune(recipe: Recipe, trace: Trace) -> None:
    """Check that some plan meets the budget."""
    asked = recipe.prune
    if asked.widths_from is not None:
        plan_for(trace, torch.zeros(trace.units), asked)
        return
    if asked.ratio is None and asked.budget.macs is not None:
        floor = prune.smallest_share(trace, asked.round_to, asked.min_kept, asked.max_ratio)
        if floor > asked.budget.macs:
            raise RecipeError(
                f"prune.budget.macs: {asked.budget.macs:g} is impossible for {recipe.model.factory}: at least "
                f"{floor:.3f} of its MACs remain with min_kept {asked.min_kept} and round_to "
                f"{asked.round_to}; ask for {np.ceil(floor * 100) / 100:g} or more, or lower those two."
            )
    if asked.ratio is not None or (asked.budget.bounds and asked.budget.latency is None):
        plan_for(trace, torch.zeros(trace.units), asked.model_copy(update={"scope": "group"}))


def check_source(recipe: Recipe, source: data.ImageData) -> None:
    """Check that the network can be trained on the source domain, before any training."""
    assert recipe.source is not None
    data.check(recipe.source.train, source.task, "source.train")
    TASKS[source.task].check(fresh(recipe.model, source, recipe.seed), source.example(2))


@contextmanager
def alone(out: Path) -> Iterator[None]:
    """Hold the run folder against a second process; raise RecipeError where one has it."""
    log = out / _LOG
    if log.is_symlink() or (log.exists() and not log.is_file()):
        raise RecipeError(
            f"{log} is not a regular file, so nothing is written to it; remove it, or choose another --out."
        )
    with log.open("a", encoding="utf-8") as file:
        until = time.monotonic() + _LINGER
        while not _locked(file):
            if time.monotonic() > until:
                raise RecipeError(f"Another process is writing to {out}; wait for it, or choose another --out.")
            time.sleep(0.1)
        yield


def _locked(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
