"""Timing on engines whose delays are known, by a clock that only they move, and the record file."""

import gc
import json
import subprocess
import sys
import time

import numpy as np
import pytest

import deploy
from deploy.bench.figures import ratio_of_medians
from deploy.bench.records import Bench, Record
from deploy.bench.timing import benchmark
from deploy.engines.base import Engine, TensorSpec
from deploy.errors import DeployError

pytestmark = pytest.mark.heavy

FEED = {"x": np.ones((3, 2), np.float32)}


class Clock:
    """Stands still unless an engine lets time pass."""

    now_ns = 0

    def perf_counter_ns(self):
        return self.now_ns

    def perf_counter(self):
        return self.now_ns / 1e9


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr("deploy.bench.timing.time", clock)
    monkeypatch.setattr("deploy.bench.warmup.time", clock)
    return clock


class Fake(Engine):
    """Takes ``delay`` seconds, of the clock when one is given, and notes each call in ``calls``."""

    runtime, precision = "fake", "fp32"

    def __init__(self, name, delay=0.0, calls=None, outputs=None, clock=None):
        self.name, self.delay, self.clock = name, delay, clock
        self.calls = calls if calls is not None else []
        self.inputs = {"x": TensorSpec("float32", (None, 2))}
        self.outputs = {"y": TensorSpec("float32", (None, 2))}
        self.values = outputs
        self.gc_on = []

    def _run(self, feeds):
        end = time.perf_counter() + self.delay
        self.calls.append(self.name)
        self.gc_on.append(gc.isenabled())
        if self.clock is not None:
            self.clock.now_ns += round(self.delay * 1e9)
        while self.clock is None and time.perf_counter() < end:
            pass
        return {"y": feeds["x"].copy() if self.values is None else self.values()}

    def close(self):
        pass


def test_known_delays_give_known_ratios(clock):
    slow, fast = Fake("slow.fp32", 0.02, clock=clock), Fake("fast.fp32", 0.01, clock=clock)
    first, second = benchmark([slow, fast], FEED, warmup=2, rounds=20, runs_per_block=2, min_seconds=0)
    assert (first.name, second.name, second.model) == ("slow.fp32", "fast.fp32", "fast")
    assert (first.reference, second.reference) == ("slow.fp32", "slow.fp32")
    assert (first.ratio_to_dense, first.ratio_interval, first.speedup) == (1, (1, 1), 1)
    assert second.ratio_to_dense == pytest.approx(0.5)
    assert second.speedup == pytest.approx(1 / second.ratio_to_dense)
    low, high = second.ratio_interval
    assert low <= second.ratio_to_dense <= high
    assert (second.batch, second.repeats, second.warmup, second.status) == (3, 40, 2, "measured")
    assert 10.0 == second.min_ms <= second.median_ms <= second.p90_ms <= second.p99_ms
    assert second.median_ms == pytest.approx(10.0)


def test_engines_take_turns_in_an_order_that_is_drawn_for_each_round():
    calls = []
    engines = [Fake(name, calls=calls) for name in "abc"]
    benchmark(engines, FEED, warmup=2, rounds=40, runs_per_block=2, min_seconds=0)
    timed = "".join(calls[-240:])
    rounds = [timed[at : at + 6] for at in range(0, 240, 6)]
    assert all(sorted(one[::2]) == ["a", "b", "c"] and one[::2] == one[1::2] for one in rounds)
    assert len(set(rounds)) == 6  # each engine follows each other one, and comes first, in the middle and last


def test_no_garbage_is_collected_while_timing_and_it_is_on_again_after():
    engine = Fake("a")
    assert gc.isenabled()
    benchmark([engine], FEED, warmup=3, rounds=2, min_seconds=0)
    assert gc.isenabled()
    assert engine.gc_on == [True] * 3 + [False] * 10


def test_rounds_are_added_until_the_time_is_reached_and_progress_counts_them(clock):
    seen = []
    (record,) = benchmark(
        [Fake("a", 0.001, clock=clock)],
        FEED,
        rounds=2,
        runs_per_block=5,
        min_seconds=0.1,
        progress=lambda *at: seen.append(at),
    )
    total = record.repeats // 5
    assert total in (20, 21)  # a hundredth of a nanosecond may make one more
    assert seen == [(done, total) for done in range(1, total + 1)]


def test_it_is_real_time_that_is_measured():
    (record,) = benchmark([Fake("a", 0.01)], FEED, warmup=2, rounds=2, runs_per_block=2, min_seconds=0)
    assert 10.0 <= record.min_ms <= 1000.0


def test_any_engine_may_be_the_reference(clock):
    slow, fast = Fake("slow", 0.002, clock=clock), Fake("fast", 0.001, clock=clock)
    records = benchmark([slow, fast], FEED, reference="fast", warmup=2, rounds=10, min_seconds=0)
    assert records[0].ratio_to_dense == pytest.approx(2)
    assert records[1].ratio_to_dense == 1


def test_the_bootstrap_is_seeded_and_keeps_rounds_together():
    rng = np.random.default_rng(0)
    shared = rng.uniform(1, 10, (50, 1))
    times, base = shared * 0.5 * rng.normal(1, 0.01, (50, 5)), shared * rng.normal(1, 0.01, (50, 5))
    ratio, interval = ratio_of_medians(times, base, seed=1)
    assert (ratio, interval) == ratio_of_medians(times, base, seed=1)
    assert interval[0] <= ratio <= interval[1]
    # Rounds slow for both keep the ratio; drawing the engines apart would spread it many times wider.
    assert interval[1] - interval[0] < 0.05


