"""The commands bench and report; neither needs torch."""

from __future__ import annotations

import json
import warnings
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from compress.cli.common import JsonFlag
from compress.cli.probe import Probe, probe_first
from compress.files import write_text
from compress.terminal import Terminal, plain

if TYPE_CHECKING:
    from collections.abc import Sequence

    from deploy.bench.isolate import Place
    from deploy.bench.records import Bench, Record


def bench(
    engines: Annotated[
        list[Path] | None, typer.Argument(help="ONNX files or bundles; the first is the reference.")
    ] = None,
    name: Annotated[
        list[str] | None,
        typer.Option("--name", metavar="NAME=PATH", help="An engine under a name, before the others; repeatable."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Also write the record to this file.")] = None,
    batch: Annotated[int, typer.Option(min=1, max=4096, help="Images of one run.")] = 1,
    size: Annotated[
        str | None, typer.Option(metavar="HxW", help="Height and width where a file leaves them open, such as 224x320.")
    ] = None,
    threads: Annotated[int, typer.Option(min=1, max=1024)] = 1,
    rounds: Annotated[int, typer.Option(min=5, max=100_000)] = 50,
    runtime: Annotated[str | None, typer.Option(help="Run all by this one, such as openvino.")] = None,
    isolate: Annotated[
        int, typer.Option(min=0, max=20, help="Time in so many fresh processes; best times are those of all.")
    ] = 0,
    data: Annotated[
        Path | None, typer.Option(help="Measure accuracy on a folder with a folder for each class.")
    ] = None,
    probe: Probe = None,
    as_json: JsonFlag = False,
) -> None:
    """Time engines against the first one, in turns, on seeded noise for the inputs of each; needs no torch."""
    from deploy.bench.places import places_of

    places = places_of([str(path) for path in engines or []], name or [], runtime)
    if not places:
        raise typer.BadParameter("give ONNX files or bundles to time")
    for place in places:
        probe_first(place.path, probe, runtime=place.runtime, batch=batch)
    result = timed(places, batch, threads, rounds, isolate=isolate, size=_size(size))
    if data is not None:
        result = _with_accuracy(result, places, threads, data)
    if out is not None:
        write_text(out, result.to_json())
    if as_json:
        print(result.to_json(), end="")
    else:
        console = Terminal()
        console.print(_bench_table(result, console.width))
        for engine, taken in result.settings.get("inputs", {}).items():
            console.print(f"{engine} takes {taken}", soft_wrap=True, markup=False)
        for sentence in _noise_of(result):
            console.print(sentence, style="yellow", markup=False)


def report(
    folder: Annotated[Path, typer.Argument(help="A run folder.")],
    as_json: JsonFlag = False,
) -> None:
    """Write a run's report.html again."""
    from deploy.report import write_report

    with warnings.catch_warnings():
        # matplotlib warns of a name that its font cannot draw.
        warnings.simplefilter("ignore")
        path = write_report(folder)
    print(json.dumps({"report": str(path)}) if as_json else plain(path))


def timed(
    places: Sequence[Place],
    batch: int,
    threads: int,
    rounds: int,
    *,
    isolate: int = 0,
    size: tuple[int, int] | None = None,
) -> Bench:
    """Open the engines and time each on noise of its own inputs, here or in processes of their own.

    Raises:
        DeployError: what one takes is no batch of that size, has an open size that nobody gave, or is too large.
    """
    import deploy
    from deploy.bench.figures import records_of
    from deploy.bench.isolate import open_engine, sit_apart
    from deploy.bench.noise import noise
    from deploy.bench.records import Bench
    from deploy.errors import DeployError

    with ExitStack() as stack:
        engines = [stack.enter_context(open_engine(place, threads)) for place in places]
        drawn = [
            noise(engine.inputs, str(place.path), batch, size=size, stated=_stated(engine, place.path))
            for engine, place in zip(engines, places, strict=True)
        ]
        feeds = [one for one, _ in drawn]
        rows = {place.name: count for place, (_, count) in zip(places, drawn, strict=True)}
        if len(set(rows.values())) > 1:
            raise DeployError(f"One run takes {rows} images; only runs of as many can be compared, give --batch.")
        count = drawn[0][1]
        records = [] if isolate else deploy.benchmark(engines, feeds, batch=count, rounds=rounds)
        taken = [", ".join(f"{name} {spec}" for name, spec in engine.inputs.items()) for engine in engines]
    if isolate:
        sat = [sit_apart(places, feeds, threads=threads, rounds=rounds, seed=seed) for seed in range(isolate)]
        records = records_of(sat[0][0], [one for _, one in sat], reference=places[0].name, batch=count)
    settings: dict[str, Any] = {"threads": threads, "batch": count, "rounds": rounds, "isolate": isolate}
    if len(set(taken)) > 1:
        settings["inputs"] = {place.name: said for place, said in zip(places, taken, strict=True)}
    return Bench(name=places[0].name, settings=settings, records=tuple(records))


def _with_accuracy(result: Bench, places: Sequence[Place], threads: int, data: Path) -> Bench:
    """Measure every engine's accuracy on labelled images."""
    from deploy.bench.isolate import open_engine
    from deploy.bench.labelled import accuracy_on

    records, images = [], 0
    for place, record in zip(places, result.records, strict=True):
        with open_engine(place, threads) as engine:
            accuracy, images = accuracy_on(engine, place.path, data)
        records.append(record.model_copy(update={"accuracy": accuracy}))
    settings = {**result.settings, "images": images}
    return result.model_copy(update={"records": tuple(records), "settings": settings})


def _stated(engine: Any, path: Path) -> list[int] | None:
    """Return the sizes of one image, (C, H, W), where a bundle or a file states its preprocessing."""
    from deploy.onnx.metadata import Metadata

    said = engine.preprocessing if path.is_dir() else Metadata.from_file(path).preprocessing
    return None if said is None else list(said.shape)


def _size(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    height, _, width = text.lower().partition("x")
    if not (height.isdecimal() and width.isdecimal() and int(height[:9]) > 0 and int(width[:9]) > 0):
        raise typer.BadParameter(f"'{text}' is no size; give HEIGHTxWIDTH, such as 224x320", param_hint="--size")
    return int(height[:9]), int(width[:9])


def _bench_table(result: Bench, width: int) -> Table:
    head = ["engine", "best", "median", "p90", "p99", "by best", "by medians"]
    accurate = any(record.accuracy is not None for record in result.records)
    shown = Table(*head, *(["accuracy"] if accurate else []), title=escape(_machine(result)))
    # A name is folded and never cut: two of them could be cut to the same letters.
    shown.columns[0].overflow = "fold"
    shown.columns[0].min_width = min(24, max(width // 4, 8))
    for record in result.records:
        accuracy = [] if not accurate else ["–" if record.accuracy is None else f"{100 * record.accuracy:.1f} %"]
        shown.add_row(escape(record.name), *map(escape, [*_times(record), *accuracy]))
    return shown


def _times(record: Record) -> list[str]:
    low, high = record.ratio_interval or (0.0, 0.0)
    figures = (record.min_ms, record.median_ms, record.p90_ms, record.p99_ms)
    times = [f"{value:.3f}" for value in figures if value is not None]
    best = "–" if record.ratio_of_best is None else f"{record.ratio_of_best:.3f}"
    return [*times, best, f"{record.ratio_to_dense:.3f} [{low:.3f}, {high:.3f}]"]


def _noise_of(result: Bench) -> list[str]:
    """Say so where the machine was noisy, threads share cores, or an engine's times had not settled."""
    from deploy.engines.cores import over_cores

    noises = {noise: None for r in result.records if r.conditions and (noise := r.conditions.noise())}
    said = [
        f"The machine was noisy ({noise}): trust best times more than medians, and measure again." for noise in noises
    ]
    unsettled = [record.name for record in result.records if record.steady is False]
    if unsettled:
        said.append(f"The times of {', '.join(unsettled)} were still falling when the warm-up ended.")
    crowded = over_cores(int(result.settings.get("threads", 1)))
    return said if crowded is None else [*said, crowded]


def _machine(result: Bench) -> str:
    threads = result.settings.get("threads")
    return f"{result.machine.get('cpu', 'unknown CPU')}, {threads} thread(s); ms and shares of the first"
