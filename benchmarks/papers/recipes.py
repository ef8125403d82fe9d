"""Tables whose rows are recipes: one of the project's, with a change for each row, carried out by ``niwaki run``."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError
from rich.console import Console

from benchmarks.papers.report import figure, interval, last_of_each_seed
from benchmarks.papers.runner import Asked, append, environment, read_lines
from benchmarks.papers.settings import HERE, digest
from compress.errors import RecipeError
from compress.recipe.loading import load_recipe
from compress.run.ledger import Ledger
from compress.run.progress import Ui
from compress.run.runner import run as run_recipe

ROOT = HERE.parents[1]
OWN = ("benchmarks.papers.animals",)
"""Modules here whose functions the tables' recipes name."""
HEAD = ("row", "order", "criterion", "teacher", "student", "against the first row", "MACs", "seeds", "after the cut")


class Row(BaseModel):
    """What a row changes, merged into the recipe."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    change: dict[str, Any] = {}


class Size(BaseModel):
    """Seeds, and what all rows change at this size."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    seeds: tuple[int, ...]
    change: dict[str, Any] = {}


class RecipeTable(BaseModel):
    """One YAML file: rows around the first, each of which changes one thing; ``target`` replaces the recipe's whole."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    title: str
    recipe: str
    change: dict[str, Any] = {}
    target: dict[str, Any] | None = None
    rows: dict[str, Row]
    sizes: dict[str, Size]


def is_recipes(name: str) -> bool:
    """Whether that table's rows are recipes."""
    path = HERE / f"{name}.yaml"
    return path.is_file() and "recipe" in yaml.safe_load(path.read_text("utf-8"))


def read(name: str) -> RecipeTable:
    """Read ``NAME.yaml`` from this folder.

    Raises:
        RecipeError: it has a wrong key or value.
    """
    try:
        return RecipeTable.model_validate(yaml.safe_load((HERE / f"{name}.yaml").read_text("utf-8")))
    except (ValidationError, yaml.YAMLError) as error:
        raise RecipeError(f"{name}.yaml is wrong: {' '.join(str(error).split())[:200]}.") from None


