"""Build engines with TensorRT 10 or 11 and TensorRT-RTX, which share one API but for a few names.

Every function takes the API object (the package ``tensorrt`` or ``tensorrt_rtx``), so one module serves all three.
Networks are strongly typed, for two of the three know nothing else: the ONNX file's own types decide the arithmetic.
TensorRT-RTX can build for a GPU that this machine lacks; TensorRT builds only for the one it has.
"""

from __future__ import annotations

import hashlib
import re
import time
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from deploy.engines.base import precision_of
from deploy.engines.sidecar import Sidecar, write_sidecar
from deploy.engines.tensorrt.cuda import Cuda
from deploy.errors import DeployError, MissingDependency
from deploy.files import replacing
from deploy.onnx.wire import check_qdq, read_model

PRODUCTS = {"tensorrt": "TensorRT", "tensorrt_rtx": "TensorRT-RTX"}
_EXTRAS = {"tensorrt": "tensorrt", "tensorrt_rtx": "tensorrt-rtx"}


def engine_from_onnx(
    onnx_path: Path,
    out_dir: Path,
    *,
    target: str | None = None,
    precision: str | None = None,
    profile: tuple[int, int, int] = (1, 1, 8),
    runtime: str = "tensorrt_rtx",
    workspace_mib: int | None = None,
    timing_cache: Path | None = None,
    sha256: str | None = None,
    api: Any = None,
    cuda: Any = None,
) -> Path:
    """Build an engine for the GPU generation ``target`` and write a JSON sidecar beside it.

    Args:
        onnx_path: the ONNX file; its own types decide the arithmetic.
        out_dir: the folder of the engine, whose name tells source, precision, profile, runtime and target.
        target: a compute capability such as ``sm86``; by default that of this machine's GPU.
        precision: what the file is expected to be (``fp32``, ``fp16``, ``int8``); by default what it states.
        profile: smallest, usual and largest batch.
        runtime: ``tensorrt_rtx``, or ``tensorrt``, which builds only for this machine's GPU.
        workspace_mib: the most device memory that a layer may use as scratch space; by default all there is.
        timing_cache: a file of kernel timings, read where it exists and written afterwards; only ``tensorrt`` times.
        sha256: the hash that the ONNX file must have; by default any.
        api: the API object; by default the package ``runtime`` is imported.
        cuda: ``cuda.bindings.runtime`` or an object with its functions; by default imported where it is needed.

    Raises:
        DeployError: the file, target, precision, profile or memory cannot be used, or the builder refuses.
        MissingDependency: the runtime is not installed, or the GPU that it has to build on is missing.
    """
    onnx_path = Path(onnx_path)
    content, wire = read_model(onnx_path, sha256)
    stated = precision_of(onnx_path, content, wire.properties)
    if precision not in (None, stated):
        raise DeployError(f"{onnx_path.name} is {stated}, not {precision}; give the {precision} file.")
    smallest, usual, largest = profile
    if not 1 <= smallest <= usual <= largest:
        raise DeployError(f"The profile is {profile}; give smallest <= usual <= largest batch, all at least 1.")
    if workspace_mib is not None and workspace_mib < 1:
        raise DeployError(f"workspace_mib is {workspace_mib}; give 1 or more, or leave it out.")
    check_qdq(onnx_path, wire)
    trt = import_api(runtime) if api is None else api
    for_gpu = _target(trt, runtime, target, cuda)
    model = None if wire.outside else content
    hashed = hashlib.sha256(content).hexdigest()
    request = _Request(onnx_path, model, hashed, stated, for_gpu, profile, workspace_mib, timing_cache)
    started = time.perf_counter()
    plan, flags = _build(trt, request)
    seconds = time.perf_counter() - started
    return _write_engine(
        Path(out_dir), request, plan, runtime=runtime, version=trt.__version__, flags=flags, seconds=seconds
    )


@dataclass(frozen=True)
class _Request:
    """What is to be built; the fields are the arguments of ``engine_from_onnx``, checked.

    ``model`` is the file's content, None where it keeps tensors in others and is opened by its path.
    """

    onnx_path: Path
    model: bytes | None
    sha256: str
    precision: str
    target: str
    profile: tuple[int, int, int]
    workspace_mib: int | None
    timing_cache: Path | None


def _write_engine(
    folder: Path, request: _Request, plan: bytes, *, runtime: str, version: str, flags: list[str], seconds: float
) -> Path:
    """Write the serialised engine ``plan`` and its sidecar; return the engine's path."""
    source = request.sha256
    stem = request.onnx_path.name.removesuffix(".onnx").split(".")[0]
    batches = "-".join(map(str, request.profile))
    name = f"{stem}-{source[:12]}.{request.precision}.b{batches}.{runtime}-{version}.{request.target}.engine"
    path = folder / name
    with replacing(path) as temporary:
        temporary.write_bytes(plan)
    sidecar = Sidecar(
        engine=path.name,
        engine_sha256=hashlib.sha256(plan).hexdigest(),
        bytes=len(plan),
        source=request.onnx_path.name,
        source_sha256=source,
        precision=request.precision,
        profile=request.profile,
        runtime=runtime,  # type: ignore[arg-type]  # pydantic refuses any other
        version=version,
        target=request.target,
        flags=tuple(flags),
        build_seconds=round(seconds, 3),
    )
    write_sidecar(path, sidecar)
    return path


