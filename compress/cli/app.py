"""The command `niwaki`. Each command imports what it needs when it runs, so that some work without torch."""

from __future__ import annotations

import errno
import json
import math
import os
import signal
import sys
import time
import warnings
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from rich.markup import escape
from rich.table import Table

from compress.cli.bundle import JsonFlag, build, describe, predict, sign
from compress.errors import INTERRUPTED, ElsewhereError, exit_code_of
from compress.terminal import Terminal, plain

if TYPE_CHECKING:
    from deploy.bench.records import Bench, Record

# Of an input that is timed: 8 GB in float32.
_MOST_NUMBERS = 2_000_000_000

app = typer.Typer(
    name="niwaki",
    help="Transfer, prune, distil and deploy a vision network, and measure that it was worth it.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)

for command in (predict, build, sign):
    app.command()(command)


@app.command("run")
def run_command(
    recipe: Annotated[Path, typer.Argument(help="A recipe, such as recipes/digits.yaml.")],
    out: Annotated[Path | None, typer.Option(help="The run folder; runs/NAME by default.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run that --out holds.")] = False,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a key of the recipe.")
    ] = None,
    devices: Annotated[
        int, typer.Option(min=1, max=1024, help="Processes that train together, one a GPU or a share of the cores.")
    ] = 1,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print nothing but errors.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Do everything that a recipe asks for: teacher, student, engines, records, report, bundle."""
    _need_torch("run", ("torch", "yaml", "lightning", "nncf"))
    _importable_from_here()
    _check_launcher()
    # OpenMP's threads wait by spinning; on a machine that does other work too, that costs a factor of ten.
    os.environ.setdefault("GOMP_SPINCOUNT", "5000")
    if devices > 1:
        _in_several_processes(devices, recipe, out, resume, overrides or [], quiet, as_json)
    with warnings.catch_warnings():
        # Libraries warn their developers; a user can do nothing about it.
        warnings.simplefilter("ignore")
        from compress.recipe.schema import load_recipe
        from compress.run import run
        from compress.run.progress import Ui

        asked = load_recipe(recipe, overrides or [])
        folder = out or Path("runs") / asked.name
        first = _launched("RANK", 0) == 0
        report = run(asked, folder, Ui.choose(quiet=quiet or not first, json=as_json), resume=resume)
    if not first:
        return
    from compress.run.summary import summary, table

    figures = summary(folder)
    if as_json:
        print(json.dumps(figures, indent=1))
    elif not quiet:
        console = Terminal()
        console.print(table(figures))
        console.print(f"\nReport   {report}", soft_wrap=True, markup=False)
        if asked.deploy is None:
            said = f"Student  {folder / 'student'} (--resume with a deploy goes on to engines and the bundle)"
            console.print(said, soft_wrap=True, markup=False)
            return
        prefix = f"niwaki predict {folder / 'bundle'} {folder / 'samples'}/*.png"
        console.print(f"Predict  {prefix}", soft_wrap=True, markup=False)
        gate = f"niwaki gate NEWER/bench.json --baseline {folder / 'bench.json'}"
        console.print(f"Gate     {gate}", soft_wrap=True, markup=False)


def _in_several_processes(
    devices: int, recipe: Path, out: Path | None, resume: bool, overrides: list[str], quiet: bool, as_json: bool
) -> NoReturn:
    """Runs the same command in each of `devices` processes and ends with their exit code."""
    if "WORLD_SIZE" in os.environ:
        raise typer.BadParameter("is for a run that no launcher started; torchrun says itself how many processes run")
    from compress.run.launch import launch

    arguments = [str(recipe), *(part for override in overrides for part in ("--set", override))]
    if out is not None:
        arguments += ["--out", str(out)]
    flags = {"--resume": resume, "--quiet": quiet, "--json": as_json}
    raise typer.Exit(launch(devices, [*arguments, *(flag for flag, given in flags.items() if given)]))


@app.command("inspect")
def inspect_command(
    model: Annotated[str, typer.Argument(help="torchvision:NAME, niwaki:NAME, module:function, or a saved network.")],
    size: Annotated[int | None, typer.Option(min=1, max=8192, help="Height and width of the images.")] = None,
    protect: Annotated[
        list[str] | None, typer.Option(metavar="PATTERN", help="Keep what touches these parameters; repeatable.")
    ] = None,
    trust: Annotated[
        list[str] | None, typer.Option(metavar="MODULE", help="Code that a saved network may import; repeatable.")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="List every slot, name and attribute.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print nothing but errors.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Show which channels of a network can go, which must stay and why; needs no weights and no data."""
    _need_torch("inspect", ("torch", "torchvision", "scipy", "safetensors"))
    _importable_from_here()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from compress.cli.inspection import render
        from compress.models.named import named_network
        from compress.prune.inspection import inspect_model

        with Terminal(stderr=True, quiet=quiet).status(f"Tracing {escape(model)}"):
            found = named_network(model, size=size, trusted=tuple(trust or ()))
            seen = inspect_model(
                found.model, found.example, name=model, forward=found.forward, protect=tuple(protect or ())
            )
    if as_json:
        print(seen.model_dump_json(indent=1))
    elif not quiet:
        render(seen, Terminal(), everything=everything)


@app.command()
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


@app.command()
def bench(
    engines: Annotated[list[Path], typer.Argument(help="ONNX files or bundles; the first is the reference.")],
    out: Annotated[Path | None, typer.Option(help="Also write the record to this file.")] = None,
    batch: Annotated[int, typer.Option(min=1, max=4096)] = 1,
    threads: Annotated[int, typer.Option(min=1, max=1024)] = 1,
    rounds: Annotated[int, typer.Option(min=5, max=100_000)] = 50,
    runtime: Annotated[str | None, typer.Option(help="Run all by this one, such as openvino.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Time engines against the first one, in turns, on seeded noise; needs no torch."""
    result = _timed(engines, batch, threads, rounds, runtime)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(result.to_json(), encoding="utf-8")
    if as_json:
        print(result.to_json(), end="")
    else:
        Terminal().print(_bench_table(result))


@app.command()
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


@app.command()
def doctor(
    bundle: Annotated[Path | None, typer.Argument(help="A bundle folder: say what runs it here, and why.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Say what is installed, what works here, and how to get what is missing; or what runs a bundle here."""
    if bundle is not None:
        about = describe(bundle)
        if as_json:
            print(json.dumps(about, indent=1))
            return
        shown = Table(box=None, pad_edge=False, show_header=False)
        for key, value in about.items():
            said = ", ".join(value) if isinstance(value, list) else value
            shown.add_row(key, escape(str(said or "–")))
        Terminal().print(shown)
        return
    from compress.cli.doctor import diagnose, render

    checks = diagnose()
    if as_json:
        print(json.dumps([check.to_dict() for check in checks], indent=1))
    else:
        render(checks, Terminal())
    if any(check.required and not check.ok for check in checks):
        raise typer.Exit(3)


def main() -> NoReturn:
    """Runs the command; every failure that a user can cause is one sentence and an exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            # A terminal that lacks a character gets its escape, not a traceback.
            stream.reconfigure(errors="backslashreplace")
    try:
        # Outside standalone mode a typer.Exit comes back as its code.
        code = app(args=sys.argv[1:] or ["--help"], standalone_mode=False)
    except (typer.Abort, KeyboardInterrupt):
        code = INTERRUPTED
    except SystemExit as error:
        # Typer ends so, with the code of a gate that failed, where nobody reads on (`| head`).
        if not isinstance(error.__context__, BrokenPipeError):
            raise
        code = 128 + signal.SIGPIPE
    except ElsewhereError as error:
        code = error.exit_code
        _outlast()
    except Exception as error:
        if not isinstance(error, OSError | MemoryError) and not hasattr(error, "exit_code"):
            raise
        if _first_to_fail():
            _say(_message(error))
        code = exit_code_of(error)
    if code == INTERRUPTED and _launched("RANK", 0) == 0:
        _say("stopped; the same command with --resume goes on where it was.")
    sys.exit(code or 0)


def _check_launcher() -> None:
    """Refuses what no launcher can have left where Lightning and we look for a process's number."""
    from deploy.errors import DeployError

    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "SLURM_PROCID", "JSM_NAMESPACE_RANK"):
        said = os.environ.get(name, "0")
        if not said.isdecimal():
            raise DeployError(f"The environment says {name}={said[:80]!r}, which is no number; unset {name}.")


def _launched(name: str, otherwise: int) -> int:
    """The number that a launcher left in the environment under `name`."""
    said = os.environ.get(name, "")
    return int(said) if said.isdecimal() else otherwise


def _first_to_fail() -> bool:
    """Whether no other process of the same run has said why it ends; else gives that one time to end first."""
    # A command that needs no torch is no part of a run, whatever the environment says.
    if _launched("WORLD_SIZE", 1) == 1 or "torch" not in sys.modules:
        return True
    from compress.train.ranks import may_speak

    if may_speak():
        return True
    _outlast()
    return False


def _outlast() -> None:
    """Waits a little: the launcher ends all processes when one has ended, and takes the first one's exit code."""
    time.sleep(3)


def _message(error: Exception) -> str:
    if hasattr(error, "format_message"):  # what the command line parser raises
        return f"{error.format_message()} (niwaki --help lists the commands and their options)"
    if isinstance(error, OSError):
        path = error.filename2 or error.filename  # what was to be replaced says more than what with
        where = f" {path}" if path else ""
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        remedy = "free some space" if full else "check that path and its permissions, or choose another folder"
        return f"{error.strerror or error}{where}; {remedy}."
    if isinstance(error, MemoryError):
        said = f" ({error})" if str(error) else ""
        return f"the memory does not suffice{said}; take a smaller batch or smaller images, or a larger machine."
    return str(error)


def _timed(paths: list[Path], batch: int, threads: int, rounds: int, runtime: str | None) -> Bench:
    """Opens the engines and times them on the same noise."""
    from contextlib import ExitStack

    import numpy as np

    import deploy
    from deploy.bench.records import Bench
    from deploy.engines import load_engine
    from deploy.errors import DeployError
    from deploy.onnx.metadata import About

    with ExitStack() as stack:
        engines = []
        for path in paths:
            load = deploy.load if path.is_dir() else load_engine
            engines.append(stack.enter_context(load(path, threads=threads, runtime=runtime)))
            engines[-1].name = str(path)
        inputs = {}
        for name, spec in engines[0].inputs.items():
            sizes = [size for size in spec.shape[1:] if size is not None]
            if len(sizes) != len(spec.shape[1:]):
                opened: Any = engines[0]
                said = opened.preprocessing if paths[0].is_dir() else About.of(paths[0]).preprocessing
                if said is None:
                    raise DeployError(
                        f"{paths[0]} leaves the size of '{name}' open and names no preprocessing; export it with one."
                    )
                sizes = list(said.shape)
            if spec.shape[:1] not in ((None,), (batch,)):
                way_out = (
                    f"give --batch {spec.shape[0]}" if spec.shape and spec.shape[0] else "export it with a free batch"
                )
                raise DeployError(f"{paths[0]} takes '{name}' as {spec}, which is no batch of {batch}; {way_out}.")
            if batch * math.prod(sizes) > _MOST_NUMBERS:
                raise DeployError(
                    f"{paths[0]} takes '{name}' as {spec}: too large to be timed with a batch of {batch}."
                )
            inputs[name] = np.random.default_rng(0).standard_normal((batch, *sizes)).astype(spec.dtype)
        records = deploy.benchmark(engines, inputs, rounds=rounds)
    settings = {"threads": threads, "batch": batch, "rounds": rounds}
    return Bench(name=paths[0].stem, settings=settings, records=tuple(records))


def _say(sentence: str) -> None:
    Terminal(stderr=True).print(f"niwaki: {plain(sentence)}", soft_wrap=True, markup=False)


def _importable_from_here() -> None:
    """A user's own `module:function` lies in the current folder, which an installed command does not search."""
    here = str(Path.cwd())
    if here not in sys.path:
        # Last: a torch.py that lies about must not become torch.
        sys.path.append(here)


def _need_torch(command: str, packages: tuple[str, ...]) -> None:
    from importlib.util import find_spec

    from compress.errors import MissingError

    missing = [name for name in packages if find_spec(name) is None]
    if missing:
        raise MissingError(
            f"niwaki {command} needs {', '.join(missing)}, not installed here; get the training side by: "
            "pip install 'niwaki[compress]'."
        )


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
