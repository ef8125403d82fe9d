"""The commands on a network, before anything is trained: inspect."""

from __future__ import annotations

import warnings
from typing import Annotated

import typer
from rich.markup import escape

from compress.cli.common import JsonFlag, QuietFlag, need, search_here
from compress.terminal import Terminal
from compress.trust import trusted_modules


def inspect(
    model: Annotated[str, typer.Argument(help="torchvision:NAME, niwaki:NAME, module:function, or a saved network.")],
    size: Annotated[int | None, typer.Option(min=1, max=8192, help="Height and width of the images.")] = None,
    protect: Annotated[
        list[str] | None, typer.Option(metavar="PATTERN", help="Keep what touches these parameters; repeatable.")
    ] = None,
    trust: Annotated[
        list[str] | None, typer.Option(metavar="MODULE", help="Code that a saved network may import; repeatable.")
    ] = None,
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
                found.model, found.example, name=model, forward=found.forward, protect=tuple(protect or ())
            )
    if as_json:
        print(seen.model_dump_json(indent=1))
    elif not quiet:
        render(seen, Terminal(), everything=everything)
