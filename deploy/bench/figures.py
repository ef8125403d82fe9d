"""Turn the times of one or several sittings into records: medians, best times, ratios and their intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from deploy.bench.records import Record
from deploy.bench.sitting import Sitting
from deploy.engines.base import Engine
from deploy.files import sha256
from deploy.onnx.structure import structure_of
from deploy.onnx.wire import bytes_on_disk, scan

_MAX_RESAMPLES = 2000
# A network that takes microseconds is timed for tens of thousands of rounds: it is resampled less often.
_MIN_RESAMPLES = 200
_MAX_DRAWS = 4_000_000
_AT_ONCE = 500_000  # numbers that are held in memory
_BLOCKS = 25  # of neighbouring rounds: what disturbs one round often disturbs the next
_SECTIONS = 10


@dataclass(frozen=True)
class About:
    """What a record says of its engine besides times; see ``Record``."""

    name: str
    runtime: str
    precision: str
    file_bytes: int | None = None
    sha256: str | None = None
    structure: str | None = None
    kernels: str | None = None


def about(engine: Engine) -> About:
    """Return what a record says of ``engine``; its file is read for its hashes."""
    file = engine.path if engine.path is not None and engine.path.is_file() else None
    if file is None:
        return About(engine.name, engine.runtime, engine.precision, kernels=engine.kernels)
    is_onnx = file.suffix == ".onnx"
    return About(
        engine.name,
        engine.runtime,
        engine.precision,
        bytes_on_disk(file, scan(file).outside if is_onnx else {}),
        sha256(file),
        structure_of(file) if is_onnx else None,
        engine.kernels,
    )


def records_of(
    engines: Sequence[About], sittings: Sequence[Sitting], *, reference: str, batch: int, seed: int = 0
) -> list[Record]:
    """Return a record for each engine.

    Best times are taken over all sittings. Medians and percentiles are those of the sitting in which the engine did
    best against the reference: one process in some twenty lays its memory out so that an engine is half as slow again.

    Args:
        engines: in the order of the sittings' times.
        sittings: of one or several processes.
        reference: the name of the engine that the ratios refer to.
        batch: of the inputs.
        seed: of the bootstrap.
    """
    base = [engine.name for engine in engines].index(reference)
    return [_record(engine, index, base, sittings, reference, batch, seed) for index, engine in enumerate(engines)]


def ratio_of_medians(times: np.ndarray, base: np.ndarray, seed: int) -> tuple[float, tuple[float, float]]:
    """Return the ratio of the medians over rounds, and its 95 % interval from a bootstrap of blocks (Künsch, 1989).

    Args:
        times: milliseconds of one engine, (rounds, runs).
        base: milliseconds of the reference in the same rounds, (rounds, runs).
        seed: of the bootstrap, which draws blocks of neighbouring rounds: what disturbed both engines at once stays
            paired, and what lasted for several rounds stays together.
    """
    ours, theirs = np.median(times, axis=1), np.median(base, axis=1)
    rng = np.random.default_rng(seed)
    rounds = len(ours)
    length = max(1, rounds // _BLOCKS)
    blocks = -(-rounds // length)
    draws = min(_MAX_RESAMPLES, max(_MIN_RESAMPLES, _MAX_DRAWS // rounds))
    at_once = max(1, _AT_ONCE // rounds)
    ratios = np.empty(draws)
    for begin in range(0, draws, at_once):
        count = min(at_once, draws - begin)
        starts = rng.integers(0, rounds - length + 1, (count, blocks))
        drawn = (starts[:, :, None] + np.arange(length)).reshape(count, -1)[:, :rounds]
        ratios[begin : begin + count] = np.median(ours[drawn], axis=1) / np.median(theirs[drawn], axis=1)
    ratio = float(np.median(ours) / np.median(theirs))
    low, high = np.percentile(ratios, (2.5, 97.5))
    return ratio, (min(float(low), ratio), max(float(high), ratio))


def ratio_of_best(
    times: Sequence[np.ndarray], base: Sequence[np.ndarray], seed: int
) -> tuple[float, tuple[float, float]]:
    """Return the ratio of the best times of all sittings, and its 95 % interval from thirds of the data.

    A bootstrap says nothing of a minimum, which every second draw repeats; so each sitting is cut into sections, and
    the ratio is taken anew from a third of them at a time (Politis and Romano, 1994). The interval is that of a third
    as much data: rather too wide than too narrow.

    Args:
        times: milliseconds of one engine, (rounds, runs) for each sitting.
        base: milliseconds of the reference in the same rounds.
        seed: of the draws.
    """
    ours, theirs = _section_bests(times), _section_bests(base)
    ratio = float(ours.min() / theirs.min())
    rng = np.random.default_rng(seed)
    third = max(1, len(ours) // 3)
    drawn = np.argsort(rng.random((_MIN_RESAMPLES, len(ours))), axis=1)[:, :third]
    low, high = np.percentile(ours[drawn].min(axis=1) / theirs[drawn].min(axis=1), (2.5, 97.5))
    return ratio, (min(float(low), ratio), max(float(high), ratio))


def _section_bests(times: Sequence[np.ndarray]) -> np.ndarray:
    sections = [part for one in times for part in np.array_split(one, min(_SECTIONS, len(one)))]
    return np.asarray([part.min() for part in sections])


def _record(
    engine: About, index: int, base: int, sittings: Sequence[Sitting], reference: str, batch: int, seed: int
) -> Record:
    mine, theirs = [one.times[index] for one in sittings], [one.times[base] for one in sittings]
    shares = [float(np.median(np.median(a, 1)) / np.median(np.median(b, 1))) for a, b in zip(mine, theirs, strict=True)]
    # Of the reference itself all shares are 1: its sitting is the fastest.
    chosen = int(np.argmin([np.median(a) for a in mine] if index == base else shares))
    ratio, interval = ratio_of_medians(mine[chosen], theirs[chosen], seed)
    best, best_interval = ratio_of_best(mine, theirs, seed)
    flat = mine[chosen].reshape(-1)
    median, p90, p99 = np.percentile(flat, (50, 90, 99))
    bests = [float(a.min() / b.min()) for a, b in zip(mine, theirs, strict=True)]
    return Record(
        name=engine.name,
        model=engine.name.removesuffix(f".{engine.precision}"),
        runtime=engine.runtime,
        precision=engine.precision,
        batch=batch,
        status="measured",
        reference=reference,
        warmup=sittings[chosen].warm[index].runs,
        steady=all(one.warm[index].steady for one in sittings),
        repeats=flat.size,
        mean_ms=float(flat.mean()),
        median_ms=float(median),
        p90_ms=float(p90),
        p99_ms=float(p99),
        min_ms=min(float(one.min()) for one in mine),
        ratio_to_dense=ratio,
        ratio_interval=interval,
        ratio_of_best=best,
        best_interval=best_interval,
        by_sitting=tuple(zip(bests, shares, strict=True)),
        speedup=min(1 / ratio, 1 / best),
        throughput=batch * 1000 / float(median),
        file_bytes=engine.file_bytes,
        sha256=engine.sha256,
        structure=engine.structure,
        kernels=engine.kernels,
        conditions=sittings[chosen].conditions,
    )
