"""Engines of a bundle: built on the device from its own ONNX files, kept in its folder ``engines``, chosen there.

Building needs numpy and one of TensorRT and TensorRT-RTX: the ONNX file is read by the builder itself.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from deploy.bundle.manifest import Manifest, read_manifest
from deploy.engines import ENGINES as RUNTIMES
from deploy.engines import load_engine
from deploy.engines.base import Engine
from deploy.engines.selection import Offer, here, rank
from deploy.engines.sidecar import described
from deploy.engines.tensorrt.building import PRODUCTS, engine_from_onnx, import_api
from deploy.errors import DeployError, MissingDependency

# Not named by the manifest, for engines are made after it: what holds them to the bundle is their sidecars' hash of
# the ONNX file, which the manifest names.
ENGINES = "engines"
_UNSIGNED = "the bundle's signature does not cover it: name its runtime to use it all the same"


def build_engine(
    bundle: str | Path,
    *,
    precision: str | None = None,
    target: str | None = None,
    out: Path | None = None,
    runtime: str | None = None,
    largest: int = 8,
    trusted_key: Path | None = None,
    api: Any = None,
    cuda: Any = None,
) -> Path:
    """Build an engine from the bundle's ONNX file, for batches of 1 to ``largest``, best at 1.

    Args:
        bundle: the folder.
        precision: which of its models; by default the one the bundle prefers.
        target: a compute capability such as ``sm86``; by default that of the GPU here.
        out: where the engine and its sidecar go; by default into the bundle, where ``deploy.load`` finds them.
        runtime: ``tensorrt`` or ``tensorrt_rtx``; by default the first that can be imported, and for a named target
            TensorRT-RTX before TensorRT, which builds for the GPU here alone.
        largest: the largest batch.
        trusted_key: as for ``deploy.load``.
        api: the API object; by default the package ``runtime`` is imported.
        cuda: ``cuda.bindings.runtime`` or what has its functions; by default it is imported where it is needed.

    Raises:
        DeployError: the bundle is damaged or not signed as asked, has no such model, or the model is one that
            TensorRT would misread (uint8) or refuses.
        MissingDependency: no builder is installed, or the GPU that it has to build on is not there.
    """
    folder = Path(bundle)
    manifest = read_manifest(folder, trusted_key=trusted_key)
    chosen = manifest.default if precision is None else precision
    if chosen not in manifest.models:
        raise DeployError(f"{folder} has no {chosen} model; it has {', '.join(sorted(manifest.models))}.")
    if largest < 1:
        raise DeployError(f"The largest batch is {largest}; give 1 or more.")
    runtime = runtime or _builder(target)
    source = manifest.tensorrt.get(chosen, manifest.models[chosen])
    return engine_from_onnx(
        folder / source.file,
        folder / ENGINES if out is None else out,
        target=target,
        profile=(1, 1, largest),
        runtime=runtime,
        api=api,
        cuda=cuda,
    )


def _builder(target: str | None) -> str:
    for name in sorted(PRODUCTS, reverse=target is not None):
        try:
            import_api(name)
        except MissingDependency:
            continue
        return name
    raise MissingDependency(
        "Building an engine needs the package tensorrt or tensorrt_rtx and neither can be imported here; get one with "
        "`pip install 'niwaki[tensorrt-rtx]'`, or run the bundle as it is, which needs no engine."
    )


def choose(
    folder: Path, manifest: Manifest, precision: str | None, runtime: str | None, threads: int, *, signed: bool
) -> tuple[Engine, str]:
    """Load what runs the verified bundle at ``folder`` best here; the engine, and why it is that one.

    Raises:
        DeployError: nothing of the bundle runs as asked, or what should run is damaged.
        MissingDependency: the runtime that was asked for, or every one, is not installed or finds no GPU.
    """
    if precision is not None and precision not in manifest.models:
        raise DeployError(f"{folder} has no {precision} model; it has {', '.join(sorted(manifest.models))}.")
    if runtime is not None and runtime not in RUNTIMES:
        raise DeployError(f"There is no runtime {runtime!r}; choose one of {', '.join(sorted(RUNTIMES))}.")
    offered = offers(folder, manifest, signed=signed)
    ranking = rank(
        offered,
        here(offered),
        default=manifest.default,
        precision=precision,
        runtime=runtime,
        cpu=manifest.cpu_runtime,
    )
    passed = list(ranking.passed)
    for index, choice in enumerate(ranking.choices):
        try:
            engine = load_engine(folder / choice.file, threads=threads, runtime=choice.runtime)
        except MissingDependency as error:
            # A provider tells only when it starts that it finds no GPU.
            if index + 1 == len(ranking.choices):
                raise
            passed.append(f"{choice.runtime} ({str(error).rstrip('.')})")
            continue
        why = f"{choice.file} by {choice.runtime}, since {choice.reason}"
        return engine, why + (f"; passed over: {', '.join(passed)}" if passed else "")
    over = f" (passed over: {', '.join(passed)})" if passed else ""
    if runtime is not None:
        raise DeployError(f"{folder} holds no engine for {runtime}{over}; make one with `niwaki build {folder}`.")
    raise MissingDependency(f"No runtime here runs {folder}{over}; get one with `pip install onnxruntime`.")


def offers(folder: Path, manifest: Manifest, *, signed: bool) -> list[Offer]:
    """What of the bundle at ``folder`` could run: its models, and the engines that lie in it.

    An engine that fits none of the bundle's models is offered with its fault. Where the bundle was held against a
    signature (``signed``), an engine is not taken unasked, for the signature does not cover it.
    """
    found = [Offer(item.file, precision) for precision, item in manifest.models.items()]
    models = {item.sha256: precision for precision, item in manifest.models.items()}
    models |= {item.sha256: precision for precision, item in manifest.tensorrt.items()}
    for path in sorted((folder / ENGINES).glob("*.engine")):
        name = f"{ENGINES}/{path.name}"
        try:
            sidecar = described(path)
        except DeployError as error:
            found.append(Offer(name, "unknown", "tensorrt", fault=str(error)))
            continue
        fits = sidecar.source_sha256 in models
        found.append(
            Offer(
                name,
                models.get(sidecar.source_sha256, sidecar.precision),
                sidecar.runtime,
                sidecar.version,
                sidecar.target,
                fault=None if fits else "it was built from none of the bundle's models: build it again",
                doubt=_UNSIGNED if signed else None,
            )
        )
    return found
