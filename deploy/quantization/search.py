"""An int8 file that is worth having: what is slower in int8 stays in fp32, and the linter says what is odd."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from deploy.bench.timing import benchmark
from deploy.engines import load_engine
from deploy.engines.base import first_line
from deploy.errors import DeployError
from deploy.onnx.file import quiet, read
from deploy.quantization.int8 import KINDS, int8_from_fp32, operators

if TYPE_CHECKING:
    import onnx

_TRIAL_IMAGES = 4  # they set ranges, and no range changes a time
_GAIN = 0.98
_HEAVY = ("Conv", "Gemm", "MatMul", "ConvTranspose")


@dataclass(frozen=True)
class Int8Choice:
    """What was measured.

    Attributes:
        path: the int8 file.
        kept: the kinds of operators left in fp32, keys of ``deploy.quantization.int8.KINDS``.
        ratio: milliseconds of the int8 file over those of the fp32 file, medians of interleaved rounds.
        tried: that ratio for every set of kinds that was tried.
    """

    path: Path
    kept: tuple[str, ...]
    ratio: float
    tried: dict[tuple[str, ...], float]

    def __str__(self) -> str:
        kept = f"{' and '.join(self.kept)} kept in fp32" if self.kept else "everything in int8"
        slower = "" if self.ratio <= 1 else "; int8 is no faster here: ship the fp32 file"
        return f"{kept}, {self.ratio:.2f} of the time of fp32{slower}"


def fastest_int8(
    src: Path,
    dst: Path,
    calibration: Sequence[np.ndarray],
    *,
    seed: int = 0,
    threads: int = 1,
    runtime: str = "onnxruntime",
    rounds: int = 15,
) -> Int8Choice:
    """Quantise ``src`` to ``dst`` with those kinds of operators left in fp32 that are faster so on this machine.

    Starts with everything in int8 and, one kind at a time, keeps the kind whose absence brings most, as long as it
    brings two percent. Each set is timed against the fp32 file in turns, on one image of the calibration's size.

    Args:
        src, dst, calibration, seed: as for ``int8_from_fp32``.
        threads, runtime: how the file will be run.
        rounds: of each comparison.

    Raises:
        DeployError, MissingDependency: as ``int8_from_fp32``.
    """
    src = Path(src)
    model = read(src)
    present = [kind for kind in KINDS if operators(model, kind)]
    tried: dict[tuple[str, ...], float] = {}
    kept: tuple[str, ...] = ()
    trial = list(calibration)[:_TRIAL_IMAGES]
    with tempfile.TemporaryDirectory() as folder:

        def attempt(sets: list[tuple[str, ...]]) -> None:
            with ExitStack() as stack:
                dense = stack.enter_context(load_engine(src, threads=threads, runtime=runtime))
                dense.name = "fp32"
                engines = [dense]
                for kinds in sets:
                    path = Path(folder) / f"{'-'.join(kinds) or 'none'}.onnx"
                    int8_from_fp32(src, path, trial, seed=seed, keep_fp32=kinds)
                    engines.append(stack.enter_context(load_engine(path, threads=threads, runtime=runtime)))
                (name, spec) = next(iter(dense.inputs.items()))
                # The size of the images, for the file's own may be free.
                sizes = np.shape(trial[0])[1 - len(spec.shape) :]
                feed = np.random.default_rng(seed).standard_normal((1, *sizes))
                rows = benchmark(engines, {name: feed.astype(spec.dtype)}, rounds=rounds, warmup=3, runs_per_block=2)
                for kinds, row in zip(sets, rows[1:], strict=True):
                    if row.ratio_to_dense is not None:
                        tried[kinds] = row.ratio_to_dense

        attempt([(), *((kind,) for kind in present)])
        while True:
            more = [tuple(k for k in KINDS if k in (*kept, kind)) for kind in present if kind not in kept]
            attempt([kinds for kinds in more if kinds not in tried])
            best = min(more, key=lambda kinds: tried[kinds], default=kept)
            if best == kept or tried[best] > tried[kept] * _GAIN:
                break
            kept = best
    int8_from_fp32(src, dst, calibration, seed=seed, keep_fp32=kept)
    return Int8Choice(Path(dst), kept, tried[kept], tried)


@dataclass(frozen=True)
class Finding:
    """One thing that the linter saw: ``what`` is odd at ``where``, and ``why`` it matters."""

    what: str
    where: str
    why: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what} ({self.why})"


def lint_qdq(path: Path) -> list[Finding]:
    """What is odd about the int8 file at ``path``, for ONNX Runtime and OpenVINO.

    Looks at element types, zero-points and scales of every quantiser, at convolutions and matrix products that are
    left in fp32 between quantised ones, and at what ONNX Runtime's optimised graph fuses.

    Raises:
        DeployError: the file is missing, is not ONNX, is not quantised, or ONNX Runtime cannot load it.
    """
    from onnx import numpy_helper

    path = Path(path)
    graph = read(path).graph
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    quantisers = [node for node in graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    if not quantisers:
        raise DeployError(f"{path} is not quantised; make the int8 file first.")
    found: list[Finding] = []
    for node in quantisers:
        found += _lint_parameters(node, constants)
    found += _islands(graph)
    return found + _unfused(path, graph)


def _lint_parameters(node: onnx.NodeProto, constants: dict[str, np.ndarray]) -> list[Finding]:
    where = node.name or node.output[0]
    scale = constants.get(node.input[1])
    zero = constants.get(node.input[2]) if len(node.input) > 2 else None
    if scale is None or zero is None:
        return [Finding("scale or zero-point is computed", where, "no runtime fuses it")]
    found = []
    if not np.isfinite(scale).all() or (scale <= 0).any():
        found.append(Finding(f"scale {float(scale.reshape(-1)[0]):g}", where, "a scale has to be above 0 and finite"))
    if zero.dtype.name not in ("int8", "uint8", "int32"):
        found.append(Finding(f"{zero.dtype.name} values", where, "ONNX Runtime has no such kernels on a CPU"))
    if zero.dtype.name == "uint8" and node.input[0] in constants:
        found.append(Finding("uint8 weights", where, "kernels for int8 weights are the fast ones"))
    if zero.any() and not (zero.dtype == np.uint8 and (zero == 128).all()):
        found.append(Finding("a zero-point that is neither 0 nor uint8's middle", where, "sums get slower"))
    if node.op_type == "QuantizeLinear" and scale.size > 1:
        found.append(Finding("activations per channel", where, "ONNX Runtime then fuses nothing around it"))
    return found


def _islands(graph: onnx.GraphProto) -> list[Finding]:
    """Heavy operators that read no dequantised tensor though what feeds them, or what they feed, is quantised."""
    maker = {name: node for node in graph.node for name in node.output}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    found = []
    for node in graph.node:
        if node.op_type not in _HEAVY:
            continue
        fed = [maker[name].op_type for name in node.input if name in maker]
        next_to = [one.op_type for name in node.output for one in readers.get(name, [])]
        if "DequantizeLinear" not in fed:
            beside = "beside quantised operators" if "QuantizeLinear" in next_to else "on its own"
            found.append(Finding(f"{node.op_type} in fp32 {beside}", node.name or node.output[0], "an island"))
    return found


def _unfused(path: Path, graph: onnx.GraphProto) -> list[Finding]:
    """Quantised heavy operators that ONNX Runtime still runs in fp32 after all its optimisations."""
    import onnx
    import onnxruntime as ort

    with tempfile.TemporaryDirectory() as folder:
        options = ort.SessionOptions()
        # Extended: one level higher rewrites layouts for this processor, in operators of its own.
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        options.optimized_model_filepath = str(Path(folder) / "optimised.onnx")
        options.log_severity_level = 3
        try:
            with quiet():
                ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime's exceptions share no public base class
            raise DeployError(f"ONNX Runtime cannot load {path} ({first_line(error)}); quantise it again.") from error
        after = Counter(node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node)
    maker = {name: node.op_type for node in graph.node for name in node.output}
    found = []
    for kind in _HEAVY:
        nodes = [node for node in graph.node if node.op_type == kind]
        quantised = sum(maker.get(node.input[0]) == "DequantizeLinear" for node in nodes)
        left = after[kind] - (len(nodes) - quantised)
        if quantised and left > 0:
            found.append(Finding(f"{left} of {quantised} quantised {kind} not fused", path.name, "they run in fp32"))
    return found
