"""Hashes of what the stages of a run are made from: what they read of the recipe, and all that those before left."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from compress.recipe.schema import Recipe
from compress.run.ledger import StageEntry
from compress.run.stages.base import Stage

_UNREAD = ("tensorboard", "device", "twin", "distill.compare", "accept")
"""Keys that change no stage's work: at most which stages there are, where they run, or what is accepted at the end."""


def basis(recipe: Recipe, stages: Sequence[Stage], stage: Stage, before: Sequence[StageEntry]) -> str:
    """Name what a training of ``stage`` begins from: what is read of the recipe and all that earlier stages left."""
    return f"{recipe_hash(recipe, stages, stage)}/{parents_hash(before)}"


def recipe_hash(recipe: Recipe, stages: Sequence[Stage], stage: Stage) -> str:
    """Return the SHA-256 of what ``stage`` and those before it read of a recipe, beside its defaults.

    Keys of later versions change nothing, and neither do keys that only later stages read.
    """
    last = stages.index(stage)
    said = _leaves(recipe.model_dump(mode="json", exclude_defaults=True))
    return _hash({key: value for key, value in said if reader(recipe, stages, key) <= last})


def parents_hash(entries: Sequence[StageEntry]) -> str:
    """Return the SHA-256 of the names and hashes of all files that the stages ``entries`` left."""
    return _hash([entry.made.outputs if entry.made else {} for entry in entries])


def changed(before: Recipe, after: Recipe) -> tuple[str, ...]:
    """Return the keys, with dots, in which two recipes differ."""
    was, now = (dict(_leaves(one.model_dump(mode="json"))) for one in (before, after))
    missing = object()
    return tuple(sorted(key for key in was | now if was.get(key, missing) != now.get(key, missing)))


def reader(recipe: Recipe, stages: Sequence[Stage], key: str) -> int:
    """Return the place among ``stages`` of the first one that reads a key; their number where none does."""
    best, place = -1, 0
    every = [*((pattern, k) for k, stage in enumerate(stages) for pattern in stage.reads(recipe))]
    for pattern, k in [*every, *((pattern, len(stages)) for pattern in _UNREAD)]:
        if len(pattern) > best and f"{key}.".startswith(f"{pattern}."):
            best, place = len(pattern), k
    return place


def _leaves(value: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Each key with dots and its value; an empty mapping is a value."""
    for key, inner in value.items():
        if isinstance(inner, Mapping) and inner:
            yield from _leaves(inner, f"{above}{key}.")
        else:
            yield f"{above}{key}", inner


def _hash(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
