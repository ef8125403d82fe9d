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
from benchmarks.criteria import rivals, stages, truth
from benchmarks.criteria.tables import tables
from compress.errors import NiwakiError

app = typer.Typer(add_completion=False, no_args_is_help=True)

File = Annotated[Path, typer.Option("--results", help="File of the JSON lines.")]
Tuned = Annotated[Path, typer.Option("--rivals", help="File of the JSON lines of Torch-Pruning.")]


@app.command()
def run(
    stage: Annotated[str, typer.Argument(help="criteria, allocation, test or normalization.")],
    subject: Annotated[list[str], typer.Argument(help="resnet20, resnet56, vit, or folders of classifiers' runs.")],
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
    _modest()
    try:
        for name in subject:
            asked = stages.cells(stage, name, study.read_lines(results), images)  # type: ignore[arg-type]
            kept = [cell for cell in asked if not only or cell.criterion in only]
            wanted = [replace(cell, rounds=rounds, macs=share) for share in shares for cell in kept]
            study.run(wanted, results, lambda text: print(text, flush=True))
    except NiwakiError as error:
        print(error, file=sys.stderr)
        raise typer.Exit(error.exit_code) from None


@app.command("rivals")
def against(
    depth: Annotated[list[int], typer.Argument(help="20, 56.")],
    seed: Annotated[list[int] | None, typer.Option(help="May be given again; 0, 1 and 2 by default.")] = None,
    only: Annotated[list[str] | None, typer.Option(help="A method; may be given again.")] = None,
    results: File = rivals.RESULTS,
) -> None:
    """Cut ResNets by Niwaki and by Torch-Pruning to the same MACs, and fine-tune each for one epoch."""
    unknown = sorted(set(only or ()) - set(rivals.METHODS))
    if unknown:
        raise typer.BadParameter(f"{unknown} are none of {', '.join(rivals.METHODS)}", param_hint="--only")
    _modest()
    try:
        for own in depth:
            bouts = [rivals.Bout(own, m, s) for s in seed or stages.SEEDS for m in only or rivals.METHODS]
            rivals.run(bouts, results, lambda text: print(text, flush=True))
    except NiwakiError as error:
        print(error, file=sys.stderr)
        raise typer.Exit(error.exit_code) from None


@app.command()
def sensitivity(
    subject: Annotated[list[str], typer.Argument(help="As for run.")],
    images: Annotated[int, typer.Option(help="Calibration images.")] = 256,
    folder: Annotated[Path, typer.Option(help="What is written into.")] = truth.HERE,
) -> None:
    """Cut each group alone, and say how well every criterion foresaw what that cost."""
    _modest()
    try:
        for name in subject:
            print(truth.measure(name, images, folder, lambda text: print(text, flush=True)))
    except NiwakiError as error:
        print(error, file=sys.stderr)
        raise typer.Exit(error.exit_code) from None


@app.command()
def table(results: File = study.RESULTS, tuned: Tuned = rivals.RESULTS) -> None:
    """Print the tables in Markdown."""
    parts = (tables(study.read_lines(results)), rivals.table(study.read_lines(tuned)), truth.table())
    print("\n\n".join(filter(None, parts)))


@app.command()
def plot(folder: Annotated[Path, typer.Argument(help="What is drawn into.")], results: File = study.RESULTS) -> None:
    """Draw each subject's criteria."""
    from benchmarks.criteria.plots import plot as draw

    for path in draw(study.read_lines(results), folder):
        print(path)


def _modest() -> None:
    torch.set_num_threads(1)
    os.nice(0 if os.nice(0) else 5)


if __name__ == "__main__":
    app()
