"""``python -m benchmarks.papers run TABLE --size SIZE``: the papers' tables, run again."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.papers import recipes
from benchmarks.papers.runner import RESULTS, Asked, read_lines, run
from compress.errors import NiwakiError

app = typer.Typer(add_completion=False, no_args_is_help=True)


@app.command("run")
def run_table(
    table: Annotated[str, typer.Argument(help="A YAML file of this folder, without its ending.")],
    size: Annotated[str, typer.Option(help="smoke (seconds), small (minutes on a CPU) or full.")] = "small",
    method: Annotated[list[str] | None, typer.Option(help="A row; may be given again. All when left out.")] = None,
    seed: Annotated[
        list[int] | None, typer.Option(help="A seed; may be given again. The size's when left out.")
    ] = None,
    terms: Annotated[str, typer.Option(help="published epochs, or equal training FLOPs for every row.")] = "published",
    minutes: Annotated[float | None, typer.Option(help="End of this slice; the same command goes on.")] = None,
    results: Annotated[Path, typer.Option(help="Folder of the JSON lines.")] = RESULTS,
) -> None:
    """Run the cells that are not done yet."""
    if terms not in ("published", "equal"):
        raise typer.BadParameter(f"{terms} is neither published nor equal", param_hint="--terms")
    asked = Asked(table, size, tuple(method or ()), tuple(seed or ()), terms, minutes, results)
    try:
        (recipes.run if recipes.is_recipes(table) else run)(asked, lambda text: print(text, flush=True))
    except NiwakiError as error:
        print(error, file=sys.stderr)
        raise typer.Exit(error.exit_code) from None


@app.command("report")
def report_table(
    table: Annotated[str, typer.Argument(help="A YAML file of this folder, without its ending.")],
    results: Annotated[Path, typer.Option(help="Folder of the JSON lines.")] = RESULTS,
    plots: Annotated[Path | None, typer.Option(help="Folder to draw into.")] = None,
) -> None:
    """Print the table in Markdown, and draw it."""
    from benchmarks.papers import report

    try:
        lines = read_lines(results / f"{table}.jsonl")
        if recipes.is_recipes(table):
            if plots is not None:
                raise typer.BadParameter(f"{table} has recipes as rows, which are not drawn", param_hint="--plots")
            print(recipes.markdown(table, lines))
            return
        print(report.markdown(table, lines))
        for path in report.plots(table, lines, plots) if plots is not None else ():
            print(path)
    except NiwakiError as error:
        print(error, file=sys.stderr)
        raise typer.Exit(error.exit_code) from None


if __name__ == "__main__":
    app()
