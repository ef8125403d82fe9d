"""What a stage of a run is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from compress.recipe.schema import Recipe
from compress.run.ledger import Outcome
from compress.run.progress import StageView
from compress.run.workspace import Workspace


def _nothing(recipe: Recipe) -> tuple[str, ...]:
    """Most stages read no key that none before them has read."""
    return ()


@dataclass(frozen=True)
class Stage:
    """One step of a run.

    Args:
        name: what the ledger calls it; it never changes, so that older runs can be resumed.
        title: what a person reads.
        run: reads the workspace, shows its progress and returns what the ledger is to hold.
        outputs: the files that later stages or the user need, as paths in the run folder; a resumed run repeats the
            stage where one is gone.
        ranks: ``all`` processes of a run take part in a stage that trains, the ``first`` alone does the others.
        wanted: whether a recipe asks for it.
        reads: keys of a recipe, with dots, that this stage is the first to read. What no stage names is read from the
            first one on; a longer key counts before a shorter one that it begins with.
    """

    name: str
    title: str
    run: Callable[[Workspace, StageView], Outcome]
    outputs: Callable[[Recipe], tuple[str, ...]]
    ranks: Literal["all", "first"]
    wanted: Callable[[Recipe], bool]
    reads: Callable[[Recipe], tuple[str, ...]] = _nothing
