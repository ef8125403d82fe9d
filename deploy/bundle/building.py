"""Build an engine from a bundle's own ONNX file, on the device or ahead of time.

Building needs numpy and one of TensorRT and TensorRT-RTX; the builder itself reads the ONNX file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from deploy.bundle.engines import engines_folder
from deploy.bundle.fitting import check_predictable
from deploy.bundle.signed import Trust, read_trusted, sign_engine, signature_of_engine
from deploy.bundle.signing import read_private_key
from deploy.engines.tensorrt.building import PRODUCTS, engine_from_onnx, import_api
from deploy.errors import DeployError, MissingDependency


def build_engine(
    bundle: str | Path,
    *,
    precision: str | None = None,
    target: str | None = None,
    out: Path | None = None,
    runtime: str | None = None,
    largest: int = 8,
    trusted_key: Path | None = None,
    key: Path | None = None,
    api: Any = None,
    cuda: Any = None,
) -> Path:
    """Build an engine from the bundle's ONNX file for batches of 1 to ``largest``, tuned for 1.

    Args:
        bundle: the folder.
        precision: which of its models; by default the one that the bundle prefers.
        target: a compute capability such as ``sm86``; by default that of this machine's GPU.
        out: where the engine and its sidecar go; by default into the bundle, where ``deploy.load`` finds them.
        runtime: ``tensorrt`` or ``tensorrt_rtx``; by default the first that can be imported, and for a named target
            TensorRT-RTX before TensorRT, which builds only for the GPU of this machine.
        largest: the largest batch.
        trusted_key: as for ``deploy.load``.
        key: a PEM file with the Ed25519 private key of this device, which signs the engine: where a key is demanded,
            ``deploy.load(engine_key=...)`` takes no other.
        api: the API object; by default the package ``runtime`` is imported.
        cuda: ``cuda.bindings.runtime`` or an object with its functions; by default imported where it is needed.

    Raises:
        DeployError: the bundle is damaged, not signed as asked or cannot predict, has no such model, or one that
            TensorRT misreads (uint8) or refuses, its engines lie elsewhere, or ``key`` holds no private key.
        MissingDependency: no builder is installed, or the GPU that it has to build on is missing.
    """
    folder = Path(bundle)
    private_key = None if key is None else read_private_key(key)
    manifest = read_trusted(folder, Trust(trusted_key))
    check_predictable(folder, manifest)
    chosen = manifest.default if precision is None else precision
    if chosen not in manifest.models:
        raise DeployError(f"{folder} has no {chosen} model; it has {', '.join(sorted(manifest.models))}.")
    if largest < 1:
        raise DeployError(f"The largest batch is {largest}; give 1 or more.")
    source = manifest.tensorrt.get(chosen, manifest.models[chosen])
    made = engine_from_onnx(
        folder / source.file,
        engines_folder(folder) if out is None else out,
        target=target,
        profile=(1, 1, largest),
        runtime=runtime or _default_builder(target),
        sha256=source.sha256,
        api=api,
        cuda=cuda,
    )
    if private_key is None:
        signature_of_engine(made).unlink(missing_ok=True)  # of an engine that was there before
    else:
        sign_engine(made, private_key)
    return made


def _default_builder(target: str | None) -> str:
    for name in sorted(PRODUCTS, reverse=target is not None):
        try:
            import_api(name)
        except MissingDependency:
            continue
        return name
    raise MissingDependency(
        "Building an engine needs the package tensorrt or tensorrt_rtx and neither can be imported here; get one with "
        "`pip install 'niwaki-vision[tensorrt-rtx]'`, or run the bundle as it is, which needs no engine."
    )
