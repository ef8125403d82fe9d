"""Time ONNX files in turns, each the best of several processes, and fill a folder's table by it."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from deploy.engines import load_engine
from deploy.engines.base import Engine
from deploy.environment import machine_info
from deploy.errors import DeployError
from deploy.files import read_bytes
from deploy.latency.layers import CASTS, PROFILED, REORDERS, LayerTime, Profiler
from deploy.latency.table import Entry, Network, Setting, Table, TimedLayer, TimedPoint
from deploy.validation import explain

PROCESSES = 3
TIMED = ("onnxruntime", "onnxruntime_cuda", "onnxruntime_tensorrt", "openvino")
"""Runtimes that run the small files of a table."""
_OPEN_AT_ONCE = 24
_STRICT = ConfigDict(frozen=True, extra="forbid")


class Job(BaseModel):
    """A file to be timed.

    Attributes:
        path: an ONNX file.
        shapes: of its inputs, where the file leaves sizes open; the batch alone may be left out.
        batch: images at once where the file leaves that open.
    """

    model_config = _STRICT

    path: str
    shapes: dict[str, tuple[int, ...]] = {}
    batch: Annotated[int, Field(ge=1)] = 1


class How(BaseModel):
    """How files are timed.

    Attributes:
        layers: whether the times of layers are asked for as well.
        rounds: timed runs of each file in one process; every round visits each file once, in turns.
        min_seconds: rounds are added until a process has timed for about this long.
        processes: how many are started; one in some dozens is slow for its whole life.
        agree: where above 0, up to three times as many processes are started until the two best of every file differ by
            no more than this share: on a busy machine most processes never run undisturbed.
    """

    model_config = _STRICT

    runtime: str = "onnxruntime"
    threads: Annotated[int, Field(ge=0, le=1024)] = 1
    layers: bool = False
    rounds: Annotated[int, Field(ge=1, le=100_000)] = 10
    min_seconds: Annotated[float, Field(ge=0, le=600)] = 0.0
    processes: Annotated[int, Field(ge=1, le=100)] = PROCESSES
    agree: Annotated[float, Field(ge=0, le=1)] = 0.0

    def enough(self, times: Sequence[Sequence[float]]) -> bool:
        """Tell whether no further process is needed, by the best run of each file in each process so far."""
        done = len(times[0])
        if done < self.processes or not self.agree or done >= 3 * self.processes:
            return done >= self.processes
        pairs = [sorted(own)[:2] for own in times]
        return all(pair[-1] <= pair[0] * (1 + self.agree) for pair in pairs)


class Timing(BaseModel):
    """What a file took.

    Attributes:
        ms: the best run of the best process.
        processes: the best run of each process.
        load: the machine's load, average of one minute, before and after each process.
        switches: how often each process was made to wait for another one.
        layers: each layer's best time, where layers were asked for.
    """

    model_config = _STRICT

    path: str
    ms: Annotated[float, Field(gt=0)]
    processes: tuple[float, ...]
    load: tuple[float, ...] = ()
    switches: tuple[int, ...] = ()
    layers: tuple[dict[str, Any], ...] = ()

    def layer_times(self) -> tuple[LayerTime, ...]:
        """Return the layers' times as objects."""
        return tuple(LayerTime.from_dict(one) for one in self.layers)

    @property
    def layer_ms(self) -> float:
        """Sum the layers but those that only bring numbers into or out of an order or type at the file's ends."""
        own = [one.ms for one in self.layer_times() if one.kind not in (*REORDERS, *CASTS)]
        return sum(own) or self.ms


Timer = Callable[[Sequence[Job], How], list[Timing]]


