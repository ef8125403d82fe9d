"""Time an engine under traffic: several streams as fast as they go, and requests that wait for nobody."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt

from deploy.engines.base import Engine
from deploy.errors import DeployError

_Positive = Field(gt=0, le=1e12)


class Streams(BaseModel):
    """What several streams got through together.

    Attributes:
        streams: threads that run an engine of their own, one run after the other.
        throughput: images per second of them all.
        median_ms, p99_ms: of one run.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    streams: PositiveInt
    throughput: float = _Positive
    median_ms: float = _Positive
    p99_ms: float = _Positive


class OpenLoop(BaseModel):
    """Latency where requests come at a fixed rate, from when each was due to when it was answered.

    One that has to wait for the one before it counts its waiting: leaving that out (coordinated omission) flatters an
    engine that cannot keep up.

    Attributes:
        rate: requests per second that came.
        answered: requests per second that were answered.
        streams: how many run at once.
        requests: how many there were.
        median_ms, p90_ms, p99_ms, max_ms: of a request.
        late: how many were begun later than they were due, by more than a run takes.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    rate: float = _Positive
    answered: float = _Positive
    streams: PositiveInt
    requests: PositiveInt
    median_ms: float = _Positive
    p90_ms: float = _Positive
    p99_ms: float = _Positive
    max_ms: float = _Positive
    late: NonNegativeInt


def run_streams(engines: Sequence[Engine], feeds: Mapping[str, np.ndarray], *, seconds: float = 1.0) -> Streams:
    """Run each engine in a thread of its own for about ``seconds``.

    Raises:
        DeployError: there is no engine, or one of them fails.
    """
    if not engines:
        raise DeployError("There are 0 streams to time; give at least one.")
    batch = next(iter(feeds.values())).shape[0]
    taken: list[list[float]] = [[] for _ in engines]
    start = threading.Barrier(len(engines) + 1)

    def work(index: int) -> None:
        engine, mine = engines[index], taken[index]
        engine.run(feeds)
        start.wait()
        end = time.perf_counter() + seconds
        while (begun := time.perf_counter()) < end or not mine:
            engine.run(feeds)
            mine.append(time.perf_counter() - begun)

    began: list[float] = []
    _in_threads(len(engines), work, lambda: began.append(_after(start)), start)
    passed = time.perf_counter() - began[0]
    every = np.concatenate([np.asarray(one) for one in taken]) * 1e3
    median, p99 = np.percentile(every, (50, 99))
    rate = batch * len(every) / passed
    return Streams(streams=len(engines), throughput=rate, median_ms=float(median), p99_ms=float(p99))


def open_loop(
    engines: Sequence[Engine], feeds: Mapping[str, np.ndarray], *, rate: float, seconds: float = 2.0, seed: int = 0
) -> OpenLoop:
    """Answer requests that come at random (a Poisson process of ``rate`` per second) for about ``seconds``.

    Args:
        engines: what answers, each in a thread; a request goes to the first that is free.
        feeds: of one request.
        rate: requests per second.
        seconds: how long they come.
        seed: of when they come.

    Raises:
        DeployError: the rate is no positive number, there is no engine, or one fails.
    """
    if not engines or not rate > 0 or not np.isfinite(rate):
        raise DeployError(f"{len(engines)} streams at {rate} requests per second cannot be timed; give 1 and more.")
    waits = np.random.default_rng(seed).exponential(1 / rate, max(2, round(rate * seconds)))
    due = np.cumsum(waits)
    done, begun = np.zeros(len(due)), np.zeros(len(due))
    lock, start = threading.Lock(), threading.Barrier(len(engines) + 1)
    left = iter(range(len(due)))
    zero: list[float] = []

    def work(index: int) -> None:
        engine = engines[index]
        engine.run(feeds)
        start.wait()
        start.wait()  # until the clock is set
        while True:
            with lock:
                request = next(left, None)
            if request is None:
                return
            if (early := zero[0] + due[request] - time.perf_counter()) > 0:
                time.sleep(early)
            begun[request] = time.perf_counter() - zero[0]
            engine.run(feeds)
            done[request] = time.perf_counter() - zero[0]

    def set_clock() -> None:
        start.wait()
        zero.append(time.perf_counter())
        start.wait()

    _in_threads(len(engines), work, set_clock, start)
    taken = (done - due) * 1e3
    median, p90, p99 = np.percentile(taken, (50, 90, 99))
    late = int((begun - due > np.median(done - begun)).sum())
    return OpenLoop(
        rate=rate,
        answered=len(due) / float(done.max()),
        streams=len(engines),
        requests=len(due),
        median_ms=float(median),
        p90_ms=float(p90),
        p99_ms=float(p99),
        max_ms=float(taken.max()),
        late=late,
    )


def _after(start: threading.Barrier) -> float:
    start.wait()
    return time.perf_counter()


def _in_threads(
    count: int, work: Callable[[int], None], meanwhile: Callable[[], None], start: threading.Barrier
) -> None:
    """Run ``work`` in so many threads and ``meanwhile`` here; the first error of a thread is raised here."""
    errors: list[Exception] = []

    def guarded(index: int) -> None:
        try:
            work(index)
        except Exception as error:  # noqa: BLE001  (raised below, in the thread that asked)
            errors.append(error)
            start.abort()

    threads = [threading.Thread(target=guarded, args=(index,)) for index in range(count)]
    for thread in threads:
        thread.start()
    try:
        meanwhile()
    except threading.BrokenBarrierError:
        pass
    finally:
        for thread in threads:
            thread.join()
    for error in errors:
        if not isinstance(error, threading.BrokenBarrierError):
            raise error
