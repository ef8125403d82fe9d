"""The command ``niwaki run``: everything that a recipe asks for, in one process or in several."""

from __future__ import annotations

import json
import os
import shlex
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from compress.cli.common import JsonFlag, QuietFlag, launched, need, search_here
from compress.terminal import Terminal
from compress.trust import trusted_modules
from deploy.engines.cores import cpu_quota, usable_cores

if TYPE_CHECKING:
    from compress.recipe.schema import Recipe
    from compress.run.progress import Ui

_NUMBERS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "SLURM_PROCID", "JSM_NAMESPACE_RANK")


def run(
    recipe: Annotated[Path, typer.Argument(help="A recipe, such as recipes/digits.yaml.")],
    out: Annotated[Path | None, typer.Option(help="The run folder; runs/NAME by default.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in --out.")] = False,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a key of the recipe; repeatable.")
    ] = None,
    devices: Annotated[
        int, typer.Option(min=1, max=1024, help="Processes that train together, one per GPU or share of the cores.")
    ] = 1,
    table: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Layer times of the device, from niwaki profile.")
    ] = None,
    trust: Annotated[
        list[str] | None, typer.Option(metavar="MODULE", help="Your own code that the recipe may call; repeatable.")
    ] = None,
    quiet: QuietFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Do everything that a recipe asks for: teacher, student, engines, records, report, bundle."""
    need("run", ("torch", "yaml", "lightning", "nncf"))
    search_here()
    _check_launcher()
    if table is not None:
        overrides = [*(overrides or []), f"prune.latency_table={json.dumps(str(table))}"]
    # OpenMP's threads wait by spinning; on a machine that does other work too, that costs a factor of ten.
    os.environ.setdefault("GOMP_SPINCOUNT", "5000")
    if cpu_quota() is not None:  # of which torch knows nothing
        os.environ.setdefault("OMP_NUM_THREADS", str(usable_cores()))
    if devices > 1:
        arguments = [str(recipe), *(part for override in overrides or [] for part in ("--set", override))]
        arguments += [part for module in trust or [] for part in ("--trust", module)]
        arguments += [] if out is None else ["--out", str(out)]
        flags = {"--resume": resume, "--quiet": quiet, "--json": as_json}
        _in_several_processes(devices, [*arguments, *(flag for flag, given in flags.items() if given)])
    with warnings.catch_warnings():
        # Libraries warn their developers; a user can do nothing about it.
        warnings.simplefilter("ignore")
        from compress import run as runs
        from compress.recipe.loading import load_recipe
        from compress.run.acceptance import check_accepted
        from compress.run.progress import Ui

        asked = load_recipe(recipe, overrides or [], trusted=trusted_modules(trust or ()))
        folder = out or Path("runs") / asked.name
        first = launched("RANK", 0) == 0
        ui = Ui.choose(quiet=quiet or not first, json=as_json)
        if asked.prune.table:
            _several(asked, folder, ui, resume=resume, as_json=as_json)
            return
        report = runs.run(asked, folder, ui, resume=resume)
    if first:
        _show(asked, folder, report, quiet=quiet, as_json=as_json)
        check_accepted(asked, folder)


def _several(recipe: Recipe, folder: Path, ui: Ui, *, resume: bool, as_json: bool) -> None:
    """Run a recipe that asks for several networks of one teacher and print their table."""
    from compress.errors import RecipeError
    from compress.files import write_json
    from compress.run.acceptance import check_accepted
    from compress.run.several import parts, run_several
    from compress.run.summary import summary_of_several, table_of_several
    from deploy.bench.conditions import noisy_line

    if launched("WORLD_SIZE", 1) > 1:
        raise RecipeError("A table of networks (budget.macs is a list) runs in one process; give one share per run.")
    folders = run_several(recipe, folder, ui, resume=resume)
    found = summary_of_several(folders)
    write_json(folder / "table.json", found)
    if as_json:
        print(json.dumps(found, indent=1))
    elif ui.style != "quiet":
        Terminal().print(table_of_several(found))
        if (noise := next((one["noise"] for one in found if one["noise"] is not None), None)) is not None:
            Terminal().print(noisy_line(noise), soft_wrap=True, markup=False)
    for part, own in zip(parts(recipe).values(), folders, strict=True):
        check_accepted(part, own)


def _show(recipe: Recipe, folder: Path, report: Path, *, quiet: bool, as_json: bool) -> None:
    """Print what the run came to, and what to do with it."""
    from compress.run.summary import summary, table
    from deploy.bench.conditions import noisy_line
    from deploy.bench.shipping import ShipDecision

    figures = summary(folder)
    if as_json:
        print(json.dumps(figures, indent=1))
    elif not quiet:
        console = Terminal()
        console.print(table(figures))
        if figures["noise"] is not None:
            console.print(noisy_line(figures["noise"]), soft_wrap=True, markup=False)
        console.print(f"\nReport   {report}", soft_wrap=True, markup=False)
        if recipe.deploy is None:
            said = f"Student  {folder / 'student'} (--resume with a deploy section makes engines and the bundle)"
            console.print(said, soft_wrap=True, markup=False)
            return
        if (decided := figures.get("shipping")) is not None:
            shipping = ShipDecision.model_validate(decided)
            console.print(f"Ships    {str(shipping).removeprefix('ships ')}", soft_wrap=True, markup=False)
        bundle, samples = (shlex.quote(str(folder / name)) for name in ("bundle", "samples"))
        prefix = f"niwaki predict {bundle} {samples}/*.png"
        console.print(f"Predict  {prefix}", soft_wrap=True, markup=False)
        gate = f"niwaki gate NEWER/bench.json --baseline {shlex.quote(str(folder / 'bench.json'))}"
        console.print(f"Gate     {gate}", soft_wrap=True, markup=False)
        console.print("         where NEWER is the folder of a later run", soft_wrap=True, markup=False)


def _in_several_processes(devices: int, arguments: list[str]) -> NoReturn:
    """Run the same command in each of ``devices`` processes and end with their exit code."""
    if "WORLD_SIZE" in os.environ:
        raise typer.BadParameter("is for a run that no launcher started; torchrun says itself how many processes run")
    from compress.run.launch import launch

    raise typer.Exit(launch(devices, arguments))


def _check_launcher() -> None:
    """Raise DeployError where the environment holds, for a process's number, what no launcher leaves there."""
    from deploy.errors import DeployError

    for name in _NUMBERS:
        said = os.environ.get(name, "0")
        if not said.isdecimal():
            raise DeployError(f"The environment says {name}={said[:80]!r}, which is not a number; unset {name}.")
