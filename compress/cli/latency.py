"""The commands on milliseconds: profile fills tables of layer times, explain says where a network's time goes."""

from __future__ import annotations

import json
import shlex
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.markup import escape
from rich.table import Table as Shown

from compress.cli.common import JsonFlag, QuietFlag, need, replaceable, search_here
from compress.errors import RecipeError
from compress.terminal import Terminal, plain
from compress.trust import trusted_modules

if TYPE_CHECKING:
    from compress.prune import Plan
    from deploy.latency.explain import Explanation
    from deploy.latency.table import Table

Runtimes = Annotated[
    list[str] | None, typer.Option("--runtime", metavar="NAME", help="onnxruntime or openvino; repeatable.")
]


def profile(
    subject: Annotated[
        str, typer.Argument(help="With --bundle a network or a plan; else a folder that --bundle made.")
    ],
    bundle: Annotated[Path | None, typer.Option(metavar="DIR", help="Make this folder for a device.")] = None,
    model: Annotated[str | None, typer.Option(metavar="NETWORK", help="The network that a plan is for.")] = None,
    precision: Annotated[Literal["fp32", "int8"], typer.Option(help="The precision that ships.")] = "fp32",
    threads: Annotated[int, typer.Option(min=1, max=1024, help="Threads of each engine.")] = 1,
    batch: Annotated[int, typer.Option(min=1, max=4096, help="Images per run.")] = 1,
    runtime: Runtimes = None,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="The table; DIR/latency.json by default.")] = None,
    size: Annotated[int | None, typer.Option(min=1, max=8192, help="Height and width of the images.")] = None,
    trust: Annotated[
        list[str] | None, typer.Option(metavar="MODULE", help="Your own code that may be imported; repeatable.")
    ] = None,
    quiet: QuietFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Measure the layers of a network at many widths: make a folder of files, or time one; timing needs no torch."""
    if bundle is None:
        path, table = _timed(Path(subject), runtime or [], out, quiet=quiet or as_json)
        if as_json:
            print(json.dumps({"table": str(path), "entries": len(table.entries), "seconds": table.seconds}))
        elif not quiet:
            said = f"{len(table.entries)} layers in {table.seconds:.0f} s: {path}"
            Terminal().print(plain(said), soft_wrap=True, markup=False)
            _say_noise([load for entry in table.entries for load in entry.load])
        return
    need("profile --bundle", ("torch", "torchvision", "scipy", "safetensors", "onnx"))
    search_here()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from compress.models.named import named_network
        from compress.run.profiling import write_profile_folder

        plan = _plan(subject)
        if plan is not None and model is None:
            raise RecipeError(f"{subject} is a plan; name the network that it is for with --model.")
        name = subject if plan is None else str(model)
        with Terminal(stderr=True, quiet=quiet).status(f"Writing the layers of {escape(name)}"):
            network = named_network(name, size=size, trusted=trusted_modules(trust or ()))
            listed = write_profile_folder(
                network,
                bundle,
                plan=plan,
                precision=precision,
                runtimes=tuple(runtime or ("onnxruntime",)),
                threads=threads,
                batch=batch,
            )
    if as_json:
        print(json.dumps({"folder": str(bundle), "files": len(listed.probes) + len(listed.networks)}))
    elif not quiet:
        said = (
            f"{len(listed.probes)} layers and {len(listed.networks)} networks: {bundle}; on the device: niwaki profile"
        )
        Terminal().print(plain(f"{said} {bundle.name}"), soft_wrap=True, markup=False)


def explain(
    engines: Annotated[list[Path], typer.Argument(help="One ONNX file or bundle; or two, before and after a cut.")],
    runtime: Annotated[
        str, typer.Option(help="onnxruntime or openvino; tensorrt for profiles that trtexec exported.")
    ] = "onnxruntime",
    threads: Annotated[int, typer.Option(min=1, max=1024, help="Threads of each engine.")] = 1,
    everything: Annotated[bool, typer.Option("--all", help="Also list layers that take almost no time.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Say layer by layer where the time goes and why a cut brings less than expected; needs no torch."""
    from deploy.latency.explain import explain_files
    from deploy.latency.tensorrt import explain_profiles

    if len(engines) > 2:
        raise typer.BadParameter(f"{len(engines)} engines were given; name one, or two: before and after")
    if runtime == "tensorrt":
        *before, after = engines
        found = explain_profiles(after, before[0] if before else None)
    else:
        *before, after = map(_file, engines)
        found = explain_files(after, before[0] if before else None, runtime=runtime, threads=threads)
    if as_json:
        print(found.model_dump_json(indent=1))
        return
    console = Terminal()
    console.print(explained_table(found, everything=everything))
    whole = (
        f"{found.after_ms:.3f} ms" if found.before_ms is None else f"{found.before_ms:.3f} to {found.after_ms:.3f} ms"
    )
    parts = ", ".join(f"{reason} {100 * ms / found.layers_ms:.0f} %" for reason, ms in found.by_reason().items())
    said = f"{whole} (its layers {found.layers_ms:.3f} ms, each at its best); {parts or 'nothing holds it up'}"
    console.print(plain(said), soft_wrap=True, markup=False)
    _say_noise(found.load)


