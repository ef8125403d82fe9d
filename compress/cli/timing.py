"""Open the engines that ``niwaki bench`` and a gate's repeats name, and time them; nothing here needs torch."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, NamedTuple

import typer

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from deploy.bench.feeding import Fed, Feeding
    from deploy.bench.isolate import Place
    from deploy.bench.records import Bench, Record

_LARGEST_BATCH = 4096
_ON_CPU = ("onnxruntime", "openvino", "torch")


class More(NamedTuple):
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
            raise DeployError(
                f"One run takes {rows} images; only runs of the same number can be compared: give --batch."
            )
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


def with_more(result: Bench, places: Sequence[Place], batch: int, threads: int, more: More) -> Bench:
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


def with_transfers(result: Bench, places: Sequence[Place], threads: int, feeding: Feeding) -> Bench:
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


def with_accuracy(result: Bench, places: Sequence[Place], threads: int, data: Path) -> Bench:
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


def size_of(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    height, _, width = text.lower().partition("x")
    if not (height.isdecimal() and width.isdecimal() and int(height[:9]) > 0 and int(width[:9]) > 0):
        raise typer.BadParameter(f"'{text}' is not a size; give HEIGHTxWIDTH, such as 224x320", param_hint="--size")
    return int(height[:9]), int(width[:9])


def shapes_of(said: list[str]) -> dict[str, tuple[int, ...]]:
    """Return the shapes by the name of their input, "" for one without a name."""
    from deploy.bench.feeding import MOST_PIXELS

    found: dict[str, tuple[int, ...]] = {}
    for one in said:
        name, _, sizes = one.rpartition("=")
        parts = sizes.lower().split("x")
        if name in found or not all(p.isdecimal() and 1 <= int(p[:9]) <= MOST_PIXELS and len(p) < 9 for p in parts):
            wanted = f"give [NAME=]SHAPE of sizes from 1 to {MOST_PIXELS}, such as ids=1x128, once for each input"
            raise typer.BadParameter(f"'{one}' is not a shape; {wanted}", param_hint="--shape")
        found[name] = tuple(map(int, parts))
    return found
