"""Whether a finished run reached what its recipe accepts."""

from __future__ import annotations

from pathlib import Path

from compress.errors import AcceptError
from compress.recipe.schema import Recipe
from compress.run.ledger import Ledger

_ROUNDING = 1e-9


def check_accepted(recipe: Recipe, folder: Path) -> None:
    """Raise AcceptError where the student of the run in ``folder`` is further below its teacher than accepted."""
    if recipe.accept is None:
        return
    ledger = Ledger.read(folder / "ledger.json")
    teacher, student = (ledger.model(name).test_accuracy for name in ("teacher", "student"))
    if teacher is None or student is None:
        raise AcceptError(f"{folder} has no test of its student, so nothing can be accepted; add --resume to go on.")
    drop, allowed = 100 * (teacher - student), recipe.accept.max_drop
    if drop > allowed + _ROUNDING:
        raise AcceptError(
            f"The student in {folder} is {drop:.1f} points of {ledger.metric} below its teacher on test "
            f"({100 * student:.1f} % against {100 * teacher:.1f} %), and accept.max_drop is {allowed:g}; keep more of "
            "it (prune.budget) or train it longer (distill)."
        )
