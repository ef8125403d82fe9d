"""Trying what came from elsewhere in a child process first: the option that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Probe = Annotated[
    bool | None,
    typer.Option(
        "--probe/--no-probe",
        help="First load and run it once in a child process with limits; the default for files outside a bundle.",
    ),
]


def probe_first(
    path: Path, asked: bool | None, *, runtime: str | None = None, precision: str | None = None, batch: int = 1
) -> None:
    """Try an ONNX file, or the model of a bundle, under limits of time and memory.

    Args:
        path: an ONNX file, an engine, which is not tried, or a bundle.
        asked: whether to; None for files without a manifest alone.
        runtime: what shall run it.
        precision: which model of a bundle; by default the one that it prefers.
        batch: how many images at once.

    Raises:
        DeployError: it takes too much, or the bundle is damaged or has no such model.
        MissingDependency: what it is tried by is not installed.
    """
    from deploy.bundle.manifest import read_manifest
    from deploy.engines.probing import probe
    from deploy.errors import DeployError

    if asked is False or (path.is_dir() and not asked) or path.suffix == ".engine":
        return
    if path.is_dir():
        manifest = read_manifest(path)
        chosen = precision or manifest.default
        if chosen not in manifest.models:
            raise DeployError(f"{path} has no {chosen} model; it has {', '.join(sorted(manifest.models))}.")
        path = path / manifest.models[chosen].file
    probe(path, runtime=runtime, batch=batch)
