"""The command history; it needs no torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from compress.cli.common import JsonFlag, replaceable
from compress.files import write_text
from compress.terminal import Terminal, plain


def history(
    records: Annotated[list[Path] | None, typer.Argument(help="Files such as bench.json to add.")] = None,
    database: Annotated[Path, typer.Option("--db", help="The SQLite file.")] = Path("runs/history.db"),
    commit: Annotated[str, typer.Option(help="The commit that was measured.")] = "",
    engine: Annotated[str | None, typer.Option(help="Show only this engine.")] = None,
    metric: Annotated[
        str, typer.Option(help="A metric, such as ratio_of_best, median_ms, accuracy.")
    ] = "ratio_of_best",
    picture: Annotated[Path | None, typer.Option("--plot", help="Draw one engine's metric to this SVG.")] = None,
    mlflow: Annotated[bool, typer.Option("--mlflow", help="Log the added records to MLflow too.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Add records to a history, and show a metric over commits with the changes that lasted."""
    from deploy.bench.history import append, changes, engines_in, plot, series, sparkline, to_mlflow
    from deploy.bench.records import Bench
    from deploy.errors import DeployError

    if picture is not None:
        replaceable(picture, ".svg")
    for path in records or []:
        bench = Bench.from_file(path)
        append(database, bench, commit)
        if mlflow:
            to_mlflow(bench, commit)
    names = [engine] if engine is not None else engines_in(database, metric) if database.is_file() else []
    told = {name: series(database, name, metric) for name in names or [""]}  # of none it says so
    found = {name: changes(entries) for name, entries in told.items()}
    if picture is not None:
        if len(told) != 1:
            raise DeployError(f"A plot shows one engine, and there are {len(told)}; name one by --engine.")
        ((name, entries),) = told.items()
        write_text(picture, plot(entries, found[name], f"{name}, {metric}"))
    if as_json:
        shown = {
            name: {
                "values": [{"created": e.created, "commit": e.commit, "value": e.value} for e in entries],
                "changes": [str(change) for change in found[name]],
            }
            for name, entries in told.items()
        }
        print(json.dumps({"metric": metric, "engines": shown}, indent=1))
        return
    console = Terminal()
    for name, entries in told.items():
        values = [entry.value for entry in entries]
        count = f"{len(values)} record{'' if len(values) == 1 else 's'}"
        line = f"{plain(name)}  {metric}  {sparkline(values[-60:])}  {values[-1]:.4g} ({count})"
        console.print(line, markup=False, soft_wrap=True)
        for change in found[name]:
            console.print(f"  {change}", markup=False, soft_wrap=True)
