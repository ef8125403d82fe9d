"""The command gate; it needs no torch."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from compress.cli.common import JsonFlag, replaceable
from compress.cli.timing import timed
from compress.files import write_text
from compress.terminal import Terminal, plain

if TYPE_CHECKING:
    from deploy.bench.findings import GateFinding, GateResult
    from deploy.bench.records import Bench

_ROUNDS = 50


def gate(
    record: Annotated[Path, typer.Argument(help="A bench.json.")],
    baseline: Annotated[Path, typer.Option(help="The bench.json to compare it with.")],
    latency_tolerance: Annotated[
        float, typer.Option(min=0.0, help="How much the ratio to dense may grow, as a share of it.")
    ] = 0.05,
    accuracy_tolerance: Annotated[
        float, typer.Option(min=0.0, help="How much accuracy may fall, as a share of 1.")
    ] = 0.01,
    tolerance: Annotated[
        list[str] | None,
        typer.Option(metavar="WHAT=NUMBER", help="Tolerance of absolute, tail, size, memory or parity; repeatable."),
    ] = None,
    allow: Annotated[
        list[str] | None, typer.Option(metavar="WHAT", help="Show it without failing, such as threads; repeatable.")
    ] = None,
    only: Annotated[list[str] | None, typer.Option(metavar="NAME", help="Judge only this record; repeatable.")] = None,
    engines: Annotated[
        list[Path] | None,
        typer.Option(help="Files or folders with the engines, to time again what is in doubt; repeatable."),
    ] = None,
    repeats: Annotated[int, typer.Option(min=0, max=20, help="How many times it is timed again, at most.")] = 3,
    update_baseline: Annotated[
        bool, typer.Option("--update-baseline", help="Show what changed, then make the record the baseline; exit 0.")
    ] = False,
    summary: Annotated[
        Path | None, typer.Option(help="Append a short page in Markdown, such as to $GITHUB_STEP_SUMMARY.")
    ] = None,
    junit: Annotated[Path | None, typer.Option(help="Write JUnit XML to this file.")] = None,
    annotate: Annotated[bool, typer.Option("--annotate", help="Print annotations for GitHub Actions.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Exit 1 when latency (as a ratio to dense), accuracy or size is worse than a baseline allows.

    What is in doubt is timed again before it fails, if the engines are found beside the record, in its folder deploy,
    or where --engines says.
    """
    from deploy.bench import formats
    from deploy.bench.records import Bench

    if junit is not None:
        replaceable(junit, ".xml")
    now = Bench.from_file(record)
    tolerances = _tolerances(latency_tolerance, accuracy_tolerance, tolerance or [], allow or [])
    if update_baseline and not baseline.exists():
        _replace(baseline, now)
        return
    folders = [*(engines or []), record.parent, record.parent / "deploy"]
    most = 0 if update_baseline else repeats
    result = _judge(now, Bench.from_file(baseline), tolerances, only or [], _sitting(now, folders), most)
    _tell(result, summary, junit, as_json=as_json)
    if annotate:
        print(formats.github_lines(result, str(record)), end="", file=sys.stderr if as_json else sys.stdout)
    if update_baseline:
        _replace(baseline, now, quiet=as_json)
    elif not result.passed:
        raise typer.Exit(1)


def schema(
    record: Annotated[
        Path | None, typer.Argument(help="A bench.json to check; without it the schema is printed.")
    ] = None,
) -> None:
    """Print the JSON schema of a bench.json, or check a file against it."""
    from deploy.bench.schema import schema_text, validate

    if record is None:
        print(schema_text(), end="")
    else:
        found = validate(record)
        print(f"{plain(record)} is a {found.format} of {len(found.records)} records.")


def _judge(
    now: Bench, past: Bench, tolerances: Any, only: list[str], sit: Callable[[], Bench] | None, most: int
) -> GateResult:
    import deploy
    from deploy.bench.again import gate_again

    return gate_again(
        now, lambda measured: deploy.gate(measured, past, tolerances=tolerances, only=only), sit, most=most
    )


def _tell(result: GateResult, summary: Path | None, junit: Path | None, *, as_json: bool) -> None:
    """Print the verdict, and write it where asked."""
    from deploy.bench import formats

    if summary is not None:
        with summary.open("a", encoding="utf-8") as file:  # a step's summary is what all its commands added
            file.write(formats.markdown(result))
    if junit is not None:
        write_text(junit, formats.junit(result))
    if as_json:
        print(result.model_dump_json(indent=1))
    else:
        _show(result)


def _replace(baseline: Path, record: Bench, *, quiet: bool = False) -> None:
    """Make a record the baseline."""
    from deploy.errors import DeployError

    if not any(one.status == "measured" for one in record.records):
        raise DeployError(
            f"The record {record.name!r} measured nothing, so it cannot be a baseline; run `niwaki bench`."
        )
    write_text(baseline, record.to_json())
    if not quiet:
        print(f"{plain(baseline)} now holds {len(record.records)} records of {plain(record.name)}.")


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
    from deploy.bench.feeding import Feeding
    from deploy.bench.places import find_engines

    measured = [one for one in record.records if one.status == "measured"]
    batches = list(dict.fromkeys(one.batch for one in measured))
    found = find_engines(record, folders) or []
    reference = next((one.reference for one in measured), None)
    # What refers to another network, such as the same one on another runtime, was timed in another sitting.
    referred = {one.reference for one in measured if one.batch == batches[0]} - {reference}
    places = [
        place
        for place, one in zip(found, measured, strict=False)
        if one.batch == batches[0] and one.reference not in referred
    ]
    if reference not in {place.name for place in places}:
        return None
    # The reference is what is timed against, and comes first.
    ordered = sorted(places, key=lambda place: place.name != reference)
    threads = record.settings.get("threads")
    threads = threads if isinstance(threads, int) and 0 <= threads <= 1024 else 1
    feeding = Feeding.from_settings(record.settings)
    return lambda: timed(ordered, batches, threads, _ROUNDS, isolate=1, feeding=feeding)


def _show(result: GateResult) -> None:
    from deploy.bench.formats import figures, remarks

    columns = ("engine", "what", "now", "baseline", "limit", "")
    shown = Table(*columns, title="Gate", title_justify="left")
    shown.columns[0].overflow = "fold"
    for line in result.lines:
        shown.add_row(escape(line.name), line.what, *map(escape, figures(line)), _verdict(line))
    console = Terminal()
    console.print(shown)
    for ok, style in ((True, ""), (False, "red")):
        for remark in remarks(line for line in result.lines if line.ok is ok):
            console.print(f"{remark}.", markup=False, style=style)
    if result.repeats:
        console.print(f"Timed again {result.repeats} time{'s' if result.repeats > 1 else ''} before this verdict.")
    elif result.doubtful():
        said = "What fails is in doubt, but its engines were not found to time them again; name them with --engines."
        console.print(said, style="yellow")
    console.print("passed" if result.passed else "failed", style="green" if result.passed else "bold red")


def _verdict(line: GateFinding) -> str:
    return "[bold red]FAILS[/]" if not line.ok else "[yellow]note[/]" if line.note else "ok"
