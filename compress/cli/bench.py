"""The commands on measurements: bench, gate and report. None of them needs torch."""

from __future__ import annotations

import json
import math
import warnings
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from compress.cli.common import JsonFlag
from compress.cli.probe import Probe, probe_first
from compress.terminal import Terminal, plain

if TYPE_CHECKING:
    import numpy as np

    from deploy.bench.records import Bench, Record

# Of an input that is timed: 8 GB in float32.
_MOST_NUMBERS = 2_000_000_000


def bench(
    engines: Annotated[list[Path], typer.Argument(help="ONNX files or bundles; the first is the reference.")],
    out: Annotated[Path | None, typer.Option(help="Also write the record to this file.")] = None,
    batch: Annotated[int, typer.Option(min=1, max=4096)] = 1,
    threads: Annotated[int, typer.Option(min=1, max=1024)] = 1,
    rounds: Annotated[int, typer.Option(min=5, max=100_000)] = 50,
    runtime: Annotated[str | None, typer.Option(help="Run all by this one, such as openvino.")] = None,
    probe: Probe = None,
    as_json: JsonFlag = False,
) -> None:
    """Time engines against the first one, in turns, on seeded noise; needs no torch."""
    for path in engines:
        probe_first(path, probe, runtime=runtime, batch=batch)
    result = _timed(engines, batch, threads, rounds, runtime)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(result.to_json(), encoding="utf-8")
    if as_json:
        print(result.to_json(), end="")
    else:
        Terminal().print(_bench_table(result))


def gate(
    record: Annotated[Path, typer.Argument(help="A bench.json.")],
    baseline: Annotated[Path, typer.Option(help="The bench.json to hold it against.")],
    latency_tolerance: Annotated[
        float, typer.Option(min=0.0, help="How much the ratio to dense may grow, relatively.")
    ] = 0.10,
    accuracy_tolerance: Annotated[
        float, typer.Option(min=0.0, help="How much accuracy may fall, as a share of 1.")
    ] = 0.01,
    as_json: JsonFlag = False,
) -> None:
    """Exit 1 when latency (as a ratio to dense) or accuracy is worse than a baseline allows."""
    import deploy
    from deploy.bench.records import Bench

    result = deploy.gate(
        Bench.from_file(record),
        Bench.from_file(baseline),
        latency_tolerance=latency_tolerance,
        accuracy_tolerance=accuracy_tolerance,
    )
    if as_json:
        print(result.model_dump_json(indent=1))
    else:
        columns = ("engine", "what", "now", "baseline", "limit", "")
        shown = Table(*columns, title="Gate", title_justify="left")
        for line in result.lines:
            values = [_short(v) for v in (line.value, line.baseline, line.limit)]
            shown.add_row(escape(line.name), line.what, *map(escape, values), "ok" if line.ok else "[bold red]FAILS[/]")
        console = Terminal()
        console.print(shown)
        console.print("passed" if result.passed else "failed", style="green" if result.passed else "bold red")
    if not result.passed:
        raise typer.Exit(1)


def report(
    folder: Annotated[Path, typer.Argument(help="A run folder.")],
    as_json: JsonFlag = False,
) -> None:
    """Write a run's report.html again."""
    from deploy.report import write_report

    with warnings.catch_warnings():
        # matplotlib warns of a name that its font cannot draw.
        warnings.simplefilter("ignore")
        path = write_report(folder)
    print(json.dumps({"report": str(path)}) if as_json else plain(path))


def _timed(paths: list[Path], batch: int, threads: int, rounds: int, runtime: str | None) -> Bench:
    """Open the engines and time them on the same noise.

    Raises:
        DeployError: what the first one takes is no batch of that size, or too large to be timed.
    """
    import deploy
    from deploy.bench.records import Bench
    from deploy.engines import load_engine

    with ExitStack() as stack:
        engines = []
        for path in paths:
            load = deploy.load if path.is_dir() else load_engine
            engines.append(stack.enter_context(load(path, threads=threads, runtime=runtime)))
            engines[-1].name = str(path)
        records = deploy.benchmark(engines, _noise(engines[0], paths[0], batch), rounds=rounds)
    settings = {"threads": threads, "batch": batch, "rounds": rounds}
    return Bench(name=paths[0].stem, settings=settings, records=tuple(records))


def _noise(engine: Any, path: Path, batch: int) -> dict[str, np.ndarray]:
    """Draw seeded noise for every input of an engine, which ``path`` was opened as."""
    import numpy as np

    from deploy.errors import DeployError

    inputs = {}
    for name, spec in engine.inputs.items():
        sizes = [size for size in spec.shape[1:] if size is not None]
        if len(sizes) != len(spec.shape[1:]):
            sizes = _sizes_of_preprocessing(engine, path, name)
        if spec.shape[:1] not in ((None,), (batch,)):
            way_out = f"give --batch {spec.shape[0]}" if spec.shape and spec.shape[0] else "export it with a free batch"
            raise DeployError(f"{path} takes '{name}' as {spec}, which is no batch of {batch}; {way_out}.")
        if batch * math.prod(sizes) > _MOST_NUMBERS:
            raise DeployError(f"{path} takes '{name}' as {spec}: too large to be timed with a batch of {batch}.")
        inputs[name] = np.random.default_rng(0).standard_normal((batch, *sizes)).astype(spec.dtype)
    return inputs


def _sizes_of_preprocessing(engine: Any, path: Path, name: str) -> list[int]:
    """Return the sizes of one image where the file leaves them open: what its preprocessing makes."""
    from deploy.errors import DeployError
    from deploy.onnx.metadata import Metadata

    said = engine.preprocessing if path.is_dir() else Metadata.from_file(path).preprocessing
    if said is None:
        raise DeployError(f"{path} leaves the size of '{name}' open and names no preprocessing; export it with one.")
    return list(said.shape)


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else "–" if value is None else str(value)


def _bench_table(result: Bench) -> Table:
    shown = Table("engine", "median", "p90", "p99", "ratio to the first", title=escape(_machine(result)))
    for record in result.records:
        shown.add_row(escape(record.name), *map(escape, _times(record)))
    return shown


def _times(record: Record) -> list[str]:
    low, high = record.ratio_interval or (0.0, 0.0)
    times = [f"{value:.3f} ms" for value in (record.median_ms, record.p90_ms, record.p99_ms) if value is not None]
    return [*times, f"{record.ratio_to_dense:.3f} [{low:.3f}, {high:.3f}]"]


def _machine(result: Bench) -> str:
    return f"{result.machine.get('cpu', 'unknown CPU')}, {result.settings.get('threads')} thread(s)"
