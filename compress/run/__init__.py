"""One run: from a recipe to a folder with networks, engines, records and a report."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from compress.run.runner import run

__all__ = ["run"]


def __getattr__(name: str) -> Any:
    """Load the run when it is first asked for; its parts import each other without it."""
    if name == "run":
        return importlib.import_module("compress.run.runner").run
    raise AttributeError(f"module 'compress.run' has no attribute '{name}'")
