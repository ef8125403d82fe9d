"""The commands that cut a network at hand: sensitivity, and prune."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import typer
from rich.markup import escape
from rich.table import Table

from compress.cli.common import JsonFlag, QuietFlag, need, remark_untrained, search_here
from compress.models.names import is_untrained
from compress.terminal import Terminal
from compress.trust import trusted_modules

if TYPE_CHECKING:
    from compress.prune import Sensitivity
    from compress.recipe.schema import PruneRecipe
    from compress.run.given import GivenImages, GivenNetwork
    from compress.run.progress import Ui
    from compress.run.pruned import PrunedFigures

_TRAINING_SIDE = ("torch", "torchvision", "scipy", "safetensors", "yaml", "lightning", "torchmetrics")

Model = Annotated[str, typer.Argument(help="torchvision:NAME, niwaki:NAME, module:function, or a saved network.")]
Data = Annotated[
    Path | None,
    typer.Option(
        metavar="FOLDER|RECIPE", help="Images: a folder of class folders or of images, or the data of a recipe."
    ),
]
Images = Annotated[int, typer.Option(min=8, max=100_000, help="How many images are used.")]
Weights = Annotated[
    str | None, typer.Option(metavar="DEFAULT|FILE", help="Weights for a network that is not a saved one.")
]
Size = Annotated[int | None, typer.Option(min=1, max=8192, help="Height and width of the images.")]
Protect = Annotated[
    list[str] | None, typer.Option(metavar="PATTERN", help="Keep all channels of these parameters; repeatable.")
]
Trust = Annotated[
    list[str] | None, typer.Option(metavar="MODULE", help="Your own code that may be imported; repeatable.")
]
Shares = Annotated[
    str | None,
    typer.Option(
        metavar="FROM.json|SHARE", help="A file of a sensitivity or of shares by pattern, or one share for all."
    ),
]
Bounds = Annotated[
    list[str] | None,
    typer.Option(
        metavar="KEY=VALUE",
        help="macs=0.5, macs=0.7,0.5, params=..., size=..., latency=..., max_drop=1; repeatable.",
    ),
]
TimedOn = Annotated[Literal["onnxruntime", "openvino"], typer.Option(help="Runtime that a latency is timed on.")]
TimedIn = Annotated[Literal["fp32", "int8"], typer.Option(help="Precision that a latency is timed in.")]
Threads = Annotated[int, typer.Option(min=1, max=1024, help="Threads of one timed run.")]
Batch = Annotated[int, typer.Option("--batch", min=1, max=4096, help="Images per timed run.")]
TimesOf = Annotated[Path | None, typer.Option(metavar="FILE", help="Layer times of a device, from niwaki profile.")]
Criterion = Annotated[
    str | None,
    typer.Option(help="What chooses the channels that go; by default kfac with --data, else l1."),
]
Seed = Annotated[int, typer.Option(min=0, help="Seed of everything random.")]
Repair = Annotated[
    bool | None,
    typer.Option(
        "--reconstruct/--no-reconstruct",
        help="Adjust what is left on the images by least squares; by default with --data.",
    ),
]


class _Asked(NamedTuple):
    """What a sensitivity is measured by."""

    criterion: str
    criteria: tuple[str, ...]
    protect: tuple[str, ...]
    ratios: tuple[float, ...]
    seed: int


def sensitivity(
    model: Annotated[str, typer.Argument(help="A network as for inspect, or a recipe that was run.")],
    data: Data = None,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where sensitivity.json and .svg go.")] = Path("sensitivity"),
    criterion: Criterion = None,
    ratios: Annotated[str, typer.Option(metavar="A,B,...", help="Shares of a group that go.")] = "0.25,0.5,0.75",
    criteria: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Correlate only these criteria; repeatable.")
    ] = None,
    images: Images = 256,
    size: Size = None,
    weights: Weights = None,
    protect: Protect = None,
    trust: Trust = None,
    seed: Seed = 0,
    quiet: QuietFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Cut each group alone, without training, and measure loss and accuracy; say which criteria predict it."""
    need("sensitivity", _TRAINING_SIDE)
    shares = _numbers(ratios, "--ratios")
    with _quiet_libraries():
        from compress.errors import ModelError
        from compress.run.progress import Ui

        name, source = _network_of(model, data, trust or ())
        network = _given(name, size, weights, trust or ())
        if is_untrained(name, weights):
            raise ModelError(f"{name} has random weights, which say nothing; add --weights DEFAULT or FILE.")
        looked_at = _images(source, network, images, seed, trust or ())
        chosen = criterion or _criterion_for(network, looked_at)
        asked = _Asked(chosen, _known([*(criteria or ()), chosen])[:-1], tuple(protect or ()), shares, seed)
        measured = _measured(network, looked_at, asked, Ui.choose(quiet=quiet, json=as_json))
        paths = _write(measured, out)
    if as_json:
        print(measured.model_dump_json(indent=1))
    elif not quiet:
        _show_sensitivity(measured, paths)


