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

    from deploy.bench.feeding import Fed, Feeding
    from deploy.bench.isolate import Place
    from deploy.bench.records import Bench, Record

_LARGEST_BATCH = 4096
_ON_CPU = ("onnxruntime", "openvino", "torch")


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
    shape: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[NAME=]SHAPE", help="A whole shape with its batch, such as 1x3x224x224 or ids=1x128; repeatable."
        ),
    ] = None,
    threads: Annotated[int, typer.Option(min=1, max=1024)] = 1,
    rounds: Annotated[int, typer.Option(min=5, max=100_000, help="Blocks of five runs of each, at least.")] = 50,
    seconds: Annotated[
        float, typer.Option(min=0.0, max=3600.0, help="Rounds are added until the timing takes so long.")
    ] = 1.0,
    runtime: Annotated[str | None, typer.Option(help="Run all by this one, such as openvino.")] = None,
    isolate: Annotated[
        int, typer.Option(min=0, max=20, help="Time in so many fresh processes; best times are those of all.")
    ] = 0,
    data: Annotated[
        Path | None,
        typer.Option(help="Time on images of this folder; accuracy too, where it has a folder for each class."),
    ] = None,
    probe: Probe = None,
    cold: Annotated[bool, typer.Option("--cold", help="Also what loading and the first run cost.")] = False,
    streams: Annotated[int, typer.Option(min=0, max=256, help="Also so many threads at once.")] = 0,
    rate: Annotated[
        float | None, typer.Option(min=0.01, max=1e6, help="Also requests that come at so many a second.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Time engines against the first one, in turns, on seeded noise or on images for each; needs no torch."""
    from deploy.bench.feeding import Feeding
    from deploy.bench.places import places_of
    from deploy.processing.files import image_files

    places = places_of([str(path) for path in engines or []], name or [], runtime)
    if not places:
        raise typer.BadParameter("give ONNX files or bundles to time")
    batches = batches_of(batch)
    for place in places:
        probe_first(place.path, probe, runtime=place.runtime, batch=batches[0] or 1)
    feeding = Feeding(_size(size), _shapes(shape or []), [] if data is None else image_files([data]))
    result = timed(places, batches, threads, rounds, isolate=isolate, seconds=seconds, feeding=feeding)
    result = _with_transfers(result, places, threads, feeding)
    if cold or streams or rate:
        more = _More(cold, streams, rate, feeding)
        result = _with_more(result, places, result.records[0].batch, threads, more)
    if data is not None:
        result = _with_accuracy(result, places, threads, data)
    if out is not None:
        write_text(out, result.to_json())
    if as_json:
        print(result.to_json(), end="")
    else:
        console = Terminal()
        console.print(_bench_table(result, console.width))
        if len({record.batch for record in result.records}) > 1:
            console.print(_throughputs(result))
        for engine, taken in result.settings.get("inputs", {}).items():
            console.print(f"{engine} takes {taken}", soft_wrap=True, markup=False)
        for record in result.records:
            for sentence in _more_of(record):
                console.print(sentence, markup=False, soft_wrap=True)
        for sentence in _data_of(result, data):
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
    feeding: Feeding


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
    seconds: float = 1.0,
    feeding: Feeding | None = None,
) -> Bench:
    """Open the engines and time each on its own inputs, here or apart, one batch after the other.

    Where no batch is named, it is the one that the files are fixed to, else 1; where no feeding is, all are fed noise.

    Raises:
        DeployError: what one takes is no batch of that size, has an open size that nobody gave, or is too large.
    """
    from deploy.bench.feeding import Feeding
    from deploy.bench.records import Bench

    feeding = feeding or Feeding()
    how = _How(threads, rounds, isolate, seconds, feeding)
    records: list[Record] = []
    for batch in batches:
        found, taken, real = _one_batch(places, batch, how)
        if batch != batches[0]:
            found = [
                one.model_copy(
                    update={"name": f"{one.name}, batch {batch}", "reference": f"{one.reference}, batch {batch}"}
                )
                for one in found
            ]
        records += found
    settings: dict[str, Any] = {
        "threads": threads, "batch": records[0].batch, "rounds": rounds, "isolate": isolate, **feeding.settings(),
    }  # fmt: skip
    if feeding.images:
        settings["fed"] = {place.name: "images" if place.name in real else "noise" for place in places}
    if len(set(taken.values())) > 1:
        settings["inputs"] = taken
    return Bench(name=places[0].name, settings=settings, records=tuple(records))


class _How(NamedTuple):
    """How a batch is timed."""

    threads: int
    rounds: int
    isolate: int
    seconds: float
    feeding: Feeding


def _one_batch(places: Sequence[Place], batch: int | None, how: _How) -> tuple[list[Record], dict[str, str], list[str]]:
    """Time one batch; return also what each engine takes, in words, and which of them were fed images."""
    import deploy
    from deploy.bench.figures import records_of
    from deploy.bench.isolate import open_engine, sit_apart
    from deploy.errors import DeployError

    with ExitStack() as stack:
        engines = [stack.enter_context(open_engine(place, how.threads)) for place in places]
        how.feeding.check(engines)

        def fed(batch: int | None) -> list[Fed]:
            pairs = zip(engines, places, strict=True)
            return [how.feeding.feed(engine, place.path, batch) for engine, place in pairs]

        drawn = fed(batch)
        if batch is None and len({one.rows for one in drawn}) > 1:  # those that are free take what one is fixed to
            drawn = fed(max(one.rows for one in drawn))
        feeds = [one.feeds for one in drawn]
        rows = {place.name: one.rows for place, one in zip(places, drawn, strict=True)}
        if len(set(rows.values())) > 1:
            raise DeployError(f"One run takes {rows} images; only runs of as many can be compared, give --batch.")
        count = drawn[0].rows
        taken = {one.name: ", ".join(f"{name} {spec}" for name, spec in one.inputs.items()) for one in engines}
        real = [place.name for place, one in zip(places, drawn, strict=True) if one.real]
        if not how.isolate:
            records = deploy.benchmark(engines, feeds, batch=count, rounds=how.rounds, min_seconds=how.seconds)
            return records, taken, real
    sat = [
        sit_apart(places, feeds, threads=how.threads, rounds=how.rounds, min_seconds=how.seconds, seed=seed)
        for seed in range(how.isolate)
    ]
    return records_of(sat[0][0], [one for _, one in sat], reference=places[0].name, batch=count), taken, real


def _with_more(result: Bench, places: Sequence[Place], batch: int, threads: int, more: _More) -> Bench:
    """Measure cold starts, streams and requests at a rate, of one engine after the other."""
    from deploy.bench.isolate import cold_start, open_engine
    from deploy.bench.traffic import open_loop, run_streams

    records = list(result.records)
    for index, place in enumerate(places):
        with ExitStack() as stack:
            first = stack.enter_context(open_engine(place, threads))
            noise = more.feeding.feed(first, place.path, batch).feeds
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


def _with_transfers(result: Bench, places: Sequence[Place], threads: int, feeding: Feeding) -> Bench:
    """Time the copies of engines on a graphics card apart from the network."""
    from deploy.bench.isolate import open_engine
    from deploy.bench.transfers import transfers_of

    by_name = {place.name: place for place in places}
    records = list(result.records)
    for index, record in enumerate(records):
        if record.runtime in _ON_CPU:
            continue
        place = by_name[record.name.removesuffix(f", batch {record.batch}")]
        with open_engine(place, threads) as engine:
            found = transfers_of(engine, feeding.feed(engine, place.path, record.batch).feeds)
        records[index] = record.model_copy(update={"transfers": found})
    return result.model_copy(update={"records": tuple(records)})


def _with_accuracy(result: Bench, places: Sequence[Place], threads: int, data: Path) -> Bench:
    """Measure every engine's accuracy on labelled images."""
    from deploy.bench.isolate import open_engine
    from deploy.bench.labelled import accuracy_on

    measured = {}
    for place in places:
        with open_engine(place, threads) as engine:
            measured[place.name] = accuracy_on(engine, place.path, data)
    records = []
    for record in result.records:  # of every batch
        found = measured[record.name.removesuffix(f", batch {record.batch}")]
        records.append(record.model_copy(update={} if found is None else {"accuracy": found[0]}))
    counted = [found[1] for found in measured.values() if found is not None]
    settings = {**result.settings, **({"images": counted[-1]} if counted else {})}
    return result.model_copy(update={"records": tuple(records), "settings": settings})


def _size(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    height, _, width = text.lower().partition("x")
    if not (height.isdecimal() and width.isdecimal() and int(height[:9]) > 0 and int(width[:9]) > 0):
        raise typer.BadParameter(f"'{text}' is no size; give HEIGHTxWIDTH, such as 224x320", param_hint="--size")
    return int(height[:9]), int(width[:9])


def _shapes(said: list[str]) -> dict[str, tuple[int, ...]]:
    """Return the shapes by the name of their input, "" for one without a name."""
    from deploy.bench.feeding import MOST_PIXELS

    found: dict[str, tuple[int, ...]] = {}
    for one in said:
        name, _, sizes = one.rpartition("=")
        parts = sizes.lower().split("x")
        if name in found or not all(p.isdecimal() and 1 <= int(p[:9]) <= MOST_PIXELS and len(p) < 9 for p in parts):
            wanted = f"give [NAME=]SHAPE of sizes from 1 to {MOST_PIXELS}, such as ids=1x128, once for each input"
            raise typer.BadParameter(f"'{one}' is no shape; {wanted}", param_hint="--shape")
        found[name] = tuple(map(int, parts))
    return found


def _throughputs(result: Bench) -> Table:
    """Return the images a second of each engine at each batch."""
    batches = list(dict.fromkeys(record.batch for record in result.records))
    shown = Table("images a second", *(f"batch {batch}" for batch in batches))
    shown.columns[0].overflow = "fold"
    by_name: dict[str, list[str]] = {}
    for record in result.records:
        name = record.name.removesuffix(f", batch {record.batch}")
        by_name.setdefault(name, []).append(f"{record.throughput or 0.0:,.0f}")
    for name, figures in by_name.items():
        shown.add_row(escape(name), *figures)
    return shown


def _data_of(result: Bench, data: Path | None) -> Iterator[str]:
    """Say which engines were not fed the images, and which have no accuracy, of those that were to have it."""
    fed = result.settings.get("fed", {})
    if noise := [name for name, what in fed.items() if what == "noise"]:
        yield f"{', '.join(noise)}: timed on noise, as nothing says how images are prepared."
    first = result.records[: len(fed)]
    if data is not None and (without := [record.name for record in first if record.accuracy is None]):
        yield f"{', '.join(without)}: no accuracy, as {plain(data)} has no folder called as one of its classes."


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
    if (parts := record.transfers) is not None:
        copied = f"{parts.in_ms:.3f} ms to copy in, {parts.out_ms:.3f} ms to copy out"
        yield f"{record.name}: {parts.network_ms:.3f} ms for the network, {copied}."
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
    from deploy.engines.cores import over_cores

    noisy = [r.conditions for r in result.records if r.conditions and r.conditions.noise()]
    said = []
    if noisy:  # of several sittings the busiest one is told
        worst = max(noisy, key=lambda one: one.load or 0.0)
        said = [f"The machine was noisy ({worst.noise()}): trust best times more than medians, and measure again."]
    unsettled = [record.name for record in result.records if record.steady is False]
    if unsettled:
        said.append(f"The times of {', '.join(unsettled)} were still falling when the warm-up ended.")
    crowded = over_cores(int(result.settings.get("threads", 1)))
    return said if crowded is None else [*said, crowded]


def _machine(result: Bench) -> str:
    threads = result.settings.get("threads")
    return f"{result.machine.get('cpu', 'unknown CPU')}, {threads} thread(s); ms and shares of the first"
