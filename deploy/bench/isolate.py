"""Time engines in a fresh process: no memory layout, no cache and no thread of this one has a say in it.

``python -m deploy.bench.isolate FOLDER`` is that process. It reads ``asked.json`` and ``feeds.npz`` in the folder and
writes ``told.json`` and ``times.npz``.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from deploy.bench.conditions import Conditions, peak_rss
from deploy.bench.figures import About, about
from deploy.bench.records import Cold
from deploy.bench.sitting import Sitting
from deploy.bench.warmup import Warm
from deploy.engines.base import Engine
from deploy.errors import DeployError

_PACKAGES = ("onnxruntime", "openvino")
_TAIL = 2000


@dataclass(frozen=True)
class Place:
    """Where an engine is found, and what it is called.

    Attributes:
        name: in the record.
        path: an ONNX file, an engine's file or a bundle's folder.
        runtime: a key of ``deploy.engines.ENGINES``, or None for what the path decides.
    """

    name: str
    path: Path
    runtime: str | None = None


def open_engine(place: Place, threads: int) -> Engine:
    """Load the file or the bundle at a place under its name.

    Raises:
        DeployError: there is none that can be used.
    """
    from deploy.bundle.bundle import load
    from deploy.engines import load_engine

    opener: Any = load if place.path.is_dir() else load_engine
    engine = opener(place.path, threads=threads, runtime=place.runtime)
    engine.name = place.name
    return engine


def sit_apart(
    places: Sequence[Place],
    feeds: Sequence[Mapping[str, np.ndarray]],
    *,
    threads: int = 1,
    rounds: int = 50,
    min_seconds: float = 1.0,
    seed: int = 0,
) -> tuple[list[About], Sitting]:
    """Time the engines in a process that does nothing else.

    Args:
        places: of the engines.
        feeds: what each of them is fed.
        threads: of one run.
        rounds: the least number of rounds.
        min_seconds: how long the timing takes at least.
        seed: of the orders.

    Raises:
        DeployError: an engine cannot be loaded or timed, or the process died.
    """
    asked = {"rounds": rounds, "min_seconds": min_seconds, "seed": seed}
    with TemporaryDirectory(prefix="niwaki-bench-") as folder:
        told = _run(Path(folder), places, feeds, threads, asked)
        times = np.load(Path(folder) / "times.npz", allow_pickle=False)["times"]
    warm = tuple(Warm(**one) for one in told["warm"])
    sitting = Sitting(times, warm, Conditions.model_validate(told["conditions"]))
    return [About(**one) for one in told["engines"]], sitting


def cold_start(place: Place, feeds: Mapping[str, np.ndarray], *, threads: int = 1) -> Cold:
    """Load and run one engine once, in a process of its own.

    Raises:
        DeployError: it cannot be loaded or run, or the process died.
    """
    with TemporaryDirectory(prefix="niwaki-bench-") as folder:
        return Cold(**_run(Path(folder), [place], [feeds], threads, {"rounds": 0})["cold"])


def _run(
    folder: Path,
    places: Sequence[Place],
    feeds: Sequence[Mapping[str, np.ndarray]],
    threads: int,
    asked: Mapping[str, Any],
) -> dict[str, Any]:
    engines = [{"name": one.name, "path": str(one.path.resolve()), "runtime": one.runtime} for one in places]
    (folder / "asked.json").write_text(json.dumps({"engines": engines, "threads": threads, **asked}), "utf-8")
    named = {f"{index}/{name}": value for index, one in enumerate(feeds) for name, value in one.items()}
    np.savez(folder / "feeds.npz", **named)  # type: ignore[arg-type]
    command = [sys.executable, "-P", "-c", _CHILD, str(Path(__file__).parents[2]), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    told: dict[str, Any] = {}
    with suppress(OSError, ValueError):  # where it died before it could tell anything
        told = json.loads((folder / "told.json").read_text("utf-8"))
    if "error" in told:
        raise DeployError(told["error"])
    if done.returncode or not told:
        said = done.stderr.strip().splitlines()[-1:] or [f"status {done.returncode}"]
        raise DeployError(f"The process that was to time {places[0].name} died ({said[0][:_TAIL]}); free some memory.")
    return told


# The package may lie where this process alone looks for it.
_CHILD = "import sys; sys.path.append(sys.argv[1]); from deploy.bench.isolate import main; main(sys.argv[2])"


def main(folder: str) -> None:
    """Do in this process what ``folder`` asks for."""
    place = Path(folder)
    try:
        told = _time_here(place)
    except DeployError as error:
        told = {"error": str(error)}
    (place / "told.json").write_text(json.dumps(told), encoding="utf-8")


def _time_here(folder: Path) -> dict[str, Any]:
    from deploy.bench.timing import sit

    asked = json.loads((folder / "asked.json").read_text("utf-8"))
    places = [Place(one["name"], Path(one["path"]), one["runtime"]) for one in asked["engines"]]
    stored = np.load(folder / "feeds.npz", allow_pickle=False)
    feeds: list[dict[str, np.ndarray]] = [{} for _ in places]
    for key in stored.files:
        index, _, name = key.partition("/")
        feeds[int(index)][name] = stored[key]
    for package in _PACKAGES:
        if any(one.runtime == package for one in places):
            with suppress(ImportError):  # loading says so in a sentence
                import_module(package)
    if any(one.runtime is None for one in places):
        import_module("onnxruntime")
    before = peak_rss()
    with ExitStack() as stack:
        start = time.perf_counter()
        engines = [stack.enter_context(open_engine(one, asked["threads"])) for one in places]
        load_ms = (time.perf_counter() - start) * 1e3
        if not asked["rounds"]:
            start = time.perf_counter()
            engines[0].run(feeds[0])
            first_ms = (time.perf_counter() - start) * 1e3
            peak = peak_rss()
            own = None if peak is None or before is None else peak - before
            return {"cold": {"load_ms": load_ms, "first_ms": first_ms, "peak_rss_bytes": peak, "own_rss_bytes": own}}
        found = sit(engines, feeds, rounds=asked["rounds"], min_seconds=asked["min_seconds"], seed=asked["seed"])
        facts = [asdict(about(engine)) for engine in engines]
    np.savez(folder / "times.npz", times=found.times)
    warm = [asdict(one) for one in found.warm]
    return {"engines": facts, "warm": warm, "conditions": found.conditions.model_dump()}
