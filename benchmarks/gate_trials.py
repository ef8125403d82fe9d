"""Try the gate against itself: the same engines timed again must pass, engines slowed down by 10 % must fail.

``python -m benchmarks.gate_trials --sittings 320`` times, in as many fresh processes, two files on ONNX Runtime and
one on OpenVINO, and the same two engines once more, each held up by 10 % of its best time. Then the gate judges: each
sitting against the one before it, with the following ones where it wants a measurement repeated. An engine that was
not held up and fails is a false alarm; one that was held up and passes is missed. What was timed is kept in --store,
so that the gate can judge it again after a change (--judge).
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import time
from functools import cache
from pathlib import Path

import numpy as np

from benchmarks.chain import chain
from deploy.bench.again import gate_again
from deploy.bench.conditions import Conditions
from deploy.bench.figures import About, records_of
from deploy.bench.gate import gate
from deploy.bench.records import Bench
from deploy.bench.sitting import Sitting
from deploy.bench.timing import sit
from deploy.bench.warmup import Warm
from deploy.engines import Engine, load_engine

SLOWED = 0.10
REFERENCE = "dense"
PLAIN = {"dense": ("dense", "onnxruntime"), "small": ("small", "onnxruntime"), "openvino": ("small", "openvino")}


class Slowed(Engine):
    """An engine that spins for a fixed time after each run."""

    def __init__(self, engine: Engine, seconds: float) -> None:
        self.engine, self.nanoseconds = engine, round(1e9 * seconds)
        self.name, self.runtime, self.precision = f"{engine.name}, slowed", engine.runtime, engine.precision
        self.inputs, self.outputs, self.path = engine.inputs, engine.outputs, engine.path

    def _run(self, feeds):
        found = self.engine.run(feeds)
        end = time.perf_counter_ns() + self.nanoseconds
        while time.perf_counter_ns() < end:
            pass
        return found

    def close(self) -> None:
        self.engine.close()


def make_networks(folder: Path) -> None:
    """Write two chains of convolutions, one of 24 and one of 16 channels."""
    import onnx
    from onnx import TensorProto, helper

    rng = np.random.default_rng(0)
    for name, width in (("dense", 24), ("small", 16)):
        nodes, constants, last = chain(rng, width)
        x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 24, 24])
        y = helper.make_tensor_value_info(last, TensorProto.FLOAT, ["n", width, 24, 24])
        graph = helper.make_graph(nodes, name, [x], [y], constants)
        model = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 18)])
        onnx.save(model, folder / f"{name}.onnx")


def time_once(folder: Path, best: dict[str, float], seed: int, out: Path) -> None:
    """Time all five engines in this process and write the times to ``out``."""
    # Where things lie in memory differs from process to process; after a fork it would not.
    ballast = [np.ones(size, np.uint8) for size in np.random.default_rng(seed).integers(1, 1 << 20, 64)]
    engines = []
    for name, (file, runtime) in PLAIN.items():
        engines.append(load_engine(folder / f"{file}.onnx", threads=1, runtime=runtime))
        engines[-1].name = name
    slowed = [Slowed(engine, SLOWED * best.get(engine.name, 0.0)) for engine in engines[1:]]
    feeds = {"x": np.random.default_rng(0).standard_normal((1, 3, 24, 24)).astype(np.float32)}
    found = sit([*engines, *slowed], feeds, rounds=50, min_seconds=0.4, seed=seed)
    runs = [one.runs for one in found.warm]
    np.savez(out, times=found.times.astype(np.float32), warm=runs, conditions=found.conditions.model_dump_json())
    del ballast


def collect(store: Path, sittings: int) -> None:
    """Time until ``store`` holds ``sittings`` files; each in a process of its own, forked before any engine is made."""
    import onnxruntime  # noqa: F401  (the processes share what is imported here)
    import openvino  # noqa: F401

    store.mkdir(parents=True, exist_ok=True)
    if not (store / "dense.onnx").exists():
        make_networks(store)
    for index in range(sittings):
        out = store / f"{index:04d}.npz"
        if out.exists():
            continue
        known = store / "best.json"
        best = json.loads(known.read_text()) if known.exists() else {}
        child = os.fork()
        if child == 0:
            status = 1
            try:
                time_once(store, best, index, out)
                status = 0
            finally:
                os._exit(status)
        _, status = os.waitpid(child, 0)
        if status:
            raise SystemExit(f"sitting {index} ended with {status}")
        if not best:
            # The first sitting tells how long a run takes at best, and is not judged.
            names = list(PLAIN)
            times = np.load(out)["times"]
            known.write_text(json.dumps({name: float(times[i].min()) / 1e3 for i, name in enumerate(names)}))
            out.unlink()
            collect(store, sittings)
            return


@cache
def bench_of(path: Path, chosen: tuple[int, ...]) -> Bench:
    """Return the record of one sitting, of the engines at ``chosen`` among the five, under the plain names."""
    stored = np.load(path)
    warm = tuple(Warm(int(stored["warm"][index]), 0.0, True) for index in chosen)
    conditions = Conditions.model_validate_json(str(stored["conditions"]))
    sitting = Sitting(stored["times"][list(chosen)].astype(float), warm, conditions)
    engines = [About(name, runtime, "fp32") for name, (_, runtime) in PLAIN.items()]
    records = records_of(engines, [sitting], reference=REFERENCE, batch=1)
    return Bench(name="trial", settings={"threads": 1}, records=tuple(records))


# What is judged: the five engines are dense, small, openvino, and the last two slowed down.
CASES = {"unchanged": (0, 1, 2), "small slowed": (0, 3, 2), "openvino slowed": (0, 1, 4)}


def judge(store: Path, tolerance: float, back: int) -> dict[str, object]:
    """Judge each sitting against the ``back``-th before it: how often each case failed, and after how many repeats."""
    paths = sorted(store.glob("[0-9]*.npz"))
    failed = dict.fromkeys(CASES, 0)
    repeats = dict.fromkeys(CASES, 0)
    why: list[str] = []
    first: dict[str, int] = dict.fromkeys(CASES, 0)
    loads, shares = [], []
    for place in range(back, len(paths)):
        past = bench_of(paths[place - back], CASES["unchanged"])
        for case, chosen in CASES.items():
            later = itertools.chain(range(place + 1, len(paths)), range(place - back))
            again = (bench_of(paths[index], chosen) for index in later)
            now = bench_of(paths[place], chosen)
            found = gate_again(now, lambda b, past=past: gate(b, past, latency_tolerance=tolerance), again.__next__)
            failed[case] += not found.passed
            repeats[case] += found.repeats
            first[case] += found.repeats > 0
            if case == "unchanged":
                why += [f"sitting {place}: {line.name} {line.what} {line.value}" for line in found.failed()]
        conditions = bench_of(paths[place], (0, 1, 2)).records[0].conditions
        loads.append(conditions.load)
        shares.append(conditions.processor_share)
    trials = len(paths) - back
    return {
        "trials": trials,
        "tolerance": tolerance,
        "failed": failed,
        "doubted at first": first,
        "repeats": repeats,
        "false alarms": why,
        "95 % bound of false alarms": upper_bound(failed["unchanged"], trials),
        "load": [round(float(np.percentile(loads, q)), 1) for q in (5, 50, 95)],
        "share of the processor": [round(float(np.percentile(shares, q)), 2) for q in (5, 50, 95)],
    }


def upper_bound(events: int, trials: int) -> float:
    """Return the upper end of the 95 % interval of a share (Clopper and Pearson, 1934), one-sided."""
    from scipy.stats import beta

    return float(beta.ppf(0.95, events + 1, trials - events)) if events < trials else 1.0


def main() -> None:
    """Collect sittings, then judge them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sittings", type=int, default=320)
    parser.add_argument("--store", type=Path, default=Path("runs/gate_trials"))
    parser.add_argument("--tolerance", type=float, default=0.05)
    parser.add_argument("--back", type=int, default=1, help="hold each sitting to this one before it")
    parser.add_argument("--judge", action="store_true", help="judge what the store holds; time nothing")
    given = parser.parse_args()
    if not given.judge:
        collect(given.store, given.sittings)
    print(json.dumps(judge(given.store, given.tolerance, given.back), indent=1))


if __name__ == "__main__":
    main()