def time_files(jobs: Sequence[Job], how: How) -> list[Timing]:
    """Time files in turns in several processes, one after the other, and take each file's best.

    Args:
        jobs: the files.
        how: the runtime, and how often.

    Returns:
        One timing for each file, in order.

    Raises:
        DeployError: a file cannot be loaded or run.
        MissingDependency: the runtime is not installed.
    """
    if not jobs:
        return []
    answers: list[dict[str, Any]] = []
    while not answers or not how.enough([[a["files"][k]["ms"] for a in answers] for k in range(len(jobs))]):
        before = _load()
        answer = _in_a_process(jobs, how)
        answers.append({**answer, "load": (before, _load())})
    timings = []
    for index, job in enumerate(jobs):
        best = [answer["files"][index] for answer in answers]
        timings.append(
            Timing(
                path=job.path,
                ms=min(one["ms"] for one in best),
                processes=tuple(one["ms"] for one in best),
                load=tuple(value for answer in answers for value in answer["load"]),
                switches=tuple(answer["switches"] for answer in answers),
                layers=_best_layers([one["layers"] for one in best]),
            )
        )
    return timings


def _load() -> float:
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else 0.0


def _in_a_process(jobs: Sequence[Job], how: How) -> dict[str, Any]:
    """Time files in a process of their own."""
    import deploy

    home = str(Path(deploy.__file__).resolve().parent.parent)
    code = "import sys; sys.path.insert(0, sys.argv[1]); from deploy.latency.profile import answer; answer()"
    asked = json.dumps({"jobs": [job.model_dump() for job in jobs], "how": how.model_dump()})
    done = subprocess.run(
        [sys.executable, "-c", code, home], input=asked, capture_output=True, text=True, check=False, encoding="utf-8"
    )
    lines = done.stdout.strip().splitlines()
    try:
        found = json.loads(lines[-1]) if lines else {}
    except ValueError:
        found = {}
    if "error" in found:
        raise _raised(found)
    if done.returncode or "files" not in found:
        said = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1][:200]
        raise DeployError(f"Timing {jobs[0].path} in a process of its own failed ({said}); run it with `niwaki bench`.")
    return dict(found)


def _raised(found: Mapping[str, Any]) -> DeployError:
    from deploy.errors import MissingDependency

    kind = MissingDependency if found.get("missing") else DeployError
    return kind(str(found["error"]))


def answer() -> None:
    """Read jobs from standard input, time them in this process and print one JSON document."""
    from deploy.errors import MissingDependency

    asked = json.loads(sys.stdin.read())
    jobs, how = [Job.model_validate(one) for one in asked["jobs"]], How.model_validate(asked["how"])
    try:
        files = [
            found
            for start in range(0, len(jobs), _OPEN_AT_ONCE)
            for found in time_here(jobs[start : start + _OPEN_AT_ONCE], how)
        ]
    except DeployError as error:
        print(json.dumps({"error": str(error), "missing": isinstance(error, MissingDependency)}))
        return
    print(json.dumps({"files": files, "switches": _switches()}))


def _switches() -> int:
    try:
        import resource
    except ImportError:  # not on Windows
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw


def time_here(jobs: Sequence[Job], how: How) -> list[dict[str, Any]]:
    """Time files in turns in this process; return ``ms`` and ``layers`` of each."""
    profiled = how.layers and how.runtime in PROFILED
    with ExitStack() as stack:
        profilers: list[Profiler] = []
        engines: list[Engine] = []
        for job in jobs:
            if profiled:
                profilers.append(Profiler(Path(job.path), runtime=how.runtime, threads=how.threads))
                stack.callback(profilers[-1].close)
                engines.append(profilers[-1].engine)
            else:
                engines.append(stack.enter_context(load_engine(job.path, threads=how.threads, runtime=how.runtime)))
        feeds = [noise(engine, job) for engine, job in zip(engines, jobs, strict=True)]
        runs: list[Any] = profilers or engines
        best = _best_of_rounds(runs, feeds, how)
        layers = [[one.to_dict() for one in profiler.layers()] for profiler in profilers] or [[]] * len(jobs)
    return [{"ms": ms, "layers": own} for ms, own in zip(best, layers, strict=True)]


