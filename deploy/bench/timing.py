"""Time engines in turn, so that whatever disturbs the machine disturbs them all alike."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np

from deploy.bench.records import Record
from deploy.engines.base import Engine
from deploy.errors import DeployError
from deploy.files import sha256

_LEAST = {"warmup": 2, "rounds": 2, "runs_per_block": 1}
_MAX_RESAMPLES = 2000
# A network that takes microseconds is timed for tens of thousands of rounds: it is resampled less often.
_MIN_RESAMPLES = 200
_MAX_DRAWS = 4_000_000


def benchmark(
    engines: Sequence[Engine],
    inputs: Mapping[str, np.ndarray] | Sequence[Mapping[str, np.ndarray]],
    *,
    batch: int | None = None,
    reference: str | None = None,
    warmup: int = 20,
    rounds: int = 50,
    runs_per_block: int = 5,
    min_seconds: float = 1.0,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> list[Record]:
    """Time ``engines`` on ``inputs`` in turn and compare each with the reference.

    Each round visits every engine once, in an order that rotates from round to round, and times a block of runs.

    Args:
        engines: open engines with distinct names.
        inputs: what every engine is fed, or a mapping for each of them where their inputs differ in name, size or type.
        batch: images of one run; by default the first dimension of the first input that has one.
        reference: the name of the engine that the ratios refer to; by default the first.
        warmup: untimed runs of each engine, at least two.
        rounds: the least number of rounds.
        runs_per_block: timed runs of one engine in one round.
        min_seconds: rounds are added until the timing takes about this long.
        seed: of the bootstrap.
        progress: called with (rounds done, rounds in total) after each round.

    Returns:
        One measured record per engine, in the order given.

    Raises:
        DeployError: a setting cannot be used, or an engine returns values that are not finite or that differ
            between runs on the same input.
    """
    feeds = [inputs] * len(engines) if isinstance(inputs, Mapping) else list(inputs)
    if len(feeds) != len(engines):
        raise DeployError(
            f"There are {len(engines)} engines and {len(feeds)} sets of inputs; give each its own, or one."
        )
    names = [engine.name for engine in engines]
    base_name = _check_settings(
        names, reference, {"warmup": warmup, "rounds": rounds, "runs_per_block": runs_per_block}
    )
    warmed = (_warm_up(engine, feed, warmup) for engine, feed in zip(engines, feeds, strict=True))
    round_seconds = sum(warmed) * runs_per_block
    total = max(rounds, math.ceil(min_seconds / max(round_seconds, 1e-9)))
    times = _time_rounds(engines, feeds, total, runs_per_block, progress)
    rows = batch or next((value.shape[0] for value in feeds[0].values() if value.ndim), 1)
    base = times[names.index(base_name)]
    return [
        _record(engine, figures, base, batch=rows, reference=base_name, warmup=warmup, seed=seed)
        for engine, figures in zip(engines, times, strict=True)
    ]


def _time_rounds(
    engines: Sequence[Engine],
    feeds: Sequence[Mapping[str, np.ndarray]],
    total: int,
    runs_per_block: int,
    progress: Callable[[int, int], None] | None,
) -> np.ndarray:
    """Return the milliseconds of every run, (engines, rounds, runs in a block)."""
    times = np.empty((len(engines), total, runs_per_block))
    with _no_garbage_collection():
        for index in range(total):
            for step in range(len(engines)):
                turn = (index + step) % len(engines)
                run, inputs = engines[turn].run, feeds[turn]
                for block in range(runs_per_block):
                    start = time.perf_counter_ns()
                    run(inputs)
                    times[turn, index, block] = (time.perf_counter_ns() - start) / 1e6
            # Nothing is timed between rounds, so drawing a progress bar here falsifies no figure.
            if progress is not None:
                progress(index + 1, total)
    return times


def ratio_of_medians(times: np.ndarray, base: np.ndarray, seed: int) -> tuple[float, tuple[float, float]]:
    """Return the ratio of the medians over rounds, and its 95 % bootstrap interval (Efron, 1979).

    Args:
        times: milliseconds of one engine, (rounds, runs).
        base: milliseconds of the reference in the same rounds, (rounds, runs).
        seed: of the bootstrap, which draws whole rounds: what disturbed both engines at once stays paired.
    """
    ours, theirs = np.median(times, axis=1), np.median(base, axis=1)
    rng = np.random.default_rng(seed)
    draws = min(_MAX_RESAMPLES, max(_MIN_RESAMPLES, _MAX_DRAWS // len(ours)))
    drawn = (rng.integers(0, len(ours), len(ours)) for _ in range(draws))
    ratios = [np.median(ours[rounds]) / np.median(theirs[rounds]) for rounds in drawn]
    low, high = np.percentile(ratios, (2.5, 97.5))
    return float(np.median(ours) / np.median(theirs)), (float(low), float(high))


def _record(
    engine: Engine, times: np.ndarray, base: np.ndarray, *, batch: int, reference: str, warmup: int, seed: int
) -> Record:
    ratio, interval = ratio_of_medians(times, base, seed)
    flat = times.reshape(-1)
    median, p90, p99 = np.percentile(flat, (50, 90, 99))
    file = engine.path if engine.path is not None and engine.path.is_file() else None
    return Record(
        name=engine.name,
        model=engine.name.removesuffix(f".{engine.precision}"),
        runtime=engine.runtime,
        precision=engine.precision,
        batch=batch,
        status="measured",
        reference=reference,
        warmup=warmup,
        repeats=flat.size,
        mean_ms=float(flat.mean()),
        median_ms=float(median),
        p90_ms=float(p90),
        p99_ms=float(p99),
        min_ms=float(flat.min()),
        ratio_to_dense=ratio,
        ratio_interval=interval,
        speedup=1 / ratio,
        file_bytes=file.stat().st_size if file else None,
        sha256=sha256(file) if file else None,
        kernels=engine.kernels,
    )


def _check_settings(names: list[str], reference: str | None, counts: Mapping[str, int]) -> str:
    """Return the name of the reference; refuse settings that cannot be used."""
    if not names:
        raise DeployError("There are 0 engines to time; give at least one.")
    if len(set(names)) != len(names):
        raise DeployError(f"Two engines have the same name among {names}; rename one (engine.name = ...).")
    if reference is not None and reference not in names:
        raise DeployError(f"The reference {reference!r} is not among the engines {names}; name one of them.")
    for label, value in counts.items():
        if value < _LEAST[label]:
            raise DeployError(f"{label} is {value}; give {_LEAST[label]} or more.")
    return reference or names[0]


def _warm_up(engine: Engine, inputs: Mapping[str, np.ndarray], runs: int) -> float:
    """Check the outputs, run ``runs`` times, and return the seconds that the last run took."""
    first = engine.run(inputs)
    for key, value in first.items():
        if not np.isfinite(value).all():
            raise DeployError(f"{engine.name} gives NaN or infinity in {key!r}; its times would mean nothing.")
    # The runtime may reuse the memory that holds its first output.
    first = {key: value.copy() for key, value in first.items()}
    seconds = 0.0
    for _ in range(runs - 1):
        start = time.perf_counter()
        again = engine.run(inputs)
        seconds = time.perf_counter() - start
    for key, value in first.items():
        if not np.array_equal(value, again[key]):
            raise DeployError(f"{engine.name} gives other values in {key!r} each time it runs on the same input.")
    return seconds


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
