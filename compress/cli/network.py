"""The commands on a network, before anything is trained: inspect, and the criteria that channels are scored by."""

from __future__ import annotations

import json
import warnings
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from compress.cli.common import JsonFlag, QuietFlag, need, search_here
from compress.terminal import Terminal
from compress.trust import trusted_modules


def inspect(
    model: Annotated[str, typer.Argument(help="torchvision:NAME, niwaki:NAME, module:function, or a saved network.")],
    size: Annotated[int | None, typer.Option(min=1, max=8192, help="Height and width of the images.")] = None,
    protect: Annotated[
        list[str] | None, typer.Option(metavar="PATTERN", help="Keep all channels of these parameters; repeatable.")
    ] = None,
    trust: Annotated[
        list[str] | None, typer.Option(metavar="MODULE", help="Your own code that may be imported; repeatable.")
    ] = None,
    blocks: Annotated[bool, typer.Option("--blocks", help="List residual blocks that may go whole, too.")] = False,
    everything: Annotated[bool, typer.Option("--all", help="List every slot, name and attribute.")] = False,
    quiet: QuietFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Show which channels of a network can go, which must stay and why; needs no weights and no data."""
    need("inspect", ("torch", "torchvision", "scipy", "safetensors"))
    search_here()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from compress.cli.inspection import render
        from compress.models.named import named_network
        from compress.prune.inspection import inspect_model

        with Terminal(stderr=True, quiet=quiet).status(f"Tracing {escape(model)}"):
            found = named_network(model, size=size, trusted=trusted_modules(trust or ()))
            seen = inspect_model(
                found.model,
                found.example,
                name=model,
                forward=found.forward,
                protect=tuple(protect or ()),
                blocks=blocks,
            )
    if as_json:
        print(seen.model_dump_json(indent=1))
    elif not quiet:
        render(seen, Terminal(), everything=everything)


def criteria(as_json: JsonFlag = False) -> None:
    """List the criteria that score channels: what each needs, what it costs in passes over the data, and its paper."""
    need("criteria", ("torch", "scipy"))
    from compress.prune import CRITERIA

    rows = [
        {"name": name, "needs": one.needs, "cost": one.cost, "normalize": one.normalize, "paper": one.paper}
        for name, one in CRITERIA.items()
    ]
    if as_json:
        print(json.dumps(rows, indent=1))
        return
    shown = Table("name", "needs", "passes", "paper", title="Criteria", title_justify="left")
    for row in rows:
        shown.add_row(row["name"], row["needs"], row["cost"], row["paper"])
    Terminal().print(shown)
