"""The commands bench and report; neither needs torch."""

from __future__ import annotations

import json
import math
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
# Of an input that is timed: 8 GB in float32.
_MOST_NUMBERS = 2_000_000_000


def bench(
    engines: Annotated[
        list[Path] | None, typer.Argument(help="ONNX files or bundles; the first is the reference.")
    ] = None,
    name: Annotated[
        list[str] | None,
        typer.Option("--name", metavar="NAME=PATH", help="An engine under a name, before the others; repeatable."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Also write the record to this file.")] = None,
    batch: Annotated[str, typer.Option(help="Images of one run, or several such as 1,8,64.")] = "1",
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
    """Time engines against the first one, in turns, on seeded noise; needs no torch."""
    from deploy.bench.places import places_of

    places = places_of([str(path) for path in engines or []], name or [], runtime)
    if not places:
        raise typer.BadParameter("give ONNX files or bundles to time")
    batches = batches_of(batch)
    for place in places:
        probe_first(place.path, probe, runtime=place.runtime, batch=batches[0])
    result = timed(places, batches, threads, rounds, isolate=isolate)
    if cold or streams or rate:
        result = _with_more(result, places, batches[0], threads, _More(cold, streams, rate))
    if data is not None:
        result = _with_accuracy(result, places, threads, data)
    if out is not None:
        write_text(out, result.to_json())
    if as_json:
        print(result.to_json(), end="")
    else:
        console = Terminal()
        console.print(_bench_table(result, console.width))
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


def batches_of(said: str) -> list[int]:
    """Return the batch sizes that ``said`` names, such as ``1,8,64``; refuse what names none."""
    found = said.split(",")
    if not all(one.strip().isdecimal() and 1 <= int(one) <= _LARGEST_BATCH for one in found):
        raise typer.BadParameter(f"--batch is {said!r}; give sizes from 1 to {_LARGEST_BATCH}, such as 1,8,64")
    return list(dict.fromkeys(int(one) for one in found))


def timed(places: Sequence[Place], batches: Sequence[int], threads: int, rounds: int, *, isolate: int = 0) -> Bench:
    """Open the engines and time them on the same noise, here or in processes of their own, one batch after the other.

    Raises:
        DeployError: what the first one takes is no batch of that size, or too large to be timed.
    """
    from deploy.bench.records import Bench

    records: list[Record] = []
    for batch in batches:
        found = _one_batch(places, batch, threads, rounds, isolate)
        if batch != batches[0]:
            found = [
                one.model_copy(
                    update={"name": f"{one.name}, batch {batch}", "reference": f"{one.reference}, batch {batch}"}
                )
                for one in found
            ]
        records += found
    settings = {"threads": threads, "batch": batches[0], "rounds": rounds, "isolate": isolate}
    return Bench(name=places[0].name, settings=settings, records=tuple(records))


def _one_batch(places: Sequence[Place], batch: int, threads: int, rounds: int, isolate: int) -> list[Record]:
    import deploy
    from deploy.bench.figures import records_of
    from deploy.bench.isolate import open_engine, sit_apart

    with ExitStack() as stack:
        engines = [stack.enter_context(open_engine(place, threads)) for place in places]
        noise = _noise(engines[0], places[0].path, batch)
        if not isolate:
            return deploy.benchmark(engines, noise, rounds=rounds)
    feeds = [noise] * len(places)
    sat = [sit_apart(places, feeds, threads=threads, rounds=rounds, seed=seed) for seed in range(isolate)]
    return records_of(sat[0][0], [one for _, one in sat], reference=places[0].name, batch=batch)


def _with_more(result: Bench, places: Sequence[Place], batch: int, threads: int, more: _More) -> Bench:
    """Measure cold starts, streams and requests at a rate, of one engine after the other."""
    from deploy.bench.isolate import cold_start, open_engine
    from deploy.bench.traffic import open_loop, run_streams

    records = list(result.records)
    for index, place in enumerate(places):
        with ExitStack() as stack:
            first = stack.enter_context(open_engine(place, threads))
            noise = _noise(first, place.path, batch)
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


def _noise(engine: Any, path: Path, batch: int) -> dict[str, np.ndarray]:
    """Draw seeded noise for every input of an engine, which ``path`` was opened as."""
    import numpy as np

    from deploy.errors import DeployError

    inputs = {}
    for name, spec in engine.inputs.items():
        sizes = [size for size in spec.shape[1:] if size is not None]
        if len(sizes) != len(spec.shape[1:]):
            sizes = _sizes_of_preprocessing(engine, path, name)
        if spec.shape[:1] not in ((None,), (batch,)):
            way_out = f"give --batch {spec.shape[0]}" if spec.shape and spec.shape[0] else "export it with a free batch"
            raise DeployError(f"{path} takes '{name}' as {spec}, which is no batch of {batch}; {way_out}.")
        if batch * math.prod(sizes) > _MOST_NUMBERS:
            raise DeployError(f"{path} takes '{name}' as {spec}: too large to be timed with a batch of {batch}.")
        inputs[name] = np.random.default_rng(0).standard_normal((batch, *sizes)).astype(spec.dtype)
    return inputs


def _sizes_of_preprocessing(engine: Any, path: Path, name: str) -> list[int]:
    """Return the sizes of one image where the file leaves them open: what its preprocessing makes."""
    from deploy.errors import DeployError
    from deploy.onnx.metadata import Metadata

    said = engine.preprocessing if path.is_dir() else Metadata.from_file(path).preprocessing
    if said is None:
        raise DeployError(f"{path} leaves the size of '{name}' open and names no preprocessing; export it with one.")
    return list(said.shape)


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
    """Say so where the machine was noisy, or an engine's times had not settled."""
    noises = {noise: None for r in result.records if r.conditions and (noise := r.conditions.noise())}
    said = [
        f"The machine was noisy ({noise}): trust best times more than medians, and measure again." for noise in noises
    ]
    unsettled = [record.name for record in result.records if record.steady is False]
    if unsettled:
        said.append(f"The times of {', '.join(unsettled)} were still falling when the warm-up ended.")
    return said


def _machine(result: Bench) -> str:
    threads = result.settings.get("threads")
    return f"{result.machine.get('cpu', 'unknown CPU')}, {threads} thread(s); ms and shares of the first"
