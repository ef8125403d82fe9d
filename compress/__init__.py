"""Transfer, prune and distil vision networks. Importing this imports no torch; its parts load when used."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from compress import prune
    from compress.artifact import load, save

__all__ = ["load", "prune", "save"]


def __getattr__(name: str) -> Any:
    if name == "prune":
        return importlib.import_module("compress.prune")
    if name in {"load", "save"}:
        return getattr(importlib.import_module("compress.artifact"), name)
    raise AttributeError(f"module 'compress' has no attribute '{name}'")
