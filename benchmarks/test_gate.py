"""The gate as a benchmark: a finished run's engines, timed again in turns, held against the committed baseline."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

import deploy
from deploy.bench.records import Bench
from deploy.bench.tolerances import Tolerances
from deploy.engines import Engine, load_engine

BASELINE = Path(__file__).parent / "baselines/digits.json"
FILES = {
    "dense": "teacher.fp32",
    "pruned": "pruned.fp32",
    "distilled": "student.fp32",
    "distilled-fp16": "student.fp16",
    "int8": "student.int8",
}


def latency_tolerance() -> float:
    """How much larger a ratio may be: processors differ by a third, without instructions for int8 by another."""
    told = Path("/proc/cpuinfo")
    flags = told.read_text(encoding="utf-8") if told.is_file() else ""
    return 0.6 if "_vnni" in flags else 1.0


@pytest.fixture(scope="module")
def run_folder() -> Path:
    folder = Path(os.environ.get("NIWAKI_RUN", "runs/digits"))
    if not (folder / "bench.json").is_file():
        pytest.skip(f"no finished run in {folder}: niwaki run recipes/digits.yaml, or name one by NIWAKI_RUN")
    return folder


@pytest.fixture
def engines(run_folder: Path) -> Iterator[dict[str, Engine]]:
    with ExitStack() as stack:
        opened = {}
        for name, stem in FILES.items():
            opened[name] = stack.enter_context(load_engine(run_folder / "deploy" / f"{stem}.onnx", threads=1))
            opened[name].name = name
        yield opened


@pytest.fixture
def image(engines: dict[str, Engine]) -> dict[str, np.ndarray]:
    ((name, spec),) = engines["dense"].inputs.items()
    shape = [size or 1 for size in spec.shape]
    return {name: np.random.default_rng(0).standard_normal(shape).astype(np.float32)}


def test_gate_against_the_baseline(run_folder, engines, image, benchmark):
    """Latency is measured here and now, as a ratio to dense; accuracy is what the run measured."""
    measured = Bench.from_file(run_folder / "bench.json")
    kept = ("accuracy", "held", "parity")
    told = {record.name: {key: getattr(record, key) for key in kept} for record in measured.records}
    timed = deploy.benchmark(list(engines.values()), image, reference="dense", rounds=100)
    records = tuple(record.model_copy(update=told[record.name]) for record in timed)
    baseline = Bench.from_file(BASELINE)
    # The baseline also tells of engines for graphics cards, which nothing here can run.
    timed_here = tuple(record for record in baseline.records if record.name in FILES)
    result = deploy.gate(
        measured.model_copy(update={"records": records}),
        baseline.model_copy(update={"records": timed_here}),
        tolerances=Tolerances(
            latency=latency_tolerance(),
            accuracy=0.02,
            size=3.0,
            parity=20.0,
            allow=frozenset({"absolute", "tail", "interval"}),
        ),
    )
    benchmark.extra_info["ratio_to_dense"] = {record.name: record.ratio_to_dense for record in records}
    benchmark(engines["int8"].run, image)
    assert result.passed, [line for line in result.lines if not line.ok]
    slower = [r.name for r in records if r.name in ("distilled", "int8") and r.ratio_interval[1] >= 1]
    assert not slower, "the student is not faster than its teacher"
