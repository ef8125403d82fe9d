"""The table that a run ends with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rich.table import Table

from compress.errors import ArtifactError

COLUMNS = {"dense": "teacher", "pruned": "pruned", "distilled": "student", "int8": "student"}
"""Column -> the network that it is."""


def summary(folder: Path) -> dict[str, Any]:
    """Return the figures of a finished run, from its ledger and, where engines were made, its bench record.

    Raises:
        ArtifactError: one of the two was altered and no longer holds them.
    """
    try:
        return _figures(folder)
    except (LookupError, TypeError, ValueError) as error:
        raise ArtifactError(
            f"{folder}: ledger.json or bench.json lacks what the run wrote into it ({type(error).__name__}: {error}); "
            "run the recipe again in another folder."
        ) from error


def _figures(folder: Path) -> dict[str, Any]:
    ledger = json.loads((folder / "ledger.json").read_text(encoding="utf-8"))
    models = {entry["name"]: entry for entry in ledger["models"]}
    timed = folder / "bench.json"
    if timed.is_file():
        records = {r["name"]: r for r in json.loads(timed.read_text(encoding="utf-8"))["records"]}
    else:
        # The networks themselves, whose fp32 artifact is their file.
        own = {name: models[network] for name, network in COLUMNS.items() if name != "int8"}
        records = {name: {**model, "accuracy": model["test_accuracy"]} for name, model in own.items()}
    engines = {
        name: {
            "accuracy": float(records[name]["accuracy"]),
            "macs": models[network]["macs"],
            "params": models[network]["params"],
            "file_bytes": records[name]["file_bytes"],
            "median_ms": records[name].get("median_ms"),
            "speedup": records[name].get("speedup"),
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
        "files": sorted(p.name for p in folder.iterdir() if not p.name.startswith(".")),
    }


def table(figures: dict[str, Any]) -> Table:
    """Lay the figures out: dense, pruned, distilled and int8 side by side, one row for each figure."""
    engines = figures["engines"]
    shown = Table("", *engines, title=f"{figures['name']}: {figures['seconds']:.0f} s in all", title_justify="left")
    for column in shown.columns[1:]:
        column.justify = "right"
    rows = {
        f"{figures['metric']} on {figures['test_images']} test images": lambda e: f"{100 * e['accuracy']:.1f} %",
        "MACs": lambda e: f"{e['macs'] / 1e6:.1f} M",
        "parameters": lambda e: f"{e['params'] / 1e3:.0f} k",
    }
    if all(engine["median_ms"] is not None for engine in engines.values()):
        rows |= {
            "ONNX file": lambda e: f"{e['file_bytes'] / 1e3:.0f} kB",
            "latency (median)": lambda e: f"{e['median_ms']:.2f} ms",
            "speed-up": lambda e: f"{e['speedup']:.2f}x",
        }
    else:
        rows["weights"] = lambda e: f"{e['file_bytes'] / 1e3:.0f} kB"
    for label, render in rows.items():
        shown.add_row(label, *(render(engine) for engine in engines.values()))
    return shown
