"""What benchmarks/vs_torch_pruning.py found, as a table for a terminal or for docs/benchmarks.md."""

from __future__ import annotations

from typing import Any

from rich.table import Table

HEAD = ("model", "niwaki", "trace", "score", "plan", "apply", "torch-pruning", "ratio", "left %", "differs")


NOTE = (
    "Medians in milliseconds. ratio: torch-pruning's time by Niwaki's. left: parameters after the cut, Niwaki's and "
    "torch-pruning's. differs: Niwaki's cut network from its masked one, relatively."
)


def cells(row: dict[str, Any]) -> list[str]:
    ours, theirs = row["niwaki"], row["torch_pruning"]
    stages = ours["stages"] if ours else {}
    left = [f"{100 * tool['parameters_left']:.0f}" if tool else "–" for tool in (ours, theirs)]
    return [
        row["model"],
        _milliseconds(ours and ours["seconds"]),
        *(_milliseconds(stages.get(stage)) for stage in ("trace", "score", "plan", "apply")),
        _milliseconds(theirs["seconds"]) if theirs else row["why"].removeprefix("torch-pruning: ").split(":")[0] or "–",
        f"{row['ratio']:.2f}x" if row["ratio"] else "–",
        "/".join(left),
        f"{ours['difference']:.0e}" if ours else "–",
    ]


def table(found: dict[str, Any]) -> Table:
    shown = Table(title=headline(found), title_justify="left", caption=NOTE, caption_justify="left")
    for name in HEAD:
        shown.add_column(name, justify="left" if name == "model" else "right", no_wrap=True)
    for row in found["rows"]:
        ratio = row["ratio"]
        shown.add_row(*cells(row), style="" if ratio is None or ratio > 1 else "red")
    return shown


def markdown(found: dict[str, Any]) -> str:
    lines = [headline(found), NOTE, "", "| " + " | ".join(HEAD) + " |", "| --- |" + " ---: |" * (len(HEAD) - 1)]
    return "\n".join(lines + ["| " + " | ".join(cells(row)) + " |" for row in found["rows"]])


def headline(found: dict[str, Any]) -> str:
    said, machine, versions = found["summary"], found["machine"], found["versions"]
    where = f"{machine['cpu']}, one thread, torch {versions['torch']}, torch-pruning {versions['torch-pruning']}"
    if not said["compared"]:
        return f"None of {said['models']} models could be compared. {where}."
    return (
        f"Median {said['median_ratio']:.2f}x, least {said['min_ratio']:.2f}x ({said['min_ratio_model']}), over the "
        f"{said['compared']} of {said['models']} models where both succeed. {where}."
    )


def _milliseconds(seconds: float | None) -> str:
    return "–" if seconds is None else f"{1000 * seconds:.0f}" if seconds >= 0.01 else f"{1000 * seconds:.1f}"
