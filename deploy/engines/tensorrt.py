"""TensorRT-RTX engines, built ahead of time for a GPU that need not be in this machine.

Niwaki builds these engines and says what they are; it does not execute them yet. ``load`` therefore raises,
and a record lists such an engine as built, with the reason why it was not measured.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from pathlib import Path
from typing import Any, NoReturn

from deploy.engines.base import precision_of
from deploy.errors import DeployError, MissingDependency
from deploy.files import replacing, sha256, write_text

RUNTIME = "tensorrt_rtx"
FORMAT = "niwaki-engine-1"


def engine_from_onnx(
    onnx_path: Path,
    out_dir: Path,
    *,
    target: str,
    precision: str | None = None,
    profile: tuple[int, int, int] = (1, 1, 8),
) -> Path:
    """Build an engine for the GPU generation ``target`` and put a JSON sidecar beside it.

    Args:
        onnx_path: the ONNX file; its own types decide the arithmetic, since TensorRT-RTX is strongly typed.
        out_dir: the folder of the engine, whose name tells source, precision, profile, runtime and target.
        target: a compute capability such as ``sm86`` or ``sm89``.
        precision: what the file is thought to be (``fp32``, ``fp16``, ``int8``); by default what it says.
        profile: smallest, usual and largest batch.

    Raises:
        DeployError: the file, target, precision or profile cannot be used, or the builder refuses.
        MissingDependency: TensorRT-RTX is not installed.
    """
    from deploy.onnxfile import metadata, read
    from deploy.quantize import check_tensorrt_qdq

    onnx_path = Path(onnx_path)
    stated = precision_of(onnx_path, metadata(read(onnx_path)))
    if precision not in (None, stated):
        raise DeployError(f"{onnx_path.name} is {stated}, not {precision}; give the {precision} file.")
    smallest, usual, largest = profile
    if not 1 <= smallest <= usual <= largest:
        raise DeployError(f"The profile is {profile}; give smallest <= usual <= largest batch, all at least 1.")
    check_tensorrt_qdq(onnx_path)
    trt = _import()
    version = trt.__version__
    capability = _capability(trt, target)
    log = _logger(trt)
    started = time.perf_counter()
    plan, flags = _build(trt, log, onnx_path, capability, profile)
    seconds = time.perf_counter() - started
    source = sha256(onnx_path)
    stem = onnx_path.name.removesuffix(".onnx").split(".")[0]
    batches = "-".join(map(str, profile))
    path = Path(out_dir) / f"{stem}-{source[:12]}.{stated}.b{batches}.{RUNTIME}-{version}.{target}.engine"
    with replacing(path) as temporary:
        temporary.write_bytes(plan)
    sidecar = {
        "format": FORMAT,
        "engine": path.name,
        "engine_sha256": hashlib.sha256(plan).hexdigest(),
        "bytes": len(plan),
        "source": onnx_path.name,
        "source_sha256": source,
        "precision": stated,
        "profile": list(profile),
        "runtime": RUNTIME,
        "version": version,
        "target": target,
        "flags": flags,
        "build_seconds": round(seconds, 3),
    }
    write_text(sidecar_of(path), json.dumps(sidecar, indent=2) + "\n")
    return path


def sidecar_of(path: Path) -> Path:
    """Where the JSON that describes the engine at ``path`` lies."""
    return path.with_name(path.name + ".json")


def load(path: Path, *, threads: int = 1) -> NoReturn:
    """Refuse to run an engine: executing on GPUs is not built yet.

    Raises:
        DeployError: always; the sentence says whether the file is there at all.
    """
    if not path.is_file():
        raise DeployError(f"There is no engine at {path}; build it first.")
    raise DeployError(
        f"{path.name} is a TensorRT-RTX engine for a GPU, and executing on GPUs is not built yet; "
        "load the ONNX file it was built from to run the network on this machine."
    )


def _import() -> Any:
    try:
        import tensorrt_rtx
    except ImportError as error:
        raise MissingDependency(
            "The package tensorrt_rtx cannot be imported here; get it with `uv sync --extra tensorrt-rtx` or "
            "`pip install 'niwaki[tensorrt-rtx]'`."
        ) from error
    return tensorrt_rtx


def _capability(trt: Any, target: str) -> Any:
    known = sorted(name for name in trt.ComputeCapability.__members__ if re.fullmatch(r"SM\d+", name))
    if target.upper() not in known or target != target.lower():
        raise DeployError(
            f"TensorRT-RTX {trt.__version__} cannot build for {target!r}; "
            f"choose one of {', '.join(name.lower() for name in known)}."
        )
    return trt.ComputeCapability.__members__[target.upper()]


def _logger(trt: Any) -> Any:
    class Log(trt.ILogger):
        """Keeps what went wrong for the error's sentence instead of printing it."""

        def __init__(self) -> None:
            super().__init__()
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.ERROR:
                self.errors.append(message)

    return Log()


def _build(
    trt: Any, log: Any, onnx_path: Path, capability: Any, profile: tuple[int, int, int]
) -> tuple[bytes, list[str]]:
    """The serialised engine and the names of the builder flags that were on."""
    builder = trt.Builder(log)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    if not parser.parse_from_file(str(onnx_path)):
        reasons = "; ".join(parser.get_error(i).desc() for i in range(parser.num_errors))
        raise DeployError(f"TensorRT-RTX cannot read {onnx_path.name} ({reasons}).")
    config = builder.create_builder_config()
    # Never left to the default: it is the GPU of this machine, which may have none.
    config.num_compute_capabilities = 1
    config.set_compute_capability(capability, 0)
    optimization = builder.create_optimization_profile()
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        shape = tuple(tensor.shape)
        if -1 in shape[1:]:
            raise DeployError(f"{onnx_path.name} leaves {shape} of {tensor.name!r} open; only the batch may be free.")
        if shape[0] != -1 and {shape[0]} != set(profile):
            raise DeployError(f"{onnx_path.name} fixes the batch at {shape[0]}; export it with a free batch.")
        optimization.set_shape(tensor.name, *((batch, *shape[1:]) for batch in profile))
    config.add_optimization_profile(optimization)
    flags = sorted(name for name, flag in trt.BuilderFlag.__members__.items() if config.get_flag(flag))
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        reason = log.errors[-1] if log.errors else "without saying why"
        raise DeployError(f"TensorRT-RTX refuses to build {onnx_path.name} for {capability.name.lower()} ({reason}).")
    return bytes(plan), flags
