"""Streams and requests at a rate, on engines that sleep for a known time."""

import threading
import time

import numpy as np
import pytest

from deploy.bench.traffic import open_loop, run_streams
from deploy.engines.base import Engine, TensorSpec
from deploy.errors import DeployError

pytestmark = pytest.mark.heavy

FEED = {"x": np.ones((2, 1), np.float32)}


class Sleeper(Engine):
    """Sleeps ``delay`` seconds for each run, in ``slow`` runs a hundred times as long."""

    name, runtime, precision = "sleeper", "fake", "fp32"

    def __init__(self, delay, slow=(), fails_at=None):
        self.inputs = self.outputs = {"x": TensorSpec("float32", (None, 1))}
        self.delay, self.slow, self.fails_at, self.calls = delay, slow, fails_at, 0

    def _run(self, feeds):
        self.calls += 1
        if self.calls == self.fails_at:
            raise DeployError("the engine broke")
        time.sleep(self.delay * (100 if self.calls in self.slow else 1))
        return dict(feeds)

    def close(self):
        pass


def test_streams_add_up():
    one = run_streams([Sleeper(0.01)], FEED, seconds=0.3)
    three = run_streams([Sleeper(0.01) for _ in range(3)], FEED, seconds=0.3)
    assert one.throughput <= 200.0 and one.median_ms >= 10.0
    assert three.streams == 3
    # Sleeping costs no processor, so three streams do more than one however busy the machine is.
    assert three.throughput > 1.5 * one.throughput


def test_a_request_that_waits_for_a_slow_one_counts_its_waiting():
    """A closed loop would have one slow run in fifty, and so a p90 of 2 ms; here a fifth of a second delays many."""
    found = open_loop([Sleeper(0.002, slow={5})], FEED, rate=100.0, seconds=0.5)
    assert found.requests == 50
    assert found.max_ms >= 200.0
    assert found.p90_ms > 20.0
    assert found.late >= 5
    assert found.median_ms >= 2.0


def test_an_engine_that_cannot_keep_up_is_seen_in_the_rate_and_the_latency():
    found = open_loop([Sleeper(0.02)], FEED, rate=200.0, seconds=0.3)
    assert found.answered <= 50.5
    assert found.max_ms > 500.0


def test_failures_come_out_and_leave_no_thread():
    before = threading.active_count()
    with pytest.raises(DeployError, match="the engine broke"):
        open_loop([Sleeper(0.001, fails_at=5), Sleeper(0.001)], FEED, rate=500.0, seconds=0.1)
    with pytest.raises(DeployError, match="the engine broke"):
        run_streams([Sleeper(0.001, fails_at=1), Sleeper(0.001)], FEED, seconds=0.1)
    assert threading.active_count() == before
    for rate in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(DeployError, match="cannot be timed"):
            open_loop([Sleeper(0.001)], FEED, rate=rate)
    with pytest.raises(DeployError, match="0 streams"):
        run_streams([], FEED)
