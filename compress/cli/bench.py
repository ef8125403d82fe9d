"""The commands bench and report; neither needs torch."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Annotated

import typer

from compress.cli.common import JsonFlag, replaceable
from compress.cli.probe import Probe, probe_first
from compress.files import write_text
from compress.terminal import plain

EnginesArgument = Annotated[
    list[Path] | None, typer.Argument(help="ONNX files or bundles; the first is the reference.")
]
NameOption = Annotated[
    list[str] | None,
    typer.Option("--name", metavar="NAME=PATH", help="A named engine, placed before the others; repeatable."),
]
BatchOption = Annotated[str | None, typer.Option(help="Batch sizes, such as 1,8,64; by default the file's own.")]
SizeOption = Annotated[
    str | None, typer.Option(metavar="HxW", help="Height and width where a file leaves them open, such as 224x320.")
]
ShapeOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="[NAME=]SHAPE", help="A whole shape with its batch, such as 1x3x224x224 or ids=1x128; repeatable."
    ),
]
DataOption = Annotated[
    Path | None,
    typer.Option(
        exists=True,
        file_okay=False,
        help="Time on images of this folder; accuracy too, if it has a folder for each class.",
    ),
]


def bench(
    engines: EnginesArgument = None,
    name: NameOption = None,
    out: Annotated[Path | None, typer.Option(help="Also write the record to this file.")] = None,
    batch: BatchOption = None,
    size: SizeOption = None,
    shape: ShapeOption = None,
    threads: Annotated[int, typer.Option(min=1, max=1024, help="Threads of each engine.")] = 1,
    rounds: Annotated[
        int, typer.Option(min=5, max=100_000, help="Least number of rounds, each of five runs per engine.")
    ] = 50,
    seconds: Annotated[
        float, typer.Option(min=0.0, max=3600.0, help="Least duration; rounds are added until then.")
    ] = 1.0,
    runtime: Annotated[str | None, typer.Option(help="Run all on this runtime, such as openvino.")] = None,
    isolate: Annotated[
        int, typer.Option(min=0, max=20, help="Time in this many fresh processes; best times are over all.")
    ] = 0,
    data: DataOption = None,
    probe: Probe = None,
    cold: Annotated[bool, typer.Option("--cold", help="Also measure loading and the first run.")] = False,
    streams: Annotated[int, typer.Option(min=0, max=256, help="Also run this many threads at once.")] = 0,
    rate: Annotated[
        float | None, typer.Option(min=0.01, max=1e6, help="Also send requests at this rate per second.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Time engines in turns and compare them with the first, on seeded noise or on images; needs no torch."""
    from compress.cli import timing
    from compress.cli.timed_table import show
    from deploy.bench.feeding import Feeding
    from deploy.bench.places import places_of
    from deploy.processing.files import image_files

    if out is not None:
        replaceable(out, ".json")
    places = places_of([str(path) for path in engines or []], name or [], runtime)
    if not places:
        raise typer.BadParameter("give ONNX files or bundles to time")
    batches = timing.batches_of(batch)
    for place in places:
        probe_first(place.path, probe, runtime=place.runtime, batch=batches[0] or 1)
    images = [] if data is None else image_files([data])
    feeding = Feeding(timing.size_of(size), timing.shapes_of(shape or []), images)
    result = timing.timed(places, batches, threads, rounds, isolate=isolate, seconds=seconds, feeding=feeding)
    result = timing.with_transfers(result, places, threads, feeding)
    if cold or streams or rate:
        more = timing.More(cold, streams, rate, feeding)
        result = timing.with_more(result, places, result.records[0].batch, threads, more)
    if data is not None:
        result = timing.with_accuracy(result, places, threads, data)
    if out is not None:
        write_text(out, result.to_json())
    if as_json:
        print(result.to_json(), end="")
    else:
        show(result, data)


def report(
    folders: Annotated[list[Path], typer.Argument(help="Run folders; several are put side by side.")],
    form: Annotated[str, typer.Option("--format", help="html, md or json.")] = "html",
    out: Annotated[Path | None, typer.Option(help="Write to this file.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Write a run's report.html again, or put several runs side by side."""
    from deploy.report import compare, write_report

    with warnings.catch_warnings():
        # matplotlib warns of a name that its font cannot draw.
        warnings.simplefilter("ignore")
        if form == "html" and len(folders) == 1 and out is None:
            path = write_report(folders[0])
        else:
            text = compare(folders, form)
            if out is None and form != "html":
                print(text, end="")
                return
            path = replaceable(out or Path("report.html"), ".html", ".md", ".json")
            write_text(path, text)
    print(json.dumps({"report": str(path)}) if as_json else plain(path))