def import_api(runtime: str) -> Any:
    """Import the package ``runtime``, which is the API object.

    Raises:
        DeployError: there is no such runtime.
        MissingDependency: it or one of its libraries is not installed.
    """
    if runtime not in PRODUCTS:
        raise DeployError(f"There is no builder {runtime!r}; choose one of {', '.join(sorted(PRODUCTS))}.")
    try:
        return import_module(runtime)
    except (ImportError, OSError) as error:  # the loader raises OSError for a missing library
        extra = _EXTRAS[runtime]
        raise MissingDependency(
            f"The package {runtime} cannot be imported here; get it with `uv sync --extra {extra}` or "
            f"`pip install 'niwaki-vision[{extra}]'`."
        ) from error


def targets(trt: Any) -> list[str]:
    """Return the compute capabilities that can be built for without such a GPU; none for TensorRT."""
    known = getattr(trt, "ComputeCapability", None)
    names = [] if known is None else known.__members__
    return sorted((name.lower() for name in names if re.fullmatch(r"SM\d+", name)), key=lambda name: int(name[2:]))


def make_logger(trt: Any) -> Any:
    """Return a logger that keeps errors in its list ``errors``, for our own messages, instead of printing them."""

    class Log(trt.ILogger):
        def __init__(self) -> None:
            super().__init__()
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.ERROR:
                self.errors.append(message)

    return Log()


def last_error(log: Any) -> str:
    """Return the last error that the logger received."""
    return log.errors[-1].strip() if log.errors else "without saying why"


def _target(trt: Any, runtime: str, target: str | None, cuda: Any) -> str:
    """Return the compute capability to build for; with TensorRT it can only be that of the GPU here."""
    known = targets(trt)
    product = f"{PRODUCTS.get(runtime, runtime)} {trt.__version__}"
    if target is not None and known and target not in known:
        raise DeployError(f"{product} cannot build for {target!r}; choose one of {', '.join(known)}.")
    if target is not None and known:
        return target
    try:
        with Cuda(cuda) as device:
            here = device.target
    except MissingDependency as error:
        if not known:
            raise
        raise MissingDependency(f"There is no GPU here to build for; name a target of {', '.join(known)}.") from error
    if target not in (None, here):
        raise DeployError(
            f"{product} builds only for the GPU of this machine, which is {here}, not {target!r}; "
            "build there, or with runtime tensorrt_rtx."
        )
    if known and here not in known:
        raise DeployError(f"{product} cannot build for the {here} here; it knows {', '.join(known)}.")
    return here


def _build(trt: Any, request: _Request) -> tuple[bytes, list[str]]:
    """Return the serialised engine and the names of the builder flags that were on."""
    log, path = make_logger(trt), request.onnx_path
    builder = trt.Builder(log)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    parsed = parser.parse_from_file(str(path)) if request.model is None else parser.parse(request.model)
    if not parsed:
        reasons = "; ".join(parser.get_error(i).desc() for i in range(parser.num_errors))
        raise DeployError(f"{_product(trt)} cannot read {path.name} ({reasons}).")
    config = builder.create_builder_config()
    if targets(trt):
        # Never left to the default, which is the GPU of this machine: there may be none.
        config.num_compute_capabilities = 1
        config.set_compute_capability(trt.ComputeCapability.__members__[request.target.upper()], 0)
    # Keeps the layers' names and shapes in the engine, which the inspector and the layer times need.
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if request.workspace_mib is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, request.workspace_mib << 20)
    cache, cache_path = None, request.timing_cache
    if cache_path is not None and not targets(trt):
        cache = config.create_timing_cache(cache_path.read_bytes() if cache_path.is_file() else b"")
        if cache is None or not config.set_timing_cache(cache, False):
            raise DeployError(f"{cache_path} holds timings of another GPU or version; delete it.")
    _add_profile(builder, network, config, path, request.profile)
    flags = sorted(name for name, flag in trt.BuilderFlag.__members__.items() if config.get_flag(flag))
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise DeployError(f"{_product(trt)} refuses to build {path.name} for {request.target} ({last_error(log)}).")
    if cache is not None and cache_path is not None:
        with replacing(cache_path) as temporary:
            temporary.write_bytes(bytes(config.get_timing_cache().serialize()))
    return bytes(plan), flags


def _add_profile(builder: Any, network: Any, config: Any, onnx_path: Path, profile: tuple[int, int, int]) -> None:
    optimization = builder.create_optimization_profile()
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        shape = tuple(tensor.shape)
        if not shape:
            raise DeployError(f"{onnx_path.name} takes a single number as {tensor.name!r}; export it with a batch.")
        if -1 in shape[1:]:
            raise DeployError(f"{onnx_path.name} leaves {shape} of {tensor.name!r} open; only the batch may be free.")
        if shape[0] != -1 and {shape[0]} != set(profile):
            raise DeployError(f"{onnx_path.name} fixes the batch at {shape[0]}; export it with a free batch.")
        optimization.set_shape(tensor.name, *((batch, *shape[1:]) for batch in profile))
    config.add_optimization_profile(optimization)


def _product(trt: Any) -> str:
    return PRODUCTS["tensorrt_rtx" if targets(trt) else "tensorrt"]