def _best_of_rounds(runs: Sequence[Any], feeds: Sequence[Mapping[str, np.ndarray]], how: How) -> list[float]:
    """Visit every engine once a round, in an order that rotates; return the best milliseconds of each."""
    for run, feed in zip(runs, feeds, strict=True):
        run.run(feed)
    best = [float("inf")] * len(runs)
    gc.collect()
    gc.disable()
    try:
        start, done = time.perf_counter(), 0
        while done < how.rounds or time.perf_counter() - start < how.min_seconds:
            for step in range(len(runs)):
                turn = (done + step) % len(runs)
                began = time.perf_counter_ns()
                runs[turn].run(feeds[turn])
                best[turn] = min(best[turn], max(time.perf_counter_ns() - began, 1) / 1e6)
            done += 1
    finally:
        gc.enable()
    return best


def noise(engine: Engine, job: Job) -> dict[str, np.ndarray]:
    """Draw seeded noise for every input of an engine.

    Raises:
        DeployError: the file leaves a size open that the job does not give.
    """
    rng = np.random.default_rng(0)
    feeds = {}
    for name, spec in engine.inputs.items():
        shape: tuple[int | None, ...] = job.shapes.get(name) or (
            *(job.batch if size is None else size for size in spec.shape[:1]),
            *spec.shape[1:],
        )
        if any(size is None for size in shape):
            raise DeployError(f"{job.path} leaves the size of '{name}' open ({spec}); say which one to time.")
        sizes = [int(size) for size in shape if size is not None]
        whole = spec.dtype in ("uint8", "int8", "int32", "int64")
        drawn = rng.integers(0, 127, sizes) if whole else rng.standard_normal(sizes)
        feeds[name] = np.asarray(drawn).astype(spec.dtype)
    return feeds


def _best_layers(several: Sequence[Sequence[Mapping[str, Any]]]) -> tuple[dict[str, Any], ...]:
    """Take each layer's best time of several processes, which ran the same layers in the same order."""
    first = several[0]
    alike = [own for own in several if [one["name"] for one in own] == [one["name"] for one in first]]
    return tuple({**one, "ms": min(own[place]["ms"] for own in alike)} for place, one in enumerate(first))


def here(runtime: str, precision: Literal["fp32", "fp16", "int8"], threads: int, batch: int = 1) -> Setting:
    """Return the setting that this machine times in.

    Raises:
        DeployError: no package of that runtime is installed.
    """
    package = {"openvino": "openvino", "tensorrt": "tensorrt", "tensorrt_rtx": "tensorrt-rtx-cu13", "torch": "torch"}
    names = [package[runtime]] if runtime in package else ["onnxruntime", "onnxruntime-gpu"]
    for name in names:
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
        device = machine_info()["cpu"]
        return Setting(
            runtime=runtime, version=version, device=device, precision=precision, threads=threads, batch=batch
        )
    raise DeployError(f"No package of the runtime {runtime} is installed here; install {names[0]}.")


# --- a folder of files, timed where it is copied to


class Probe(BaseModel):
    """One small file of a folder: a layer at two widths."""

    model_config = _STRICT

    file: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]+\.onnx$")]
    layer: TimedLayer
    inputs: int
    outputs: int
    precision: Literal["fp32", "fp16", "int8"]


class Whole(BaseModel):
    """One whole network of a folder, and the widths of its layers."""

    model_config = _STRICT

    file: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]+\.onnx$")]
    name: str
    widths: dict[str, tuple[int, int]]


class ProfileFolder(BaseModel):
    """What is to be timed; ``profile.json`` in the folder."""

    model_config = _STRICT

    format: Literal["niwaki-profile-1"] = "niwaki-profile-1"
    probes: tuple[Probe, ...]
    networks: tuple[Whole, ...] = ()
    runtimes: tuple[str, ...] = ("onnxruntime",)
    threads: Annotated[int, Field(ge=0, le=1024)] = 1
    batch: Annotated[int, Field(ge=1, le=4096)] = 1
    precision: Literal["fp32", "fp16", "int8"] = "fp32"

    @classmethod
    def read(cls, folder: Path) -> ProfileFolder:
        """Read ``profile.json``; raise DeployError where the folder has none that can be used."""
        path = folder / "profile.json"
        try:
            return cls.model_validate_json(read_bytes(path))
        except OSError as error:
            raise DeployError(
                f"Cannot read {path} ({error.strerror}); make the folder with `niwaki profile NETWORK --bundle DIR`."
            ) from None
        except ValidationError as error:
            raise DeployError(f"{path} is not a niwaki-profile-1 list ({explain(error)}); make it again.") from None


