"""The commands bench and report; neither needs torch."""

from __future__ import annotations

import json
import warnings
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer
from rich.markup import escape
from rich.table import Table

from compress.cli.common import JsonFlag
from compress.cli.probe import Probe, probe_first
from compress.files import write_text
from compress.terminal import Terminal, plain

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy as np

    from deploy.bench.isolate import Place
    from deploy.bench.records import Bench, Record

_LARGEST_BATCH = 4096


def bench(
    engines: Annotated[
        list[Path] | None, typer.Argument(help="ONNX files or bundles; the first is the reference.")
    ] = None,
    name: Annotated[
        list[str] | None,
        typer.Option("--name", metavar="NAME=PATH", help="An engine under a name, before the others; repeatable."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Also write the record to this file.")] = None,
    batch: Annotated[str | None, typer.Option(help="Images of one run, such as 1,8,64; else a file's own.")] = None,
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
    cold: Annotated[bool, typer.Option("--cold", help="Also what loading and the first run cost.")] = False,
    streams: Annotated[int, typer.Option(min=0, max=256, help="Also so many threads at once.")] = 0,
    rate: Annotated[
        float | None, typer.Option(min=0.01, max=1e6, help="Also requests that come at so many a second.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Time engines against the first one, in turns, on seeded noise for the inputs of each; needs no torch."""
    from deploy.bench.places import places_of

    places = places_of([str(path) for path in engines or []], name or [], runtime)
    if not places:
        raise typer.BadParameter("give ONNX files or bundles to time")
    batches = batches_of(batch)
    for place in places:
        probe_first(place.path, probe, runtime=place.runtime, batch=batches[0] or 1)
    pixels = _size(size)
    result = timed(places, batches, threads, rounds, isolate=isolate, size=pixels)
    if cold or streams or rate:
        result = _with_more(result, places, result.records[0].batch, threads, _More(cold, streams, rate, pixels))
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
        for record in result.records:
            for sentence in _more_of(record):
                console.print(sentence, markup=False, soft_wrap=True)
        for sentence in _noise_of(result):
            console.print(sentence, style="yellow", markup=False)


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
            path = out or Path("report.html")
            write_text(path, text)
    print(json.dumps({"report": str(path)}) if as_json else plain(path))


class _More(NamedTuple):
    """What else is measured of each engine."""

    cold: bool
    streams: int
    rate: float | None
    size: tuple[int, int] | None


def batches_of(said: str | None) -> list[int | None]:
    """Return the batch sizes that ``said`` names, such as ``1,8,64``, None for a file's own; refuse what names none."""
    if said is None:
        return [None]
    found = said.split(",")
    if not all(one.strip().isdecimal() and 1 <= int(one) <= _LARGEST_BATCH for one in found):
        raise typer.BadParameter(f"--batch is {said!r}; give sizes from 1 to {_LARGEST_BATCH}, such as 1,8,64")
    return list(dict.fromkeys(int(one) for one in found))


def timed(
    places: Sequence[Place],
    batches: Sequence[int | None],
    threads: int,
    rounds: int,
    *,
    isolate: int = 0,
    size: tuple[int, int] | None = None,
) -> Bench:
    """Open the engines and time each on noise of its own inputs, here or apart, one batch after the other.

    Where no batch is named, it is the one that the files are fixed to, else 1.

    Raises:
        DeployError: what one takes is no batch of that size, has an open size that nobody gave, or is too large.
    """
    from deploy.bench.records import Bench

    records: list[Record] = []
    for batch in batches:
        found, taken = _one_batch(places, batch, threads, rounds, isolate, size)
        if batch != batches[0]:
            found = [
                one.model_copy(
                    update={"name": f"{one.name}, batch {batch}", "reference": f"{one.reference}, batch {batch}"}
                )
                for one in found
            ]
        records += found
    settings: dict[str, Any] = {
        "threads": threads, "batch": records[0].batch, "rounds": rounds, "isolate": isolate,
    }  # fmt: skip
    if len(set(taken.values())) > 1:
        settings["inputs"] = taken
    return Bench(name=places[0].name, settings=settings, records=tuple(records))


def _one_batch(
    places: Sequence[Place], batch: int | None, threads: int, rounds: int, isolate: int, size: tuple[int, int] | None
) -> tuple[list[Record], dict[str, str]]:
    """Time one batch; return also what each engine takes, in words."""
    import deploy
    from deploy.bench.figures import records_of
    from deploy.bench.isolate import open_engine, sit_apart
    from deploy.errors import DeployError

    with ExitStack() as stack:
        engines = [stack.enter_context(open_engine(place, threads)) for place in places]
        drawn = [_noise(engine, place.path, batch, size) for engine, place in zip(engines, places, strict=True)]
        if batch is None and len({count for _, count in drawn}) > 1:  # those that are free take what one is fixed to
            batch = max(count for _, count in drawn)
            drawn = [_noise(engine, place.path, batch, size) for engine, place in zip(engines, places, strict=True)]
        feeds = [one for one, _ in drawn]
        rows = {place.name: count for place, (_, count) in zip(places, drawn, strict=True)}
        if len(set(rows.values())) > 1:
            raise DeployError(f"One run takes {rows} images; only runs of as many can be compared, give --batch.")
        count = drawn[0][1]
        taken = {one.name: ", ".join(f"{name} {spec}" for name, spec in one.inputs.items()) for one in engines}
        if not isolate:
            return deploy.benchmark(engines, feeds, batch=count, rounds=rounds), taken
    sat = [sit_apart(places, feeds, threads=threads, rounds=rounds, seed=seed) for seed in range(isolate)]
    return records_of(sat[0][0], [one for _, one in sat], reference=places[0].name, batch=count), taken


def _with_more(result: Bench, places: Sequence[Place], batch: int, threads: int, more: _More) -> Bench:
    """Measure cold starts, streams and requests at a rate, of one engine after the other."""
    from deploy.bench.isolate import cold_start, open_engine
    from deploy.bench.traffic import open_loop, run_streams

    records = list(result.records)
    for index, place in enumerate(places):
        with ExitStack() as stack:
            first = stack.enter_context(open_engine(place, threads))
            noise, _ = _noise(first, place.path, batch, more.size)
            others = [stack.enter_context(open_engine(place, threads)) for _ in range(more.streams - 1)]
            update: dict[str, Any] = {}
            if more.streams:
                update["streams"] = run_streams([first, *others], noise)
            if more.rate:
                update["open_loop"] = open_loop([first, *others], noise, rate=more.rate)
        if more.cold:
            update["cold"] = cold_start(place, noise, threads=threads)
        records[index] = records[index].model_copy(update=update)
    return result.model_copy(update={"records": tuple(records)})


def _with_accuracy(result: Bench, places: Sequence[Place], threads: int, data: Path) -> Bench:
    """Measure every engine's accuracy on labelled images."""
    from deploy.bench.isolate import open_engine
    from deploy.bench.labelled import accuracy_on

    records, images = [], 0
    found = {}
    for place in places:
        with open_engine(place, threads) as engine:
            found[place.name], images = accuracy_on(engine, place.path, data)
    for record in result.records:  # of every batch
        accuracy = found[record.name.removesuffix(f", batch {record.batch}")]
        records.append(record.model_copy(update={"accuracy": accuracy}))
    settings = {**result.settings, "images": images}
    return result.model_copy(update={"records": tuple(records), "settings": settings})


def _noise(
    engine: Any, path: Path, batch: int | None, size: tuple[int, int] | None
) -> tuple[dict[str, np.ndarray], int]:
    """Draw seeded noise for every input of an engine, which ``path`` was opened as; count its images, too."""
    from deploy.bench.noise import noise

    return noise(engine.inputs, str(path), batch, size=size, stated=_stated(engine, path))


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


def _more_of(record: Record) -> Iterator[str]:
    """Say what else was measured of an engine."""
    if (cold := record.cold) is not None:
        memory = "" if cold.peak_rss_bytes is None else f", {cold.peak_rss_bytes / 1e6:.0f} MB at most"
        yield f"{record.name}: loads in {cold.load_ms:.0f} ms, first run {cold.first_ms:.2f} ms{memory}."
    if (streams := record.streams) is not None:
        yield f"{record.name}: {streams.throughput:.1f} images a second by {streams.streams} streams."
    if (loop := record.open_loop) is not None:
        times = f"median {loop.median_ms:.2f} ms, p99 {loop.p99_ms:.2f} ms"
        yield f"{record.name}: {times} at {loop.rate:g} requests a second ({loop.answered:.1f} answered)."


def _noise_of(result: Bench) -> list[str]:
    """Say so where the machine was noisy, threads share cores, or an engine's times had not settled."""
    from deploy.bench.conditions import noisy_line
    from deploy.engines.cores import over_cores

    noises = {noise: None for r in result.records if r.conditions and (noise := r.conditions.noise())}
    said = [noisy_line(noise) for noise in noises]
    unsettled = [record.name for record in result.records if record.steady is False]
    if unsettled:
        said.append(f"The times of {', '.join(unsettled)} were still falling when the warm-up ended.")
    crowded = over_cores(int(result.settings.get("threads", 1)))
    return said if crowded is None else [*said, crowded]


def _machine(result: Bench) -> str:
    threads = result.settings.get("threads")
    return f"{result.machine.get('cpu', 'unknown CPU')}, {threads} thread(s); ms and shares of the first"
