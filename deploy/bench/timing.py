"""Time engines in turn, so that whatever disturbs the machine disturbs them all alike."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np

from deploy.bench.conditions import Watch
from deploy.bench.figures import about, records_of
from deploy.bench.records import Record
from deploy.bench.sitting import Sitting
from deploy.bench.warmup import warm_up
from deploy.engines.base import Engine
from deploy.errors import DeployError

Feeds = Mapping[str, np.ndarray]
_LEAST = {"warmup": 2, "rounds": 2, "runs_per_block": 1}


def benchmark(
    engines: Sequence[Engine],
    inputs: Feeds | Sequence[Feeds],
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

    Each round visits every engine once, in an order drawn anew for each round, and times a block of runs.

    Args:
        engines: open engines with distinct names.
        inputs: what every engine is fed, or what each of them is, in their order, where their inputs differ in name,
            size or type; a scalar among them is fed as it is.
        batch: images of one run; by default the first dimension of the first input that has one.
        reference: the name of the engine that the ratios refer to; by default the first.
        warmup: untimed runs of each engine, at least two; more are made until its times settle.
        rounds: the least number of rounds.
        runs_per_block: timed runs of one engine in one round.
        min_seconds: rounds are added until the timing takes about this long.
        seed: of the orders and of the bootstrap.
        progress: called with (rounds done, rounds in total) after each round.

    Returns:
        One measured record per engine, in the order given.

    Raises:
        DeployError: a setting cannot be used, or an engine returns values that are not finite or that differ
            between runs on the same input.
    """
    names = [engine.name for engine in engines]
    base_name = _check_settings(
        names, reference, {"warmup": warmup, "rounds": rounds, "runs_per_block": runs_per_block}
    )
    sitting = sit(
        engines,
        inputs,
        warmup=warmup,
        rounds=rounds,
        runs_per_block=runs_per_block,
        min_seconds=min_seconds,
        seed=seed,
        progress=progress,
    )
    rows = batch or _rows(_feeds_of(engines, inputs)[0])
    return records_of([about(engine) for engine in engines], [sitting], reference=base_name, batch=rows, seed=seed)


def sit(
    engines: Sequence[Engine],
    inputs: Feeds | Sequence[Feeds],
    *,
    warmup: int = 20,
    rounds: int = 50,
    runs_per_block: int = 5,
    min_seconds: float = 1.0,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Sitting:
    """Warm up and time ``engines`` in this process; see ``benchmark``.

    Raises:
        DeployError: the inputs have no batch, or an engine cannot be timed.
    """
    feeds = _feeds_of(engines, inputs)
    watch = Watch()
    warm = tuple(warm_up(engine, one, warmup) for engine, one in zip(engines, feeds, strict=True))
    round_seconds = sum(one.seconds for one in warm) * runs_per_block
    total = max(rounds, math.ceil(min_seconds / max(round_seconds, 1e-9)))
    times = _time_rounds(engines, feeds, _orders(len(engines), total, seed), runs_per_block, progress)
    return Sitting(times, warm, watch.conditions())


def _feeds_of(engines: Sequence[Engine], inputs: Feeds | Sequence[Feeds]) -> list[Feeds]:
    """Return what each engine is fed; refuse another number of feeds, or an empty one."""
    feeds = [inputs] * len(engines) if isinstance(inputs, Mapping) else list(inputs)
    if len(feeds) != len(engines):
        raise DeployError(f"There are inputs for {len(feeds)} engines and {len(engines)} to time; give one for each.")
    if not all(feeds):
        raise DeployError("An engine is fed nothing; feed every input of it.")
    return feeds


def _rows(feed: Feeds) -> int:
    """Return the first dimension of the first input that has one: a scalar has none."""
    return next((int(value.shape[0]) for value in feed.values() if value.ndim), 1)


def _orders(engines: int, rounds: int, seed: int) -> np.ndarray:
    """Return the order of the engines in each round, (rounds, engines), at random: no engine always follows one."""
    rng = np.random.default_rng(seed)
    return rng.permuted(np.tile(np.arange(engines), (rounds, 1)), axis=1)


def _time_rounds(
    engines: Sequence[Engine],
    feeds: Sequence[Feeds],
    orders: np.ndarray,
    runs_per_block: int,
    progress: Callable[[int, int], None] | None,
) -> np.ndarray:
    """Return the milliseconds of every run, (engines, rounds, runs in a block)."""
    total = len(orders)
    times = np.empty((len(engines), total, runs_per_block))
    with _no_garbage_collection():
        for index, order in enumerate(orders.tolist()):
            for turn in order:
                run, inputs = engines[turn].run, feeds[turn]
                for block in range(runs_per_block):
                    start = time.perf_counter_ns()
                    run(inputs)
                    times[turn, index, block] = (time.perf_counter_ns() - start) / 1e6
            # Nothing is timed between rounds, so drawing a progress bar here falsifies no figure.
            if progress is not None:
                progress(index + 1, total)
    return times


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
