"""The table that a run ends with."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from compress.errors import ArtifactError
from compress.files import read_bytes
from deploy.bench.conditions import Conditions

COLUMNS = {"dense": "teacher", "pruned": "pruned", "distilled": "student", "int8": "student"}
"""Column -> the network that it is."""


def summary(folder: Path) -> dict[str, Any]:
    """Return the figures of a finished run, from its ledger and, where engines were made, its bench record.

    Raises:
        ArtifactError: one of the two was altered and no longer holds them.
        OSError: one of the two is missing, no regular file or larger than any.
    """
    try:
        return _figures(folder)
    except (LookupError, TypeError, ValueError) as error:
        raise ArtifactError(
            f"{folder}: ledger.json or bench.json lacks what the run wrote into it ({type(error).__name__}: {error}); "
            "run the recipe again in another folder."
        ) from error


def summary_of_several(folders: Sequence[Path]) -> list[dict[str, Any]]:
    """Return the figures of the runs of one table; raise ArtifactError as ``summary`` does."""
    return [summary(folder) for folder in folders]


def table_of_several(found: Sequence[dict[str, Any]]) -> Table:
    """Lay out the networks of one teacher, a row each: what each costs, and how good it is on test."""
    first = found[0]
    shown = Table(
        "network", "MACs", "parameters", f"{first['metric']}, student",
        title=f"{first['name']}: {len(found)} networks of one teacher, {first['test_images']} test images",
        title_justify="left",
    )  # fmt: skip
    engines = [column for column in ("distilled", "int8") if all(column in one["engines"] for one in found)]
    timed = all(one["engines"][column]["median_ms"] is not None for one in found for column in engines)
    if "int8" in engines:
        shown.add_column("int8")
    if timed:
        timed_ones = " and ".join("student" if c == "distilled" else c for c in engines)
        shown.add_column(f"best (median) latency, {timed_ones}")
    for one in ({"run": "teacher", "engines": dict.fromkeys(engines, first["engines"]["dense"])}, *found):
        student = one["engines"]["distilled"]
        row = [Path(one["run"]).name, f"{student['macs'] / 1e6:.1f} M", f"{student['params'] / 1e3:.0f} k"]
        row += [f"{100 * one['engines'][column]['accuracy']:.1f} %" for column in engines]
        if timed:
            row.append(", ".join(_times(one["engines"][column]) for column in engines))
        shown.add_row(*row)
    return shown


def _figures(folder: Path) -> dict[str, Any]:
    ledger = json.loads(read_bytes(folder / "ledger.json"))
    models = {entry["name"]: entry for entry in ledger["models"]}
    timed = folder / "bench.json"
    if timed.is_file():
        records = {r["name"]: r for r in json.loads(read_bytes(timed))["records"]}
    else:
        # The networks themselves, whose fp32 artifact is their file.
        own = {name: models[network] for name, network in COLUMNS.items() if name != "int8"}
        records = {name: {**model, "accuracy": model["test_accuracy"]} for name, model in own.items()}
    runtime = (ledger.get("shipping") or {}).get("runtime")
    # Times are those of the runtime that runs it first, where that was timed by itself.
    times = {name: records.get(f"{name}-{runtime}", records[name]) for name in COLUMNS if name in records}
    engines = {
        name: {
            "accuracy": float(records[name]["accuracy"]),
            "macs": models[network]["macs"],
            "params": models[network]["params"],
            "file_bytes": records[name]["file_bytes"],
            "best_ms": times[name].get("min_ms"),
            "median_ms": times[name].get("median_ms"),
            "speedup": times[name].get("speedup"),
            "runtime": times[name].get("runtime"),
        }
        for name, network in COLUMNS.items()
        if name in records
    }
    return {
        "run": str(folder),
        "name": ledger["name"],
        "seed": ledger["seed"],
        "test_images": ledger["test_images"],
        "metric": ledger["metric"],
        "engines": engines,
        "test_accuracy": {name: entry["test_accuracy"] for name, entry in models.items()},
        "seconds": sum(stage["seconds"] for stage in ledger["stages"]),
        "shipping": ledger.get("shipping"),
        "noise": _noise(list(records.values())),
        "files": sorted(p.name for p in folder.iterdir() if not p.name.startswith(".")),
    }


def _times(engine: dict[str, Any]) -> str:
    best = "–" if engine["best_ms"] is None else f"{engine['best_ms']:.2f}"
    return f"{best} ({engine['median_ms']:.2f}) ms"


def _noise(records: Sequence[dict[str, Any]]) -> str | None:
    """Say why the machine counts as noisy while these were timed, or None where it does not."""
    conditions = [Conditions.model_validate(one["conditions"]) for one in records if one.get("conditions")]
    return next((noise for one in conditions if (noise := one.noise()) is not None), None)


def table(figures: dict[str, Any]) -> Table:
    """Lay the figures out: dense, pruned, distilled and int8 side by side, one row for each figure."""
    engines = figures["engines"]
    shown = Table(
        "", *engines, title=f"{figures['name']}: {figures['seconds']:.0f} s over all stages", title_justify="left"
    )
    for column in shown.columns[1:]:
        column.justify = "right"
    rows = {
        f"{figures['metric']} on {figures['test_images']} test images": lambda e: f"{100 * e['accuracy']:.1f} %",
        "MACs": lambda e: f"{e['macs'] / 1e6:.1f} M",
        "parameters": lambda e: f"{e['params'] / 1e3:.0f} k",
    }
    where = ", OpenVINO" if {engine.get("runtime") for engine in engines.values()} == {"openvino"} else ""
    if all(engine["median_ms"] is not None for engine in engines.values()):
        rows |= {
            "ONNX file": lambda e: f"{e['file_bytes'] / 1e3:.0f} kB",
            f"latency, best{where}": lambda e: "–" if e["best_ms"] is None else f"{e['best_ms']:.2f} ms",
            f"latency, median{where}": lambda e: f"{e['median_ms']:.2f} ms",
            "speed-up, the smaller": lambda e: f"{e['speedup']:.2f}x",
        }
    else:
        rows["weights"] = lambda e: f"{e['file_bytes'] / 1e3:.0f} kB"
    for label, render in rows.items():
        shown.add_row(label, *(render(engine) for engine in engines.values()))
    return shown
