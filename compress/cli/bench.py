"""The commands on measurements: bench, gate and report. None of them needs torch."""

from __future__ import annotations

import json
import warnings
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from compress.cli.common import JsonFlag
from compress.terminal import Terminal, plain

if TYPE_CHECKING:
    from deploy.bench.records import Bench, Record


@dataclass(frozen=True)
class Asked:
    """How engines are timed: images of one run, (height, width) where a file leaves them open, threads, rounds."""

    batch: int | None
    size: tuple[int, int] | None
    threads: int
    rounds: int
    runtime: str | None


def bench(
    engines: Annotated[list[Path], typer.Argument(help="ONNX files or bundles; the first is the reference.")],
    out: Annotated[Path | None, typer.Option(help="Also write the record to this file.")] = None,
    batch: Annotated[
        int | None, typer.Option(min=1, max=4096, help="Images of one run; by default 1, or what a file fixes.")
    ] = None,
    size: Annotated[
        str | None, typer.Option(metavar="HxW", help="Height and width where a file leaves them open, such as 224x320.")
    ] = None,
    threads: Annotated[int, typer.Option(min=1, max=1024)] = 1,
    rounds: Annotated[int, typer.Option(min=5, max=100_000)] = 50,
    runtime: Annotated[str | None, typer.Option(help="Run all by this one, such as openvino.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Time engines against the first one, in turns, on seeded noise for the inputs of each; needs no torch."""
    result = _timed(engines, Asked(batch, _size(size), threads, rounds, runtime))
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(result.to_json(), encoding="utf-8")
    if as_json:
        print(result.to_json(), end="")
    else:
        console = Terminal()
        console.print(_bench_table(result))
        for engine, taken in result.settings.get("inputs", {}).items():
            console.print(f"{engine} takes {taken}", soft_wrap=True, markup=False)
        if "note" in result.settings:
            console.print(result.settings["note"], soft_wrap=True, markup=False)


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


def _timed(paths: list[Path], asked: Asked) -> Bench:
    """Open the engines and time each on noise of its own inputs.

    Raises:
        DeployError: what one takes is no batch of that size, has an open size that nobody gave, or is too large.
    """
    import deploy
    from deploy.bench.noise import noise
    from deploy.bench.records import Bench
    from deploy.engines import load_engine
    from deploy.engines.cores import over_cores
    from deploy.errors import DeployError

    with ExitStack() as stack:
        engines, feeds, rows = [], [], {}
        for path in paths:
            load = deploy.load if path.is_dir() else load_engine
            engine = stack.enter_context(load(path, threads=asked.threads, runtime=asked.runtime))
            engine.name = str(path)
            feed, rows[engine.name] = noise(
                engine.inputs, str(path), asked.batch, size=asked.size, stated=_stated(engine, path)
            )
            engines.append(engine)
            feeds.append(feed)
        if len(set(rows.values())) > 1:
            raise DeployError(
                f"One run takes {rows} images; only runs of as many images can be compared, give --batch."
            )
        batch = next(iter(rows.values()))
        records = deploy.benchmark(engines, feeds, batch=batch, rounds=asked.rounds)
        taken = [", ".join(f"{name} {spec}" for name, spec in engine.inputs.items()) for engine in engines]
    settings: dict[str, Any] = {"threads": asked.threads, "batch": batch, "rounds": asked.rounds}
    if len(set(taken)) > 1:
        settings["inputs"] = dict(zip(map(str, paths), taken, strict=True))
    if (crowded := over_cores(asked.threads)) is not None:
        settings["note"] = crowded
    return Bench(name=paths[0].stem, settings=settings, records=tuple(records))


def _stated(engine: Any, path: Path) -> list[int] | None:
    """Return the sizes of one image, (C, H, W), where a bundle or a file states its preprocessing."""
    from deploy.onnx.metadata import Metadata

    said = engine.preprocessing if path.is_dir() else Metadata.from_file(path).preprocessing
    return None if said is None else list(said.shape)


def _size(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    height, _, width = text.lower().partition("x")
    if not (height.isdecimal() and width.isdecimal() and int(height[:9]) > 0 and int(width[:9]) > 0):
        raise typer.BadParameter(f"'{text}' is no size; give HEIGHTxWIDTH, such as 224x320", param_hint="--size")
    return int(height[:9]), int(width[:9])


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
