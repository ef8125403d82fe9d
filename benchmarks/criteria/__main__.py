"""``python -m benchmarks.criteria run STAGE SUBJECT``: which channels a network can spare, by every criterion."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated, get_args

import torch
import typer

from benchmarks.criteria import cells as study
from benchmarks.criteria import stages
from benchmarks.criteria.tables import tables
from compress.errors import NiwakiError

app = typer.Typer(add_completion=False, no_args_is_help=True)

File = Annotated[Path, typer.Option("--results", help="File of the JSON lines.")]


@app.command()
def run(
    stage: Annotated[str, typer.Argument(help="criteria, allocation or test.")],
    subject: Annotated[list[str], typer.Argument(help="resnet20, resnet56, or folders of classifiers' runs.")],
    images: Annotated[int, typer.Option(help="Calibration images.")] = 256,
    only: Annotated[list[str] | None, typer.Option(help="A criterion; may be given again.")] = None,
    rounds: Annotated[int, typer.Option(help="Cuts, each reconstructed before the next.")] = 1,
    macs: Annotated[list[float] | None, typer.Option(help="Share of the MACs that stays; may be given again.")] = None,
    results: File = study.RESULTS,
) -> None:
    """Run the cells that have no line yet; the same command goes on where it was stopped."""
    if stage not in get_args(stages.Stage):
        raise typer.BadParameter(f"{stage} is none of {', '.join(get_args(stages.Stage))}", param_hint="STAGE")
    shares = macs or [0.5]
    if not all(0 < share < 1 for share in shares):
        raise typer.BadParameter(f"{shares} are not all between 0 and 1, as shares that stay are", param_hint="--macs")
    torch.set_num_threads(1)
    os.nice(0 if os.nice(0) else 5)
    try:
        for name in subject:
            asked = stages.cells(stage, name, study.read_lines(results), images)  # type: ignore[arg-type]
            kept = [cell for cell in asked if not only or cell.criterion in only]
            wanted = [replace(cell, rounds=rounds, macs=share) for share in shares for cell in kept]
            study.run(wanted, results, lambda text: print(text, flush=True))
    except NiwakiError as error:
        print(error, file=sys.stderr)
        raise typer.Exit(error.exit_code) from None


@app.command()
def table(results: File = study.RESULTS) -> None:
    """Print the tables in Markdown."""
    print(tables(study.read_lines(results)))


@app.command()
def plot(folder: Annotated[Path, typer.Argument(help="What is drawn into.")], results: File = study.RESULTS) -> None:
    """Draw each subject's criteria."""
    from benchmarks.criteria.plots import plot as draw

    for path in draw(study.read_lines(results), folder):
        print(path)


if __name__ == "__main__":
    app()