def profile_folder(
    folder: Path,
    *,
    runtimes: Sequence[str] = (),
    timer: Timer = time_files,
    progress: Callable[[int, int], None] | None = None,
) -> Table:
    """Time everything in a folder on this machine; needs numpy and the runtime alone.

    Args:
        folder: made by ``niwaki profile NETWORK --bundle DIR``.
        runtimes: which to time by; by default those that the folder names.
        timer: what times.
        progress: called with (files done, files in all).

    Raises:
        DeployError: the folder cannot be used, a runtime runs no ONNX file, or a file cannot be timed.
        MissingDependency: a runtime is not installed.
    """
    asked = ProfileFolder.read(folder)
    began = time.perf_counter()
    table = Table()
    chosen = tuple(runtimes or asked.runtimes)
    if other := [name for name in chosen if name not in TIMED]:
        raise DeployError(
            f"{other[0]} runs no ONNX file, which a table is filled from; time the folder by {', '.join(TIMED)}; what "
            "TensorRT's layers take, niwaki explain --runtime tensorrt reads."
        )
    networks: list[Network] = []
    total = len(chosen) * (len(asked.probes) + len(asked.networks))
    for number, runtime in enumerate(chosen):
        start = number * (len(asked.probes) + len(asked.networks))
        for part in range(0, len(asked.probes), 4 * _OPEN_AT_ONCE):
            probes = asked.probes[part : part + 4 * _OPEN_AT_ONCE]
            table = table.merged(
                measured(probes, folder, runtime=runtime, threads=asked.threads, batch=asked.batch, timer=timer)
            )
            if progress is not None:
                progress(start + part + len(probes), total)
        jobs = [Job(path=str(folder / one.file), batch=asked.batch) for one in asked.networks]
        how = How(runtime=runtime, threads=asked.threads, rounds=20, min_seconds=1.0)
        pairs = zip(asked.networks, timer(jobs, how), strict=True)
        setting = here(runtime, asked.precision, asked.threads, asked.batch)
        networks += [Network(name=w.name, setting=setting, widths=w.widths, ms=t.ms) for w, t in pairs]
    return Table(entries=table.entries, networks=tuple(networks), seconds=time.perf_counter() - began)


def measured(
    probes: Iterable[Probe],
    folder: Path,
    *,
    runtime: str,
    threads: int,
    batch: int = 1,
    timer: Timer = time_files,
) -> list[Entry]:
    """Time small files and return the entries of a table, one for each layer and precision."""
    listed = list(probes)
    how = How(runtime=runtime, threads=threads, layers=True, rounds=6)
    timings = timer([Job(path=str(folder / probe.file), batch=batch) for probe in listed], how)
    points: dict[tuple[str, str], dict[tuple[int, int], TimedPoint]] = {}
    layers: dict[tuple[str, str], tuple[TimedLayer, Probe]] = {}
    load: tuple[float, ...] = ()
    for probe, timing in zip(listed, timings, strict=True):
        key = (probe.layer.key, probe.precision)
        layers[key] = (probe.layer, probe)
        point = TimedPoint(inputs=probe.inputs, outputs=probe.outputs, ms=timing.layer_ms)
        points.setdefault(key, {})[point.inputs, point.outputs] = point
        load = timing.load
    return [
        Entry(
            layer=layer,
            setting=here(runtime, probe.precision, threads, batch),
            points=tuple(points[key].values()),
            load=load,
        )
        for key, (layer, probe) in layers.items()
    ]