@pytest.mark.parametrize(
    ("engines", "options", "says"),
    [
        ([], {}, "0 engines"),
        ([Fake("a"), Fake("a")], {}, "same name"),
        ([Fake("a")], {"reference": "b"}, "'b' is not among"),
        ([Fake("a")], {"warmup": 1}, "warmup is 1"),
        ([Fake("a")], {"rounds": 0}, "rounds is 0"),
        ([Fake("a")], {"runs_per_block": 0}, "runs_per_block is 0"),
        ([Fake("a", outputs=lambda: np.array([np.nan]))], {}, "NaN or infinity in 'y'"),
        ([Fake("a", outputs=lambda: np.random.default_rng().random(4))], {}, "other values in 'y' each time"),
    ],
)
def test_what_cannot_be_timed_is_one_sentence(engines, options, says):
    with pytest.raises(DeployError, match=says):
        benchmark(engines, FEED, **options)


def test_real_engines_bring_their_files(files, images):
    from deploy.engines import load_engine
    from deploy.files import sha256

    with load_engine(files["fp32"]) as dense, load_engine(files["int8"]) as small:
        records = deploy.benchmark([dense, small], {"image": images[:1]}, rounds=3, min_seconds=0)
    assert [(r.sha256, r.file_bytes) for r in records] == [
        (sha256(files[p]), files[p].stat().st_size) for p in ("fp32", "int8")
    ]
    assert [r.precision for r in records] == ["fp32", "int8"]


def record(**change):
    fields = {
        "name": "a",
        "model": "a",
        "runtime": "r",
        "precision": "fp32",
        "batch": 1,
        "status": "measured",
    }
    return Record(**{**fields, "median_ms": 1.0, "repeats": 3, **change})


def test_a_record_file_reads_back_equal(tmp_path):
    bench = Bench(name="run", settings={"threads": 1}, records=(record(parity=[{"batch": 1, "snr_db": 40.0}]),))
    (tmp_path / "bench.json").write_text(bench.to_json())
    assert Bench.from_file(tmp_path / "bench.json") == bench
    assert bench.format == "niwaki-bench-1"
    assert bench.machine["cores"] >= 1
    assert bench.versions["numpy"] == np.__version__


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda data: data | {"format": "niwaki-bench-9"}, "format: .*'niwaki-bench-9'"),
        (lambda data: data | {"extra": 1}, "extra"),
        (lambda data: data | {"records": data["records"] * 2}, "same name"),
        (lambda data: data | {"records": [data["records"][0] | {"median_ms": None}]}, "has no times"),
        (lambda data: data | {"records": [data["records"][0] | {"status": "built"}]}, "does not say why"),
        (lambda data: data | {"records": [data["records"][0] | {"batch": 0}]}, r"records.0.batch.* not 0"),
        (lambda data: data | {"records": [data["records"][0] | {"median_ms": 0}]}, r"median_ms.* not 0"),
        (lambda data: data | {"records": [data["records"][0] | {"p90_ms": -1.0}]}, r"p90_ms.* not -1"),
        (lambda data: data | {"records": [data["records"][0] | {"accuracy": 97.0}]}, r"accuracy.* not 97"),
        (
            lambda data: data | {"records": [data["records"][0] | {"status": "q\n" * 999}]},
            r"status.* not 'q.{78}\.\.\.\)",
        ),
    ],
)
def test_a_bad_record_file_is_one_sentence(change, says, tmp_path):
    path = tmp_path / "bench.json"
    path.write_text(json.dumps(change(json.loads(Bench(name="run", records=(record(),)).to_json()))))
    with pytest.raises(DeployError, match=says) as caught:
        Bench.from_file(path)
    assert "\n" not in str(caught.value)


def test_a_missing_or_cut_record_file_is_one_sentence(tmp_path):
    with pytest.raises(DeployError, match="No such file"):
        Bench.from_file(tmp_path / "none.json")
    (tmp_path / "cut.json").write_text(Bench(name="run", records=(record(),)).to_json()[:-20])
    with pytest.raises(DeployError, match="Invalid JSON"):
        Bench.from_file(tmp_path / "cut.json")


@pytest.mark.heavy
def test_the_command_times_files_and_bundles_by_the_runtime_that_is_asked_for(bundle_dir, files, tmp_path):
    pytest.importorskip("openvino", reason="the package openvino is not installed")
    command = [sys.executable, "-c", "from compress.cli.app import main; main()", "bench", files["fp32"], bundle_dir]
    out = tmp_path / "bench.json"
    options = ["--runtime", "openvino", "--rounds", "5", "--json", "--out", out]
    done = subprocess.run([*command, *options], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout) == json.loads(out.read_text("utf-8"))
    assert [record["runtime"] for record in json.loads(done.stdout)["records"]] == ["openvino"] * 2
    done = subprocess.run([*command, "--runtime", "abacus"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert "There is no runtime 'abacus'; choose one of" in done.stderr


def test_many_rounds_take_few_draws():
    times = np.random.default_rng(0).random((50_000, 1)) + 1
    start = time.process_time()
    ratio, (low, high) = ratio_of_medians(times, times * 2, seed=0)
    assert ratio == low == high == 0.5
    assert time.process_time() - start < 20
