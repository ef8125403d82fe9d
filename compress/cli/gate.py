"""The command gate; it needs no torch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from compress.cli.bench import timed
from compress.cli.common import JsonFlag
from compress.terminal import Terminal

if TYPE_CHECKING:
    from deploy.bench.findings import GateFinding, GateResult
    from deploy.bench.records import Bench

_ROUNDS = 50


def gate(
    record: Annotated[Path, typer.Argument(help="A bench.json.")],
    baseline: Annotated[Path, typer.Option(help="The bench.json to hold it against.")],
    latency_tolerance: Annotated[
        float, typer.Option(min=0.0, help="How much the ratio to dense may grow, relatively.")
    ] = 0.05,
    accuracy_tolerance: Annotated[
        float, typer.Option(min=0.0, help="How much accuracy may fall, as a share of 1.")
    ] = 0.01,
    tolerance: Annotated[
        list[str] | None,
        typer.Option(metavar="WHAT=NUMBER", help="Of absolute, tail, size, memory or parity; repeatable."),
    ] = None,
    allow: Annotated[
        list[str] | None, typer.Option(metavar="WHAT", help="Show it and do not hold it, such as threads; repeatable.")
    ] = None,
    only: Annotated[list[str] | None, typer.Option(metavar="NAME", help="Hold this record alone; repeatable.")] = None,
    engines: Annotated[
        list[Path] | None,
        typer.Option(help="Files or folders with the engines, to time again what is in doubt; repeatable."),
    ] = None,
    repeats: Annotated[int, typer.Option(min=0, max=20, help="How often at most is timed again.")] = 3,
    as_json: JsonFlag = False,
) -> None:
    """Exit 1 when latency (as a ratio to dense), accuracy or size is worse than a baseline allows.

    What is in doubt is timed again before it fails, where the engines are found: beside the record, in its folder
    deploy, or where --engines says.
    """
    import deploy
    from deploy.bench.again import gate_again
    from deploy.bench.records import Bench

    now, past = Bench.from_file(record), Bench.from_file(baseline)
    tolerances = _tolerances(latency_tolerance, accuracy_tolerance, tolerance or [], allow or [])
    folders = [*(engines or []), record.parent, record.parent / "deploy"]
    result = gate_again(
        now,
        lambda measured: deploy.gate(measured, past, tolerances=tolerances, only=only or ()),
        _sitting(now, folders),
        most=repeats,
    )
    if as_json:
        print(result.model_dump_json(indent=1))
    else:
        _show(result)
    if not result.passed:
        raise typer.Exit(1)


def _tolerances(latency: float, accuracy: float, said: list[str], allow: list[str]) -> Any:
    """Return the tolerances; refuse what is no WHAT=NUMBER."""
    from deploy.bench.tolerances import Tolerances
    from deploy.errors import DeployError

    known = [name for name in Tolerances.model_fields if name not in ("latency", "accuracy", "allow")]
    given: dict[str, float] = {}
    for one in said:
        what, _, number = one.partition("=")
        try:
            given[what] = float(number)
        except ValueError:
            what = ""
        if what not in known:
            raise DeployError(f"--tolerance is {one!r}; give WHAT=NUMBER, with WHAT among {', '.join(known)}.")
    return Tolerances(latency=latency, accuracy=accuracy, allow=frozenset(allow), **given)


def _sitting(record: Bench, folders: list[Path]) -> Callable[[], Bench] | None:
    """Return what times the record's engines again, in a fresh process; None where they are not all found."""
    from deploy.bench.places import find_engines

    measured = [one for one in record.records if one.status == "measured"]
    places = find_engines(record, folders)
    reference = next((one.reference for one in measured), None)
    if places is None or len({one.batch for one in measured}) != 1 or reference not in {one.name for one in places}:
        return None
    # The reference is what is timed against, and comes first.
    ordered = sorted(places, key=lambda place: place.name != reference)
    threads = record.settings.get("threads")
    threads = threads if isinstance(threads, int) and 0 <= threads <= 1024 else 1
    return lambda: timed(ordered, measured[0].batch, threads, _ROUNDS, isolate=1)


def _show(result: GateResult) -> None:
    columns = ("engine", "what", "now", "baseline", "limit", "")
    shown = Table(*columns, title="Gate", title_justify="left")
    shown.columns[0].overflow = "fold"
    for line in result.lines:
        values = [_short(v) for v in (line.value, line.baseline, line.limit)]
        shown.add_row(escape(line.name), line.what, *map(escape, values), _verdict(line))
    console = Terminal()
    console.print(shown)
    for line in result.lines:
        if line.note:
            console.print(f"{line.name}, {line.what}: {line.note}.", markup=False, style="" if line.ok else "red")
    if result.repeats:
        console.print(f"Timed again {result.repeats} time{'s' if result.repeats > 1 else ''} before this was said.")
    elif result.doubtful():
        said = "What fails is in doubt, and its engines were not found to time them again: name them by --engines."
        console.print(said, style="yellow")
    console.print("passed" if result.passed else "failed", style="green" if result.passed else "bold red")


def _verdict(line: GateFinding) -> str:
    return "[bold red]FAILS[/]" if not line.ok else "[yellow]note[/]" if line.note else "ok"


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else "–" if value is None else str(value)
