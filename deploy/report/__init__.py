"""Render the files of a run as one self-contained page: nothing to fetch, nothing to execute."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from deploy.errors import DeployError
from deploy.files import read_bytes, write_text
from deploy.report.comparison import Run, figures, pareto, render_comparison, render_markdown
from deploy.report.differing import read_pictures
from deploy.report.page import document, render_page
from deploy.report.view import Results, read_recipe, rows

__all__ = ["compare", "render", "write_report"]

_MOST_RECORDS = 200  # each is a mark of the plot, whose labels are kept apart pair by pair
FORMATS = {"ledger.json": "niwaki-ledger-1", "bench.json": "niwaki-bench-1"}


def render(
    ledger: Mapping[str, Any],
    bench: Mapping[str, Any],
    recipe_yaml: str,
    pictures: Mapping[int, str] | None = None,
) -> str:
    """Return the page as text; whatever the two files leave out is shown as an en dash or not at all.

    Args:
        ledger: content of ``ledger.json``.
        bench: content of ``bench.json``.
        recipe_yaml: the recipe, as resolved.
        pictures: what ``read_pictures`` found in the folder of the run.
    """
    return render_page(Results(ledger, bench, read_recipe(recipe_yaml), pictures or {}), recipe_yaml)


def write_report(run_dir: Path) -> Path:
    """Write ``report.html`` into a run's folder, whole or not at all, and return its path.

    Raises:
        DeployError: a file of the run cannot be read or has another format.
    """
    run_dir = Path(run_dir)
    ledger, bench = _files(run_dir)
    text = render(ledger, bench, _text(run_dir / "recipe.yaml"), read_pictures(run_dir, ledger))
    return write_text(run_dir / "report.html", text)


def compare(run_dirs: Sequence[Path], form: str) -> str:
    """Return one or several runs as ``html``, ``md`` or ``json``: one page, one table, one document.

    Raises:
        DeployError: there is no such form, or a file of a run cannot be read or has another format.
    """
    if form not in ("html", "md", "json"):
        raise DeployError(f"A report is written as html, md or json, not as {form!r}.")
    names = _names([Path(one) for one in run_dirs])
    runs = [Run(name, _results(Path(one), form)) for name, one in zip(names, run_dirs, strict=True)]
    if form == "json":
        found = [figures(run) for run in runs]
        rows_of = [{**row, "pareto": front} for row, front in zip(found, pareto(found), strict=True)]
        return json.dumps({"format": "niwaki-report-1", "runs": rows_of}, indent=1, ensure_ascii=False) + "\n"
    return render_markdown(runs) if form == "md" else document(", ".join(names), render_comparison(runs))


def _results(run_dir: Path, form: str) -> Results:
    """Read a run; its pictures where the form shows any."""
    ledger, bench = _files(run_dir)
    pictures = read_pictures(run_dir, ledger) if form == "html" else {}
    return Results(ledger, bench, read_recipe(_text(run_dir / "recipe.yaml")), pictures)


def _names(folders: Sequence[Path]) -> list[str]:
    """Return the folders' own names, with the one above where two are alike."""
    names = [one.resolve().name for one in folders]
    return [n if names.count(n) == 1 else "/".join(f.resolve().parts[-2:]) for n, f in zip(names, folders, strict=True)]


def _files(run_dir: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read ledger and records; a run that stopped before it timed anything has none."""
    ledger, timed = _read(run_dir / "ledger.json"), run_dir / "bench.json"
    # A run that stops after distilling has tested its networks but timed none.
    tested = any(stage.get("name") == "test" for stage in rows(ledger.get("stages")))
    bench = {} if tested and not timed.exists() else _read(timed)
    if (count := len(rows(bench.get("records")))) > _MOST_RECORDS:
        raise DeployError(f"{timed} holds {count} records and a report shows {_MOST_RECORDS}: leave some out.")
    return ledger, bench


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