def merged(whole: Mapping[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    """A mapping with changes; mappings within are merged, all else is replaced."""
    both = dict(whole)
    for key, value in change.items():
        deep = isinstance(value, Mapping) and isinstance(both.get(key), Mapping)
        both[key] = merged(both[key], value) if deep else value
    return both


def run(asked: Asked, say: Callable[[str], None] = print, trusted: Sequence[str] = OWN) -> bool:
    """Run the rows that have no line yet; returns whether all are done.

    The rows of a seed that have the same order are run in one folder, so that what they share is trained once; a line
    tells the teacher's training and what follows the cut apart.

    Raises:
        RecipeError: no such size or row.
    """
    table = read(asked.table)
    if asked.size not in table.sizes:
        raise RecipeError(f"The table {asked.table} has no size '{asked.size}'; it has {', '.join(table.sizes)}.")
    if asked.terms != "published":
        raise RecipeError(
            f"Rows of {asked.table} are recipes with epochs of their own, not {asked.terms}; leave terms out."
        )
    unknown = [m for m in asked.methods if m not in table.rows]
    if unknown:
        raise RecipeError(f"The table {asked.table} has no row '{unknown[0]}'; it has {', '.join(table.rows)}.")
    size, file = table.sizes[asked.size], asked.results / f"{asked.table}.jsonl"
    deadline = time.monotonic() + 60 * asked.minutes if asked.minutes is not None else float("inf")
    done = {(line["method"], line["seed"], line["settings"]) for line in read_lines(file)}
    for seed in asked.seeds or size.seeds:
        for name in asked.methods or tuple(table.rows):
            settings = _settings(table, size, name, seed)
            if (name, seed, digest(settings)) in done:
                say(f"{name} seed {seed}: done before")
                continue
            if time.monotonic() > deadline:
                say(f"{name} seed {seed}: the slice is over; the same command goes on with this row")
                return False
            order = settings.get("order", "S-T-P-T")
            folder = asked.work / f"{asked.table}-{asked.size}-{seed}-{order}"
            line = _line(settings, folder, trusted)
            append(file, {"table": asked.table, "size": asked.size, "method": name, "seed": seed, **line})
            say(f"{name} seed {seed}: {line['accuracy']:.2f} %, teacher {line['base']:.2f} %")
    return True


def _settings(table: RecipeTable, size: Size, name: str, seed: int) -> dict[str, Any]:
    settings = yaml.safe_load((ROOT / table.recipe).read_text("utf-8"))
    settings |= {"target": table.target} if table.target is not None else {}
    for change in (table.change, size.change, table.rows[name].change, {"seed": seed}):
        settings = merged(settings, change)
    return settings


def _line(settings: dict[str, Any], folder: Path, trusted: Sequence[str]) -> dict[str, Any]:
    folder.parent.mkdir(parents=True, exist_ok=True)
    file = folder.parent / f"{folder.name}.yaml"
    file.write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
    began, recipe = time.monotonic(), load_recipe(file, trusted=trusted)
    run_recipe(recipe, folder, Ui(Console(), "quiet"), resume=folder.is_dir())
    ledger = Ledger.read(folder / "ledger.json")
    teacher, student = ledger.model("teacher"), ledger.model("student")
    assert teacher.test_accuracy is not None
    assert student.test_accuracy is not None
    return {
        "settings": digest(settings),
        "order": recipe.order,
        "criterion": recipe.prune.criterion,
        "base": 100 * teacher.test_accuracy,
        "accuracy": 100 * student.test_accuracy,
        "test_images": student.test_total,
        "macs_share": student.macs / teacher.macs,
        "training_flops": student.training_flops,
        "base_training_flops": teacher.training_flops,
        "foreseen": ((ledger.plan or {}).get("sensitivity") or {}).get("correlations", {}),
        "seconds": round(time.monotonic() - began, 1),
        "environment": environment(),
    }


def markdown(name: str, lines: Sequence[dict[str, Any]]) -> str:
    """Render a table: means over seeds with 95 % intervals; differences from the first row are paired by seed."""
    table = read(name)
    first = next(iter(table.rows))
    some = [line for line in lines if line["size"] != "smoke"]
    centre = {line["seed"]: line["accuracy"] for line in some if line["method"] == first}
    rows = ["| " + " | ".join(HEAD) + " |", "| --- " * len(HEAD) + "|"]
    for row in table.rows:
        own = last_of_each_seed([line for line in some if line["method"] == row])
        if not own:
            rows.append(f"| {row} | open |" + " |" * (len(HEAD) - 2))
            continue
        apart = [line["accuracy"] - centre[line["seed"]] for line in own if line["seed"] in centre]
        cells = (
            row,
            own[0]["order"],
            own[0]["criterion"],
            figure([line["base"] for line in own]),
            f"**{figure([line['accuracy'] for line in own])}**",
            "" if row == first or not apart else _apart(apart),
            f"{100 * mean(line['macs_share'] for line in own):.1f} %",
            ", ".join(str(line["seed"]) for line in own),
            f"{mean(line['training_flops'] for line in own) / 1e12:.1f} TFLOP",
        )
        rows.append("| " + " | ".join(cells) + " |")
    return "\n".join([f"### {table.title}", "", *rows, *_foreseen(some)])


def _foreseen(lines: Sequence[dict[str, Any]]) -> list[str]:
    """How well each criterion tells which cut costs most, where that was measured; the best first."""
    known = [line["foreseen"] for line in lines if line.get("foreseen")]
    if not known:
        return []
    means = {
        name: mean(own[name] for own in known) for name in known[0] if all(own.get(name) is not None for own in known)
    }
    best = sorted(means.items(), key=lambda item: -item[1])
    told = ", ".join(f"{name} {value:.2f}" for name, value in best)
    return [
        "",
        f"Rank correlation with the measured rise of the loss, one group cut at a time, after transfer: {told}.",
    ]


def _apart(values: Sequence[float]) -> str:
    half = interval(values)
    return f"{mean(values):+.2f}" + (f" ± {half:.2f}" if half is not None else "")
