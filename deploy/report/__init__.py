"""Render the files of a run as one self-contained page: nothing to fetch, nothing to execute."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deploy.errors import DeployError
from deploy.files import read_bytes, write_text
from deploy.report.page import render_page
from deploy.report.view import Results, read_recipe, rows

__all__ = ["render", "write_report"]

_MOST_RECORDS = 200  # each is a mark of the plot, whose labels are kept apart pair by pair
FORMATS = {"ledger.json": "niwaki-ledger-1", "bench.json": "niwaki-bench-1"}


def render(ledger: Mapping[str, Any], bench: Mapping[str, Any], recipe_yaml: str) -> str:
    """Return the page as text; whatever the two files leave out is shown as an en dash or not at all."""
    return render_page(Results(ledger, bench, read_recipe(recipe_yaml)), recipe_yaml)


def write_report(run_dir: Path) -> Path:
    """Write ``report.html`` into a run's folder, whole or not at all, and return its path.

    Raises:
        DeployError: a file of the run cannot be read or has another format.
    """
    run_dir = Path(run_dir)
    ledger, timed = _read(run_dir / "ledger.json"), run_dir / "bench.json"
    # A run that stops after distilling has tested its networks but timed none.
    tested = any(stage.get("name") == "test" for stage in rows(ledger.get("stages")))
    bench = {} if tested and not timed.exists() else _read(timed)
    if (count := len(rows(bench.get("records")))) > _MOST_RECORDS:
        raise DeployError(f"{timed} holds {count} records and a report shows {_MOST_RECORDS}: leave some out.")
    text = render(ledger, bench, _text(run_dir / "recipe.yaml"))
    return write_text(run_dir / "report.html", text)


def _text(path: Path) -> str:
    try:
        return read_bytes(path).decode()
    except (OSError, UnicodeDecodeError) as error:
        raise DeployError(f"{path} cannot be read ({error}): give the folder of a finished run.") from error


def _read(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(_text(path))
        json.dumps(value, ensure_ascii=False).encode()  # half of a surrogate pair cannot be written to the page
    except (ValueError, RecursionError) as error:  # RecursionError: endless brackets
        raise DeployError(f"{path} is not JSON ({error}): delete it and run the recipe again with --resume.") from error
    expected = FORMATS[path.name]
    found = value.get("format") if isinstance(value, dict) else type(value).__name__
    if found != expected:
        raise DeployError(
            f"{path} has the format {found!r}, not {expected!r}: it comes from another version of niwaki."
        )
    return value
