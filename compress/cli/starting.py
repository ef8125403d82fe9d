"""The command ``niwaki init``: a recipe for a folder of one's own data."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Annotated

import typer

from compress.cli.common import JsonFlag, QuietFlag, need
from compress.terminal import plain


def init(
    photos: Annotated[Path, typer.Argument(help="A folder of class folders, of images with boxes, or with masks.")],
    out: Annotated[Path | None, typer.Option(help="The recipe; NAME.yaml in the current folder by default.")] = None,
    weights: Annotated[
        str | None,
        typer.Option(help="Weights that training starts from: DEFAULT, a file or none; by default those that fit."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing recipe.")] = False,
    quiet: QuietFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Look at a folder of data and write a commented recipe that fits it."""
    need("init", ("torch", "yaml"))
    from compress.errors import RecipeError
    from compress.files import write_text
    from compress.recipe.loading import load_recipe
    from compress.recipe.presets import look, recipe_for

    found = look(photos)
    called = photos.resolve().name if out is None else out.stem
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", called).strip("-._") or "photos"
    path = out or Path(f"{name}.yaml")
    if path.exists() and not force:
        kept = f", or keep it and run it with --set model.weights={shlex.quote(weights)}" if weights else ""
        raise RecipeError(f"{path} already exists; give --force to replace it, or another --out{kept}.")
    # Torchvision has weights for its classifiers; ours start from a classifier's by a local file.
    fitting = "DEFAULT" if found.task == "classification" else "none"
    chosen = weights or fitting
    text = recipe_for(photos, found, name, None if chosen == "none" else chosen)
    before = path.read_text("utf-8") if path.exists() else None
    write_text(path, text)
    try:
        load_recipe(path)
    except RecipeError:
        # What cannot be run is not left behind.
        if before is None:
            path.unlink()
        else:
            write_text(path, before)
        raise
    if as_json:
        print(json.dumps({"recipe": str(path), "task": found.task, "kind": found.kind, "images": found.images}))
    elif not quiet:
        print(plain(f"{path}: {found.said} Run it with: niwaki run {shlex.quote(str(path))}"))
