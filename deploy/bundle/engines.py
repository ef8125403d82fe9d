"""Find what of a bundle can run, its models and the engines built from them, and load the best of them here."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from deploy.bundle.manifest import ENGINES_FOLDER, Manifest
from deploy.bundle.signed import check_engine_signature
from deploy.engines import ENGINES, load_engine
from deploy.engines.base import Engine
from deploy.engines.selection import Candidate, detect_machine, rank
from deploy.engines.sidecar import load_sidecar
from deploy.errors import DeployError, MissingDependency


def load_best(
    folder: Path,
    manifest: Manifest,
    precision: str | None,
    runtime: str | None,
    threads: int,
    *,
    keys: Sequence[Any],
) -> tuple[Engine, str]:
    """Load what runs the verified bundle at ``folder`` best on this machine.

    Args:
        folder: the bundle.
        manifest: its manifest.
        precision: which model; None for the one that the bundle prefers.
        runtime: a key of ``deploy.engines.ENGINES``; None for the best here.
        threads: how many threads one run may use on a CPU.
        keys: public keys, one of whose owners must have signed an engine; empty where no key is demanded.

    Returns:
        The engine, and why it was chosen.

    Raises:
        DeployError: nothing of the bundle runs as asked, or what should run is damaged.
        MissingDependency: the runtime asked for, or every one, is not installed or finds no GPU.
    """
    if precision is not None and precision not in manifest.models:
        raise DeployError(f"{folder} has no {precision} model; it has {', '.join(sorted(manifest.models))}.")
    if runtime is not None and runtime not in ENGINES:
        raise DeployError(f"There is no runtime {runtime!r}; choose one of {', '.join(sorted(ENGINES))}.")
    found = find_candidates(folder, manifest, keys=keys)
    ranking = rank(
        found,
        detect_machine(found),
        default=manifest.default,
        precision=precision,
        runtime=runtime,
        cpu=manifest.cpu_runtime,
    )
    skipped = list(ranking.skipped)
    hashes = {candidate.file: candidate.sha256 for candidate in found}
    for index, choice in enumerate(ranking.choices):
        try:
            engine = load_engine(
                folder / choice.file, threads=threads, runtime=choice.runtime, sha256=hashes.get(choice.file)
            )
        except MissingDependency as error:
            # A provider finds out only when it starts that there is no GPU.
            if index + 1 == len(ranking.choices):
                raise
            skipped.append(f"{choice.runtime} ({str(error).rstrip('.')})")
            continue
        why = f"{choice.file} by {choice.runtime}, since {choice.reason}"
        return engine, why + (f"; passed over: {', '.join(skipped)}" if skipped else "")
    over = f" (passed over: {', '.join(skipped)})" if skipped else ""
    if runtime is not None:
        # Without it `build` takes TensorRT-RTX, whose engines run by another runtime.
        command = f"niwaki build {shlex.quote(str(folder))}{' --runtime tensorrt' if runtime == 'tensorrt' else ''}"
        raise DeployError(f"{folder} holds no engine for {runtime}{over}; make one with `{command}`.")
    raise MissingDependency(f"No runtime here runs {folder}{over}; get one with `pip install onnxruntime`.")


def engines_folder(folder: Path) -> Path:
    """Return where the engines of the bundle at ``folder`` lie.

    Raises:
        DeployError: it is a link, by which engines would be written to, or read from, anywhere.
    """
    path = folder / ENGINES_FOLDER
    if path.is_symlink():
        raise DeployError(f"{path} is a link out of the bundle; remove it, or build elsewhere with --out.")
    return path


def find_candidates(folder: Path, manifest: Manifest, *, keys: Sequence[Any]) -> list[Candidate]:
    """Return the models of the bundle at ``folder`` and the engines that lie in it.

    An engine is returned with its fault where it fits none of the bundle's models, or where ``keys`` are demanded and
    the owner of none signed it.
    """
    found = [Candidate(item.file, precision, sha256=item.sha256) for precision, item in manifest.models.items()]
    models = {item.sha256: precision for precision, item in manifest.models.items()}
    models |= {item.sha256: precision for precision, item in manifest.tensorrt.items()}
    for path in sorted(engines_folder(folder).glob("*.engine")):
        name = f"{ENGINES_FOLDER}/{path.name}"
        try:
            sidecar = load_sidecar(path, check=_signed_by(path, keys) if keys else None)
        except DeployError as error:
            found.append(Candidate(name, "unknown", "tensorrt", fault=str(error)))
            continue
        fits = sidecar.source_sha256 in models
        found.append(
            Candidate(
                name,
                models.get(sidecar.source_sha256, sidecar.precision),
                sidecar.runtime,
                sidecar.version,
                sidecar.target,
                fault=None if fits else "it was built from none of the bundle's models: build it again",
                sha256=sidecar.engine_sha256,
            )
        )
    return found


def _signed_by(path: Path, keys: Sequence[Any]) -> Callable[[bytes], None]:
    return lambda content: check_engine_signature(path, content, keys)
