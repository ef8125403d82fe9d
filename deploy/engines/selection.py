"""Which file of a bundle runs here, and by which runtime: a pure function of what is offered and what is there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec

from deploy.engines.sidecar import unfit
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
class Offer:
    """A file that could run.

    Attributes:
        file: its path in the bundle.
        precision: which model of the bundle it computes.
        engine: ``tensorrt`` or ``tensorrt_rtx``; None for an ONNX file, which many runtimes run.
        version: the engine's version of that runtime; ``target`` is its compute capability, such as ``sm86``.
        fault: why it may run on no machine; ``doubt``: why only who names its runtime gets it.
    """

    file: str
    precision: str
    engine: str | None = None
    version: str = ""
    target: str = ""
    fault: str | None = None
    doubt: str | None = None


@dataclass(frozen=True)
class Machine:
    """What is here: the version of each runtime that can be imported, and the GPU's compute capability."""

    runtimes: Mapping[str, str] = field(default_factory=dict)
    gpu: str | None = None


@dataclass(frozen=True)
class Choice:
    """One way to run a bundle, and why it stands where it stands in the order."""

    file: str
    runtime: str
    precision: str
    reason: str


@dataclass(frozen=True)
class Ranking:
    """The ways to run a bundle here, the best first, and one clause for each file or runtime passed over."""

    choices: tuple[Choice, ...]
    passed: tuple[str, ...]


def rank(
    offers: Sequence[Offer],
    machine: Machine,
    *,
    default: str,
    precision: str | None = None,
    runtime: str | None = None,
    cpu: str = "onnxruntime",
) -> Ranking:
    """Order the ways in which ``offers`` run on ``machine``.

    An engine that was built for the GPU here comes first (one of the wanted precision before others), then ONNX
    Runtime's CUDA provider, then the CPU. ONNX Runtime's TensorRT provider builds while it loads, so it is never
    chosen unasked.

    Args:
        default: the precision that the bundle prefers.
        precision: the one precision that will do.
        runtime: the one runtime that will do; whether it is installed is then left to its loader to say.
        cpu: which runtime goes first on a CPU, ``onnxruntime`` or ``openvino``.
    """
    wanted = precision or default
    choices: list[Choice] = []
    passed: list[str] = []
    for offer in sorted(offers, key=lambda offer: (offer.engine is None, offer.precision != wanted)):
        if offer.engine is not None:
            why_not = _engine_fault(offer, machine, precision, runtime)
            if why_not is None:
                reason = (
                    f"{_NAMES[offer.engine]} was asked for" if runtime else f"it was built for the {machine.gpu} here"
                )
                choices.append(Choice(offer.file, offer.engine, offer.precision, reason))
            elif runtime in (None, offer.engine) or (offer.fault and runtime in PRODUCTS):
                passed.append(f"{offer.file} ({why_not})")
        elif offer.precision == wanted and runtime is not None:
            if runtime in _ONNX:
                choices.append(Choice(offer.file, runtime, wanted, f"{_NAMES[runtime]} was asked for"))
        elif offer.precision == wanted:
            found, left = _onnx(offer, machine, cpu)
            choices += found
            passed += left
    return Ranking(tuple(choices), tuple(passed))


def _engine_fault(offer: Offer, machine: Machine, precision: str | None, runtime: str | None) -> str | None:
    assert offer.engine is not None
    if offer.fault is not None:
        return offer.fault
    if precision not in (None, offer.precision):
        return f"it is {offer.precision}, not {precision}"
    if runtime is not None:
        return None if runtime == offer.engine else f"{runtime} was asked for"
    if offer.doubt is not None:
        return offer.doubt
    if offer.engine not in machine.runtimes:
        return f"the package {offer.engine} cannot be imported here"
    if machine.gpu is None:
        return "no GPU can be used here"
    here = machine.runtimes[offer.engine]
    return unfit(offer.engine, offer.version, offer.target, version=here, target=machine.gpu)


def _onnx(offer: Offer, machine: Machine, cpu: str) -> tuple[list[Choice], list[str]]:
    choices: list[Choice] = []
    passed: list[str] = []
    if "onnxruntime_cuda" in machine.runtimes:
        choices.append(Choice(offer.file, "onnxruntime_cuda", offer.precision, "ONNX Runtime has its CUDA provider"))
    first, second = (cpu, *(name for name in _CPU if name != cpu))
    for name in (first, second):
        if name not in machine.runtimes:
            if name == first:
                passed.append(f"{_NAMES[name]} (the package {name} cannot be imported here)")
        else:
            reason = f"it is what the bundle prefers on a CPU ({first})" if name == first else "it is what is left"
            choices.append(Choice(offer.file, name, offer.precision, reason))
    return choices, passed


def here(offers: Sequence[Offer]) -> Machine:
    """Look for the runtimes and, where an engine is offered, for the GPU of this machine."""
    runtimes: dict[str, str] = {}
    try:
        ort = import_module("onnxruntime")
    except ImportError:
        ort = None
    if ort is not None:
        providers = ort.get_available_providers()
        known = {"onnxruntime": "CPUExecutionProvider", "onnxruntime_cuda": "CUDAExecutionProvider"}
        runtimes |= {name: ort.__version__ for name, provider in known.items() if provider in providers}
    if find_spec("openvino") is not None:  # importing it takes long, and the choice is rarely it
        runtimes["openvino"] = ""
    for name in sorted({offer.engine for offer in offers if offer.engine is not None and offer.fault is None}):
        try:
            runtimes[name] = import_api(name).__version__
        except MissingDependency:
            continue
    return Machine(runtimes, _gpu() if set(PRODUCTS) & set(runtimes) else None)


def _gpu() -> str | None:
    try:
        with Cuda() as device:
            return device.target
    except DeployError:  # no bindings, no driver, no GPU: each time there is none that can be used
        return None
