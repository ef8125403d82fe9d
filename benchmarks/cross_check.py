"""Hold the times of ``niwaki bench`` against those of others' tools, on the same file and with the same settings.

``python -m benchmarks.cross_check [FILE.onnx ...]`` times each file, or a chain of convolutions where none is named,
with one thread and a batch of one, in turns with OpenVINO's ``benchmark_app`` and with ONNX Runtime's own profiling,
and prints the ratios of best times and of medians, ours by theirs, as a table.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from benchmarks.chain import chain
from deploy.bench.noise import noise
from deploy.bench.timing import sit
from deploy.engines import load_engine

TURNS = 3
_APP = "import sys; from openvino.tools.benchmark.main import main; sys.exit(main())"
_SAID = re.compile(r"(Median|Min):\s+([0-9.]+) (ms|us)")


@dataclass(frozen=True)
class Compared:
    """Best times and medians in milliseconds, ours and another tool's.

    Attributes:
        tool: the other one.
        best: of all turns, ours and theirs.
        median: of the turn in which each was lowest.
        spread: by how much the second best turn was slower than the best, relatively, of the tool where that is more.
    """

    tool: str
    best: tuple[float, float]
    median: tuple[float, float]
    spread: float

    @property
    def by_best(self) -> float:
        """Our best time by theirs."""
        return self.best[0] / self.best[1]

    @property
    def by_median(self) -> float:
        """Our median by theirs."""
        return self.median[0] / self.median[1]


def compare(path: Path, tool: str, *, seconds: float = 2.0, turns: int = TURNS) -> Compared:
    """Time ``path`` in turns by us and by one of ``TOOLS``.

    Args:
        path: an ONNX file whose sizes are fixed but for the batch.
        tool: a key of ``TOOLS``.
        seconds: of one turn of one tool.
        turns: of each; the best count, as whatever disturbs a turn only makes it slower.
    """
    runtime, theirs = TOOLS[tool]
    taken = np.asarray([(ours(path, runtime, seconds), theirs(path, seconds)) for _ in range(turns)])
    bests = np.sort(taken[:, :, 0], axis=0)
    spread = float((bests[min(1, turns - 1)] / bests[0]).max() - 1)
    best, median = taken.min(axis=0).T
    return Compared(tool, (float(best[0]), float(best[1])), (float(median[0]), float(median[1])), spread)


def ours(path: Path, runtime: str, seconds: float) -> tuple[float, float]:
    """Return the best time and the median of ``niwaki bench``, in milliseconds."""
    with load_engine(path, threads=1, runtime=runtime) as engine:
        feeds, _ = noise(engine.inputs, str(path), 1)
        times = sit([engine], feeds, rounds=2, min_seconds=seconds).times
    return float(times.min()), float(np.median(times))


def benchmark_app(path: Path, seconds: float) -> tuple[float, float]:
    """Return the shortest time and the median that OpenVINO's ``benchmark_app`` tells, in milliseconds.

    It runs one request after the other (``-api sync``), with the precision that ours is computed in.
    """
    with load_engine(path, threads=1, runtime="openvino") as engine:
        feeds, _ = noise(engine.inputs, str(path), 1)
    shapes = ",".join(f"{name}[{','.join(map(str, value.shape))}]" for name, value in feeds.items())
    options = ["-m", path, "-d", "CPU", "-api", "sync", "-hint", "none", "-nstreams", "1", "-nthreads", "1"]
    options += ["-infer_precision", "f32", "-shape", shapes, "-t", max(1, round(seconds))]
    done = subprocess.run([sys.executable, "-c", _APP, *map(str, options)], capture_output=True, text=True, check=False)
    # Below a millisecond it tells microseconds.
    said = {name: float(value) / (1e3 if unit == "us" else 1) for name, value, unit in _SAID.findall(done.stdout)}
    if done.returncode or said.keys() < {"Median", "Min"}:
        raise SystemExit(f"benchmark_app ended with {done.returncode}: {(done.stdout + done.stderr)[-600:]}")
    return said["Min"], said["Median"]


def profile(path: Path, seconds: float) -> tuple[float, float]:
    """Return the shortest time and the median of a run by ONNX Runtime's own profile, in milliseconds.

    The profile counts each node too, which takes a microsecond or two for each.
    """
    import onnxruntime as ort

    with load_engine(path, threads=1, runtime="onnxruntime") as engine:
        feeds, _ = noise(engine.inputs, str(path), 1)
        runs = sit([engine], feeds, rounds=2, min_seconds=0.1).times
    count = max(20, round(1e3 * seconds / float(np.median(runs))))
    with TemporaryDirectory(prefix="niwaki-profile-") as folder:
        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        # A profile keeps a million events and drops the rest.
        for _ in range(min(count, 5000)):
            session.run(None, feeds)
        events = json.loads(Path(session.end_profiling()).read_text("utf-8"))
    times = [event["dur"] / 1e3 for event in events if event.get("name") == "model_run"]
    warm = np.asarray(times[len(times) // 10 :])
    return float(warm.min()), float(np.median(warm))


TOOLS: dict[str, tuple[str, Callable[[Path, float], tuple[float, float]]]] = {
    "benchmark_app": ("openvino", benchmark_app),
    "ONNX Runtime's profile": ("onnxruntime", profile),
}
"""Name -> the runtime that both run on, and what times a file for so many seconds: best time and median in ms."""


def make_network(path: Path, *, side: int = 64, width: int = 32) -> Path:
    """Write six convolutions and a mean over their pixels, a few milliseconds of one core."""
    import onnx
    from onnx import TensorProto, helper

    nodes, constants, last = chain(np.random.default_rng(0), width)
    nodes.append(helper.make_node("GlobalAveragePool", [last], ["y"]))
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, side, side])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", width, 1, 1])
    graph = helper.make_graph(nodes, "chain", [x], [y], constants)
    onnx.save(helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 18)]), path)
    return path


def table(found: dict[str, list[Compared]]) -> str:
    """Return what was compared as a table in Markdown."""
    lines = ["| file | tool | best, ours | theirs | ratio | median, ours | theirs | ratio |"]
    lines.append("| --- | --- " + "| ---: " * 6 + "|")
    for name, rows in found.items():
        for row in rows:
            figures = (*row.best, row.by_best, *row.median, row.by_median)
            lines.append(f"| {name} | {row.tool} | " + " | ".join(f"{value:.3f}" for value in figures) + " |")
    return "\n".join(lines)


def main() -> None:
    """Compare the files that are named and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each turn")
    parser.add_argument("--turns", type=int, default=TURNS)
    given = parser.parse_args()
    with TemporaryDirectory(prefix="niwaki-cross-") as folder:
        files = given.files or [make_network(Path(folder) / "chain.onnx")]
        found = {
            one.name: [compare(one, tool, seconds=given.seconds, turns=given.turns) for tool in TOOLS] for one in files
        }
        print(table(found))


if __name__ == "__main__":
    main()
