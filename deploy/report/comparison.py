"""Put several runs side by side: one page, one table in Markdown, or one JSON document."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from deploy.report import units
from deploy.report.differing import render_differing_of_runs
from deploy.report.markup import LEFT, Markup, card, fill, join, part, section, table, td, th, tr
from deploy.report.plots import Point, accuracy_latency
from deploy.report.view import Results, ratio


@dataclass(frozen=True)
class Run:
    """One run of the comparison: what it is called, and what it holds."""

    name: str
    results: Results


def figures(run: Run) -> dict[str, Any]:
    """Return the figures of what a run ships, as plain numbers; None where they were not measured."""
    results = run.results
    dense, final = results.columns()[0], results.final()
    return {
        "run": run.name,
        "ships": final.heading,
        "metric": results.metric(),
        "accuracy": final.accuracy,
        "dense_accuracy": dense.accuracy,
        "macs_of_dense": ratio(final.model.get("macs"), dense.model.get("macs")),
        "file_bytes": units.number(final.file_bytes),
        "bytes_of_dense": ratio(final.file_bytes, dense.file_bytes),
        "median_ms": units.number(final.record.get("median_ms")),
        "best_ms": units.number(final.record.get("min_ms")),
        "speedup": final.speedup,
        "verdict": results.verdict(),
    }


def pareto(found: Sequence[Mapping[str, Any]], time: str = "median_ms") -> list[bool]:
    """Tell of each run whether no other is as accurate and as fast, and better in one of both."""
    known = [(row["accuracy"], row[time]) for row in found]

    def beaten(mine: tuple[Any, Any]) -> bool:
        return any(
            None not in other and other[0] >= mine[0] and other[1] <= mine[1] and other != mine for other in known
        )

    return [None not in one and not beaten(one) for one in known]


def render_markdown(runs: Sequence[Run]) -> str:
    """Return the runs as a table in Markdown, with the verdict of each."""
    found = [figures(run) for run in runs]
    best = pareto(found)
    head = "| run | ships | metric | dense | MACs | file | best | median | speed-up | front |"
    lines = [head, "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | --- |"]
    for row, front in zip(found, best, strict=True):
        cells = [_plain(row["run"]), _plain(row["ships"]), *_cells(row), "yes" if front else ""]
        lines.append(f"| {' | '.join(cells)} |")
    verdicts = [f"- **{_plain(row['run'])}**: {_plain(row['verdict'])}" for row in found]
    return "\n".join([*lines, "", *verdicts]) + "\n"


def render_comparison(runs: Sequence[Run]) -> Markup:
    """Return the body of a page: the verdicts, the table, the plane with the Pareto front, and images that differ."""
    found = [figures(run) for run in runs]
    best = pareto(found)
    columns = ("<Run", "<ships", "metric", "dense", "MACs", "file", "best", "median", "speed-up", "<")
    lines = [
        tr(
            th(row["run"]),
            td(row["ships"], LEFT),
            *(td(cell) for cell in _cells(row)),
            td(Markup('<span class="ok">on the front</span>') if front else "", LEFT),
        )
        for row, front in zip(found, best, strict=True)
    ]
    verdicts = join(
        fill('<p class="verdict"><b>{run}</b>: {said}</p>', run=row["run"], said=row["verdict"]) for row in found
    )
    lead = "On the front: no other run here is as accurate and as fast, and better in one of both."
    shown = section("Side by side", lead, table(columns, lines), _plane(found, best))
    head = fill("<header><h1>{title}</h1>{verdicts}</header>", title=_title(found), verdicts=verdicts)
    return join((head, shown, render_differing_of_runs([(run.name, run.results) for run in runs])))


def _plane(found: Sequence[Mapping[str, Any]], best: Sequence[bool]) -> Markup:
    points = [
        Point("int8" if front else "other", str(row["run"]), row["median_ms"], row["accuracy"])
        for row, front in zip(found, best, strict=True)
        if row["median_ms"] and row["accuracy"] is not None and 1e-9 <= row["median_ms"] <= 1e9
    ]
    if not points:
        return Markup()
    metric = str(found[0]["metric"])
    drawings = [
        fill(
            '<div class="plot {kind}" role="img" aria-label="{said}">{drawing}</div>',
            kind=kind,
            said="; ".join(f"{p.label} {units.percent(p.accuracy)} at {units.milliseconds(p.latency)}" for p in points),
            drawing=Markup(accuracy_latency(points, width=width, height=height, salt=f"all-{kind}", metric=metric)),
        )
        for kind, width, height in (("large", 8.6, 4.0), ("small", 4.1, 4.3))
    ]
    caption = "Filled triangles are on the Pareto front, crosses are not."
    figure = fill(
        "<figure>{card}<figcaption>{caption}</figcaption></figure>", card=card(join(drawings)), caption=caption
    )
    return part(f"{metric.capitalize() if metric.islower() else metric} against latency", "", figure)


def _title(found: Sequence[Mapping[str, Any]]) -> str:
    return f"{len(found)} runs"


def _cells(row: Mapping[str, Any]) -> list[str]:
    return [
        units.percent(row["accuracy"]),
        units.percent(row["dense_accuracy"]),
        units.percent(row["macs_of_dense"]),
        units.size(row["file_bytes"]),
        units.milliseconds(row["best_ms"]),
        units.milliseconds(row["median_ms"]),
        units.times(row["speedup"]),
    ]


def _plain(text: Any) -> str:
    """Return text that Markdown shows as it is."""
    said = " ".join(str(text).split()).replace("&", "&amp;").replace("<", "&lt;")
    return "".join(f"\\{letter}" if letter in "\\`*_[]|#" else letter for letter in said)
