"""Select which file of a bundle runs on which runtime: a pure function of the candidates and the machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec

from deploy.engines.sidecar import incompatibility
from deploy.engines.tensorrt.building import PRODUCTS, import_api
from deploy.engines.tensorrt.cuda import Cuda
from deploy.errors import DeployError, MissingDependency

_NAMES = {
    **PRODUCTS,
    "onnxruntime": "ONNX Runtime on the CPU",
    "onnxruntime_cuda": "ONNX Runtime's CUDA provider",
    "onnxruntime_tensorrt": "ONNX Runtime's TensorRT provider",
    "openvino": "OpenVINO on the CPU",
}
_CPU = ("onnxruntime", "openvino")
_ONNX = ("onnxruntime", "onnxruntime_cuda", "onnxruntime_tensorrt", "openvino")


@dataclass(frozen=True)
class Candidate:
    """A file that could run.

    Attributes:
        file: its path in the bundle.
        precision: which model of the bundle it computes.
        engine: ``tensorrt`` or ``tensorrt_rtx``; None for an ONNX file, which many runtimes run.
        version: the version of that runtime that built the engine.
        target: the compute capability that the engine was built for, such as ``sm86``.
        fault: why it must not run on any machine.
        sha256: the hash that it must have when it is loaded.
    """

    file: str
    precision: str
    engine: str | None = None
    version: str = ""
    target: str = ""
    fault: str | None = None
    sha256: str | None = None


@dataclass(frozen=True)
class Machine:
    """The version of each runtime that can be imported, and the compute capability of the GPU, if there is one."""

    runtimes: Mapping[str, str] = field(default_factory=dict)
    gpu: str | None = None


@dataclass(frozen=True)
class Choice:
    """One way to run a bundle, and why it has its place in the order."""

    file: str
    runtime: str
    precision: str
    reason: str


@dataclass(frozen=True)
class Ranking:
    """The ways to run a bundle, the best first, and one clause for each file or runtime that was skipped."""

    choices: tuple[Choice, ...]
    skipped: tuple[str, ...]


def rank(
    candidates: Sequence[Candidate],
    machine: Machine,
    *,
    default: str,
    precision: str | None = None,
    runtime: str | None = None,
    cpu: str = "onnxruntime",
) -> Ranking:
    """Order the ways in which ``candidates`` can run on ``machine``.

    An engine that was built for the machine's GPU comes first (one of the wanted precision before others), then ONNX
    Runtime's CUDA provider, then the CPU. ONNX Runtime's TensorRT provider builds an engine while it loads, so it is
    chosen only on request.

    Args:
        candidates: the files.
        machine: what is installed.
        default: the precision that the bundle prefers.
        precision: the only precision allowed.
        runtime: the only runtime allowed; its loader then says whether it is installed.
        cpu: which runtime comes first on a CPU, ``onnxruntime`` or ``openvino``.
    """
    wanted = precision or default
    choices: list[Choice] = []
    skipped: list[str] = []
    for candidate in sorted(candidates, key=lambda one: (one.engine is None, one.precision != wanted)):
        if candidate.engine is not None:
            why_not = _engine_fault(candidate, machine, precision, runtime)
            if why_not is None:
                reason = (
                    f"{_NAMES[candidate.engine]} was asked for"
                    if runtime
                    else f"it was built for the {machine.gpu} here"
                )
                choices.append(Choice(candidate.file, candidate.engine, candidate.precision, reason))
            elif runtime in (None, candidate.engine) or (candidate.fault and runtime in PRODUCTS):
                skipped.append(f"{candidate.file} ({why_not})")
        elif candidate.precision == wanted and runtime is not None:
            if runtime in _ONNX:
                choices.append(Choice(candidate.file, runtime, wanted, f"{_NAMES[runtime]} was asked for"))
        elif candidate.precision == wanted:
            found, left = _onnx_choices(candidate, machine, cpu)
            choices += found
            skipped += left
    return Ranking(tuple(choices), tuple(skipped))


def _engine_fault(candidate: Candidate, machine: Machine, precision: str | None, runtime: str | None) -> str | None:
    assert candidate.engine is not None
    if candidate.fault is not None:
        return candidate.fault
    if precision not in (None, candidate.precision):
        return f"it is {candidate.precision}, not {precision}"
    if runtime is not None:
        return None if runtime == candidate.engine else f"{runtime} was asked for"
    if candidate.engine not in machine.runtimes:
        return f"the package {candidate.engine} cannot be imported here"
    if machine.gpu is None:
        return "no GPU can be used here"
    here = machine.runtimes[candidate.engine]
    return incompatibility(candidate.engine, candidate.version, candidate.target, version=here, target=machine.gpu)


def _onnx_choices(candidate: Candidate, machine: Machine, cpu: str) -> tuple[list[Choice], list[str]]:
    choices: list[Choice] = []
    skipped: list[str] = []
    if "onnxruntime_cuda" in machine.runtimes:
        choices.append(
            Choice(candidate.file, "onnxruntime_cuda", candidate.precision, "ONNX Runtime has its CUDA provider")
        )
    first, second = (cpu, *(name for name in _CPU if name != cpu))
    for name in (first, second):
        if name not in machine.runtimes:
            if name == first:
                skipped.append(f"{_NAMES[name]} (the package {name} cannot be imported here)")
        else:
            reason = f"it is what the bundle prefers on a CPU ({first})" if name == first else "nothing else is left"
            choices.append(Choice(candidate.file, name, candidate.precision, reason))
    return choices, skipped


def detect_machine(candidates: Sequence[Candidate]) -> Machine:
    """Find the runtimes installed here and, where an engine is among ``candidates``, the GPU."""
    runtimes: dict[str, str] = {}
    try:
        ort = import_module("onnxruntime")
    except ImportError:
        ort = None
    if ort is not None:
        providers = ort.get_available_providers()
        known = {"onnxruntime": "CPUExecutionProvider", "onnxruntime_cuda": "CUDAExecutionProvider"}
        runtimes |= {name: ort.__version__ for name, provider in known.items() if provider in providers}
    if find_spec("openvino") is not None:  # importing it takes long, and it is rarely chosen
        runtimes["openvino"] = ""
    for name in sorted({one.engine for one in candidates if one.engine is not None and one.fault is None}):
        try:
            runtimes[name] = import_api(name).__version__
        except MissingDependency:
            continue
    return Machine(runtimes, _gpu() if set(PRODUCTS) & set(runtimes) else None)


def _gpu() -> str | None:
    try:
        with Cuda() as device:
            return device.target
    except DeployError:  # no bindings, no driver or no GPU
        return None