def prune(
    model: Model,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where the cut network goes; it must not exist yet.")],
    budget: Bounds = None,
    ratios: Shares = None,
    criterion: Criterion = None,
    scope: Annotated[str, typer.Option(help="global, group, isomorphic or per_mac.")] = "global",
    max_ratio: Annotated[float, typer.Option(help="The largest share of a group that goes.")] = 1.0,
    min_kept: Annotated[int, typer.Option(help="Channels that every group keeps.")] = 8,
    round_to: Annotated[int, typer.Option(help="Widths are multiples of this.")] = 8,
    reconstruct: Repair = None,
    runtime: TimedOn = "onnxruntime",
    precision: TimedIn = "fp32",
    threads: Threads = 1,
    batch: Batch = 1,
    table: TimesOf = None,
    data: Data = None,
    images: Images = 256,
    size: Size = None,
    weights: Weights = None,
    protect: Protect = None,
    trust: Trust = None,
    seed: Seed = 0,
    quiet: QuietFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Cut whole channels of a network, prove the cut and save what is left; nothing is trained."""
    need("prune", _TRAINING_SIDE)
    with _quiet_libraries():
        from compress.errors import RecipeError
        from compress.run.given_latency import TimedBy
        from compress.run.progress import Ui
        from compress.run.pruned import CutJob, several

        if out.exists():
            raise RecipeError(f"--out {out} already exists; name a new folder.")
        rest = {
            "criterion": criterion or "l1", "scope": scope, "max_ratio": max_ratio, "min_kept": min_kept,
            "round_to": round_to, "reconstruct": data is not None if reconstruct is None else reconstruct,
            "protect": tuple(protect or ()),
        }  # fmt: skip
        asked, curves = _asked(budget or (), ratios, rest)
        network = _given(model, size, weights, trust or ())
        remark_untrained(model, weights, quiet=quiet)
        looked_at = None if data is None else _images(data, network, images, seed, trust or ())
        if criterion is None:
            asked = asked.model_copy(update={"criterion": _criterion_for(network, looked_at)})
        timing = TimedBy(runtime, precision, threads, None if table is None else str(table), batch)
        job = CutJob(network, looked_at, asked, curves, seed, timing=timing)
        job.check()
        with Ui.choose(quiet=quiet, json=as_json).stage(1, 1, f"Cut {model}") as view:
            job = replace(job, advance=view.advance)
            found = several(job, asked.table, out) if len(asked.table) > 1 else [job.run(out)]
    if as_json:
        shown = [one.model_dump(mode="json") for one in found]
        print(json.dumps(shown if len(asked.table) > 1 else shown[0], indent=1))
    elif not quiet:
        _show_pruned(found)


# What was asked ----------------------------------------------------------------------------------------------


def _asked(budget: Sequence[str], ratios: str | None, rest: dict[str, Any]) -> tuple[PruneRecipe, Sensitivity | None]:
    """Turn the options into what a recipe's prune section holds, and the sensitivity where one was named."""
    from pydantic import ValidationError

    from compress.errors import RecipeError
    from compress.prune import Budget
    from compress.recipe.schema import PruneRecipe
    from compress.validation import explain

    bounds: dict[str, Any] = {}
    for item in budget:
        key, separator, text = item.partition("=")
        if not separator or not text:
            raise RecipeError(f"--budget {item[:80]} is not KEY=VALUE, such as macs=0.5.")
        if key not in Budget.model_fields:
            known = ", ".join(Budget.model_fields)
            raise RecipeError(f"--budget {item[:80]} has no known key; there are {known} (niwaki prune --help).")
        values = [_value(part) for part in text.split(",")]
        bounds[key] = values if len(values) > 1 else values[0]
    curves, by_pattern = _ratios(ratios)
    if by_pattern is None and not bounds:
        raise RecipeError("Nothing says how much to remove; add --budget macs=0.5, or --ratios FROM.json.")
    if by_pattern is not None and bounds:
        raise RecipeError("--ratios already says how much to remove; leave --budget out, or give a sensitivity.")
    given = {"ratio": by_pattern} if by_pattern is not None else {"budget": bounds}
    try:
        return PruneRecipe.model_validate({**rest, **given}), curves
    except ValidationError as error:
        raise RecipeError(f"{explain(error)}; niwaki prune --help says what each option takes.") from None


def _value(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text  # such as precision=int8


def _ratios(text: str | None) -> tuple[Sensitivity | None, Any]:
    """Read ``--ratios``: a share, or a file that holds a sensitivity or shares by pattern."""
    from compress.errors import RecipeError
    from compress.files import read_bytes
    from compress.prune import Sensitivity

    if text is None:
        return None, None
    share = _value(text)
    if isinstance(share, float):
        return None, share
    try:
        found = json.loads(read_bytes(Path(text)))
    except (ValueError, RecursionError) as error:
        raise RecipeError(f"--ratios {text} is not JSON ({error}); make it with niwaki sensitivity.") from None
    if isinstance(found, dict) and "curves" in found:
        return Sensitivity.from_json(json.dumps(found)), None
    return None, found


def _numbers(text: str, option: str) -> tuple[float, ...]:
    from compress.errors import RecipeError

    values = [_value(part) for part in text.split(",")]
    if not all(isinstance(value, float) and 0 < value < 1 for value in values):
        raise RecipeError(f"{option} {text[:80]} is not a list of shares above 0 and below 1, such as 0.25,0.5.")
    return tuple(sorted({float(value) for value in values}))


def _known(names: Sequence[str]) -> tuple[str, ...]:
    """Return criteria by name, all of them where only the last is given; raise RecipeError where one is unknown."""
    from compress.errors import RecipeError
    from compress.prune import CRITERIA

    for name in names:
        if name not in CRITERIA:
            raise RecipeError(f"No criterion is called '{name}'; there are {', '.join(CRITERIA)}.")
    return tuple(names) if len(names) > 1 else (*CRITERIA, *names)


# What is cut and looked at -----------------------------------------------------------------------------------


def _quiet_libraries() -> warnings.catch_warnings[None]:
    """Prepare the process as every command of the training side does; libraries warn their developers."""
    search_here()
    os.environ.setdefault("GOMP_SPINCOUNT", "5000")
    return warnings.catch_warnings(action="ignore")


def _network_of(model: str, data: Path | None, trust: Sequence[str]) -> tuple[str, Path]:
    """Return the network and the data that a name stands for: of a recipe its teacher, where it was run."""
    from compress.errors import RecipeError

    if Path(model).suffix in (".yaml", ".yml"):
        recipe = _recipe(Path(model), trust)
        teacher = Path("runs") / recipe.name / "teacher"
        if not (teacher / "model.json").is_file():
            raise RecipeError(
                f"There is no trained network of {model} in {teacher}; run it first, or name a saved network and "
                f"--data {model}."
            )
        return str(teacher), data or Path(model)
    if data is None:
        raise RecipeError("There are no images to measure on; add --data FOLDER or --data RECIPE.")
    return model, data


def _recipe(path: Path, trust: Sequence[str]) -> Any:
    from compress.recipe.loading import load_recipe

    return load_recipe(path, trusted=trusted_modules(trust))


def _given(name: str, size: int | None, weights: str | None, trust: Sequence[str]) -> GivenNetwork:
    from compress.run.given import given_network

    return given_network(name, size=size, weights=weights, trusted=trusted_modules(trust))


def _criterion_for(network: GivenNetwork, images: GivenImages | None) -> str:
    """Return what a recipe takes by default where there are images, for boxes and masks with their targets."""
    from compress.recipe.schema import STUDIED, PruneRecipe

    studied = images is not None and (network.about.task == "classification" or images.task is not None)
    return str(STUDIED["criterion"]) if studied else PruneRecipe().criterion


def _images(source: Path, network: GivenNetwork, count: int, seed: int, trust: Sequence[str]) -> GivenImages:
    from compress.run.given import images_in, images_of

    if source.suffix in (".yaml", ".yml"):
        return images_of(_recipe(source, trust), count, seed)
    return images_in(source, network, count, seed)


def _measured(
    network: GivenNetwork,
    images: GivenImages,
    asked: _Asked,
    ui: Ui,
) -> Sensitivity:
    """Trace the network, cut each group alone and measure, then hold the criteria against that."""
    from compress.run.given import trace_of
    from compress.run.scoring import pairs
    from compress.run.sensitivity import sensitivity_of

    trace = trace_of(network, asked.protect)
    with ui.stage(1, 1, "Cut each group alone and measure") as view:
        return sensitivity_of(
            trace,
            network.model,
            lambda name: images.scores(trace, network.model, name, asked.seed),
            images.measure(),
            data=pairs(images.judging),
            criterion=asked.criterion,
            metric=network.task.title,
            ratios=asked.ratios,
            criteria=asked.criteria,
            advance=view.advance,
        )


# What came of it ---------------------------------------------------------------------------------------------


def _write(measured: Sensitivity, folder: Path) -> list[Path]:
    """Write the figures and the plot; return where they are."""
    from compress.files import write_text
    from compress.run.sensitivity import SENSITIVITY
    from deploy.report.sensitivity import curves_file

    folder.mkdir(parents=True, exist_ok=True)
    drawing = curves_file(measured.model_dump())
    texts = {SENSITIVITY: measured.model_dump_json(indent=1) + "\n", "sensitivity.svg": drawing}
    for name, text in texts.items():
        write_text(folder / name, text)
    return [folder / name for name in texts]


def _show_sensitivity(measured: Sensitivity, paths: Sequence[Path]) -> None:
    """Print the groups, the dearest first, and how well each criterion foresaw it."""
    key = "loss" if measured.accuracy is None else "accuracy"
    whole = getattr(measured, key)
    shown = Table("group", "channels", *_ratios_of(measured), title=_title(measured, key), title_justify="left")
    for column in shown.columns[1:]:
        column.justify = "right"
    sign = -1 if key == "loss" else 1
    for curve in sorted(measured.curves, key=lambda curve: sign * getattr(curve.cells[-1], key)):
        said = [f"{cell.ratio:.0%}: {_shown(getattr(cell, key), whole, key)}" for cell in curve.cells]
        shown.add_row(escape(curve.group), str(curve.channels), *said)
    console = Terminal()
    console.print(shown)
    known = sorted(((v, n) for n, v in measured.correlations.items() if v is not None), reverse=True)
    if known:
        listed = ", ".join(f"{name} {value:+.2f}" for value, name in known)
        console.print(f"Rank correlation with the rise of the loss: {listed}", soft_wrap=True, markup=False)
        console.print(
            "That is who foresees single cuts that nothing repairs. Who keeps most after a whole cut is another "
            "question: niwaki docs choosing.",
            soft_wrap=True,
            markup=False,
        )
    for path in paths:
        console.print(f"Written  {path}", soft_wrap=True, markup=False)


def _ratios_of(measured: Sensitivity) -> list[str]:
    """Return headings for as many cuts as the group with most of them has."""
    return [f"cut {number}" for number in range(1, max(len(curve.cells) for curve in measured.curves) + 1)]


def _title(measured: Sensitivity, key: str) -> str:
    whole = f"{measured.loss:.4g}" if key == "loss" else f"{100 * (measured.accuracy or 0):.1f} %"
    name = "loss" if key == "loss" else measured.metric
    how = f"{'change' if key == 'loss' else 'change in points'} with one group cut, by {measured.criterion}"
    return f"{name} on {measured.images} images, whole network {whole}: {how}"


def _shown(value: float, whole: float, key: str) -> str:
    return f"{value - whole:+.3g}" if key == "loss" else f"{100 * (value - whole):+.1f}"


def _show_pruned(found: Sequence[PrunedFigures]) -> None:
    """Print a row for each network."""
    shown = Table("network", "MACs", "parameters", title=f"cut = masked within {max(f.proof for f in found):.0e}")
    measured = all(one.accuracy is not None for one in found)
    if measured:
        shown.add_column(f"{found[0].metric} on {found[0].images} images, before → after")
    if all(one.reconstruction is not None for one in found):
        measures = {(one.reconstruction or {}).get("measure") for one in found}
        what = "KL divergence from" if measures == {"kl"} else "relative squared error against"
        shown.add_column(f"{what} the whole network, cut → repaired")
    for one in found:
        row = [
            escape(one.out),
            f"{one.macs[1] / 1e6:.1f} M ({100 * one.share:.1f} %)",
            f"{one.params[1] / 1e3:.0f} k ({100 * one.params[1] / one.params[0]:.1f} %)",
        ]
        if measured and one.accuracy is not None:
            row.append(f"{100 * one.accuracy[0]:.1f} % → {100 * one.accuracy[1]:.1f} %")
        if one.reconstruction is not None:
            row.append(f"{one.reconstruction['before']:.3g} → {one.reconstruction['after']:.3g}")
        shown.add_row(*row)
    console = Terminal()
    console.print(shown)
    for one in found:
        if one.latency is not None:
            console.print(one.latency, soft_wrap=True, markup=False)
