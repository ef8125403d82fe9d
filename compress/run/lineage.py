"""Hashes of what the stages of a run are made from: the recipe, and all that the stages before left."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

from compress.recipe.schema import Recipe
from compress.run.ledger import StageEntry
from compress.run.workspace import Workspace


def training_basis(work: Workspace) -> str:
    """Name what a training of the next stage begins from: the recipe and all that earlier stages left."""
    return f"{recipe_hash(work.recipe, deploys=False)}/{parents_hash(work.ledger.stages)}"


def recipe_hash(recipe: Recipe, *, deploys: bool) -> str:
    """Return the SHA-256 of what a recipe says beside its defaults, so that keys of later versions change nothing.

    Args:
        recipe: what is asked for.
        deploys: whether its ``deploy`` counts; a run may get one after it was distilled.
    """
    said = recipe.model_dump(mode="json", exclude_defaults=True, exclude=None if deploys else {"deploy"})
    return _hash(said)


def parents_hash(entries: Sequence[StageEntry]) -> str:
    """Return the SHA-256 of the names and hashes of all files that the stages ``entries`` left."""
    return _hash([entry.made.outputs if entry.made else {} for entry in entries])


def _hash(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
