"""Tables whose rows are recipes: one of the project's, with a change for each row, carried out by ``niwaki run``."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError
from rich.console import Console

from benchmarks.papers.report import figure, interval, last_of_each_seed
from benchmarks.papers.runner import Asked, append, environment, read_lines
from benchmarks.papers.settings import HERE, digest
from compress.errors import RecipeError
from compress.prune import Sensitivity
from compress.recipe.loading import load_recipe
from compress.recipe.schema import Recipe
from compress.run.ledger import Ledger
from compress.run.progress import Ui
from compress.run.runner import run as run_recipe
from compress.run.sensitivity import SENSITIVITY

ROOT = HERE.parents[1]
OWN = ("benchmarks.papers.animals",)
"""Modules here whose functions the tables' recipes name."""
_AFTER_TEACHER = ("order", "prune", "distill", "sparse", "deploy")
"""Keys of a recipe that its teacher does not hang on."""
HEAD = ("row", "order", "criterion", "teacher", "student", "against the first row", "MACs", "seeds", "after the cut")


class Row(BaseModel):
    """What a row changes, merged into the recipe, and whose accuracy it ``shows``.

    A row that ``measures`` correlations is none of the table's: it cuts each group of its teacher alone, which is the
    network before or after transfer, and tells how well every criterion foresaw what that cost.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    change: dict[str, Any] = {}
    shows: Literal["student", "sparse"] = "student"
    measures: Literal["before", "after"] | None = None


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

    The rows of a seed that have the same teacher are run in one folder, so that what they share is trained once; a line
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
            before_cut = {key: value for key, value in settings.items() if key not in _AFTER_TEACHER}
            folder = asked.work / f"{asked.table}-{asked.size}-{seed}-{digest(before_cut)}"
            carried, row = _carried_out(settings, folder, trusted), table.rows[name]
            line = _line(carried, row.shows) if row.measures is None else _correlations(carried)
            line = {"settings": digest(settings), **line, "environment": environment()}
            append(file, {"table": asked.table, "size": asked.size, "method": name, "seed": seed, **line})
            say(f"{name} seed {seed}: {_said(line)}")
    return True


def _said(line: Mapping[str, Any]) -> str:
    if "correlations" not in line:
        return f"{line['accuracy']:.2f} %, teacher {line['base']:.2f} %"
    best = _ranked([line["correlations"]])[:3]
    return "foreseen best by " + ", ".join(f"{name} {mean(values):+.2f}" for name, values in best)


def _settings(table: RecipeTable, size: Size, name: str, seed: int) -> dict[str, Any]:
    settings = yaml.safe_load((ROOT / table.recipe).read_text("utf-8"))
    settings |= {"target": table.target} if table.target is not None else {}
    for change in (table.change, table.rows[name].change, size.change, {"seed": seed}):
        settings = merged(settings, change)
    return settings


@dataclass(frozen=True)
class _Carried:
    """A recipe that was carried out, its folder, and how long that took."""

    recipe: Recipe
    folder: Path
    seconds: float

    @property
    def ledger(self) -> Ledger:
        return Ledger.read(self.folder / "ledger.json")


def _carried_out(settings: dict[str, Any], folder: Path, trusted: Sequence[str]) -> _Carried:
    folder.parent.mkdir(parents=True, exist_ok=True)
    file = folder.parent / f"{folder.name}.yaml"
    file.write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
    began, recipe = time.monotonic(), load_recipe(file, trusted=trusted)
    run_recipe(recipe, folder, Ui(Console(), "quiet"), resume=folder.is_dir())
    return _Carried(recipe, folder, round(time.monotonic() - began, 1))


def _line(carried: _Carried, shown: str) -> dict[str, Any]:
    ledger = carried.ledger
    teacher, student = ledger.model("teacher"), ledger.model(shown)
    assert teacher.test_accuracy is not None
    assert student.test_accuracy is not None
    recipe = carried.recipe
    return {
        "order": recipe.order,
        "criterion": recipe.prune.criterion if shown == "student" or recipe.sparse is None else recipe.sparse.method,
        "base": 100 * teacher.test_accuracy,
        "accuracy": 100 * student.test_accuracy,
        "test_images": student.test_total,
        "macs_share": student.macs / teacher.macs,
        "training_flops": student.training_flops,
        "base_training_flops": teacher.training_flops,
        "seconds": carried.seconds,
    }


def _correlations(carried: _Carried) -> dict[str, Any]:
    """What cutting each group alone costs on validation, and each criterion's rank correlation with it."""
    found = Sensitivity.from_json((carried.folder / SENSITIVITY).read_bytes())
    return {
        "loss": found.loss,
        "accuracy": 100 * (found.accuracy or 0.0),
        "images": found.images,
        "correlations": found.correlations,
        "rises": {
            curve.group: [[cell.ratio, cell.loss - found.loss] for cell in curve.cells] for curve in found.curves
        },
        "base_training_flops": carried.ledger.model("teacher").training_flops,
        "seconds": carried.seconds,
    }


def markdown(name: str, lines: Sequence[dict[str, Any]]) -> str:
    """Render a table: means over seeds with 95 % intervals; differences from the first row are paired by seed."""
    table = read(name)
    first = next(iter(table.rows))
    some = [line for line in lines if line["size"] != "smoke"]
    centre = {line["seed"]: line["accuracy"] for line in some if line["method"] == first}
    rows = ["| " + " | ".join(HEAD) + " |", "| --- " * len(HEAD) + "|"]
    for row, about in table.rows.items():
        if about.measures is not None:
            continue
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
    return "\n".join([f"### {table.title}", "", *rows, *_foreseen(table, some)])


def _foreseen(table: RecipeTable, lines: Sequence[dict[str, Any]]) -> list[str]:
    """How well each criterion tells which cut costs most, before and after transfer; the best after it first."""
    measuring = {about.measures: row for row, about in table.rows.items() if about.measures is not None}
    if not measuring:
        return []
    own = {
        when: last_of_each_seed([line for line in lines if line["method"] == row]) for when, row in measuring.items()
    }
    ranked = {when: dict(_ranked([line["correlations"] for line in found])) for when, found in own.items()}
    names = list(dict.fromkeys(name for when in reversed(ranked) for name in ranked[when]))
    head = [f"{when} transfer" for when in ranked]
    shown = [[figure(ranked[when][name]) if name in ranked[when] else "" for when in ranked] for name in names]
    seeds = [", ".join(str(line["seed"]) for line in found) or "open" for found in own.values()]
    rows = [["criterion", *head], ["---"] * (len(head) + 1), *([n, *s] for n, s in zip(names, shown, strict=True))]
    return [
        "",
        "Rank correlation with the measured rise of the loss, one group cut at a time:",
        "",
        *("| " + " | ".join(row) + " |" for row in [*rows, ["seeds", *seeds]]),
    ]


def _ranked(found: Sequence[Mapping[str, float | None]]) -> list[tuple[str, list[float]]]:
    """Each criterion that every line has a correlation of, with these; the highest mean first."""
    values = {name: [one.get(name) for one in found] for name in (found[0] if found else ())}
    whole = {name: [v for v in own if v is not None] for name, own in values.items() if None not in own}
    return sorted(whole.items(), key=lambda item: -mean(item[1]))


def _apart(values: Sequence[float]) -> str:
    half = interval(values)
    return f"{mean(values):+.2f}" + (f" ± {half:.2f}" if half is not None else "")