def _say_noise(load: Sequence[float]) -> None:
    """Say so where the machine was busy while layers were timed."""
    from deploy.bench.conditions import Conditions

    if (noise := Conditions.of_load(load).noise()) is not None:
        said = f"The machine was noisy ({noise}): these are best times, but measure again."
        Terminal().print(said, soft_wrap=True, markup=False)


def explained_table(found: Explanation, *, everything: bool = False) -> Shown:
    """Return the layers that take time, in the order in which they run."""
    times_of = ["time"] if found.before is None else ["before", "expected", "now"]
    title = f"{found.runtime}, {found.threads} thread{'' if found.threads == 1 else 's'}"
    shown = Shown("layer", "widths", *times_of, "why", title=title)
    least = 0.0 if everything else 0.005 * found.layers_ms
    for row in found.rows:
        if row.after_ms >= least:
            times = [_ms(ms) for ms in (row.before_ms, row.expected_ms, row.after_ms)][-len(times_of) :]
            why = f"{row.reason}: {row.said}" if row.reason else ""
            shown.add_row(escape(row.name[-40:]), row.widths, *times, escape(why))
    return shown


def _ms(value: float | None) -> str:
    return "" if value is None else f"{value:.3f} ms"


def _file(path: Path) -> Path:
    """Return the ONNX file of a bundle that its manifest prefers, or the file itself."""
    if not path.is_dir():
        return path
    import deploy

    with deploy.load(path) as bundle:
        inner = bundle.path
    if inner is None or inner.suffix != ".onnx":
        raise RecipeError(f"{path} does not run an ONNX file here; name the ONNX file to explain.")
    return inner


def _plan(subject: str) -> Plan | None:
    """Read a plan; None where the subject is a network."""
    from compress.files import read_bytes
    from compress.prune import Plan

    path = Path(subject)
    return Plan.from_json(read_bytes(path).decode()) if path.is_file() and path.suffix == ".json" else None


def _timed(folder: Path, runtimes: list[str], out: Path | None, *, quiet: bool) -> tuple[Path, Table]:
    """Time a folder and write its table."""
    from deploy.latency.profile import profile_folder

    if not folder.is_dir() or not (folder / "profile.json").is_file():
        command = f"niwaki profile {shlex.quote(str(folder))} --bundle DIR"
        raise RecipeError(f"{folder} holds no profile.json; make one with {command} first.")
    path = replaceable(out or folder / "latency.json", ".json")
    with Terminal(stderr=True, quiet=quiet).status("Timing layers"):
        table = profile_folder(folder, runtimes=runtimes)
    table.write(path)
    return path, table
