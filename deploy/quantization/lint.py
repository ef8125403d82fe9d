"""Lint an int8 file: find what keeps ONNX Runtime or OpenVINO from running it in int8."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from deploy.engines.base import first_line
from deploy.engines.unreported import unreported
from deploy.errors import DeployError
from deploy.onnx.file import quiet, read
from deploy.quantization.agreement import GOOD_SNR_DB, Agreement
from deploy.quantization.calibration import KEPT
from deploy.quantization.int8 import KINDS, operators

if TYPE_CHECKING:
    import onnx

_HEAVY = ("Conv", "Gemm", "MatMul", "ConvTranspose")


@dataclass(frozen=True)
class LintFinding:
    """One fault that the linter found: ``what`` is odd at ``where``, and ``why`` it matters.

    Where the file itself says that it was made so (``niwaki quantize --keep``), it is ``intended``.
    """

    what: str
    where: str
    why: str
    intended: bool = False

    def __str__(self) -> str:
        return f"{self.where}: {self.what} ({self.why})"


def lint_qdq(path: Path) -> list[LintFinding]:
    """Return what is odd about the int8 file at ``path`` for ONNX Runtime and OpenVINO.

    Looks at the element type, zero-point and scale of every quantiser, at convolutions and matrix products that stay
    in fp32 between quantised ones, and at what ONNX Runtime's optimised graph leaves unfused.

    Raises:
        DeployError: the file is missing, is not ONNX, is not quantised, or ONNX Runtime cannot load it.
    """
    from onnx import numpy_helper

    path = Path(path)
    model = read(path)
    graph = model.graph
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    quantisers = [node for node in graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    if not quantisers:
        raise DeployError(f"{path} is not quantised; make the int8 file first.")
    found: list[LintFinding] = []
    for node in quantisers:
        found += _lint_quantiser(node, constants)
    stated = Agreement.read(path)
    if stated is not None and stated.snr_db < GOOD_SNR_DB:
        alike = f"{100 * stated.agreement:.0f} % of the answers alike"
        what = f"{stated.snr_db:.1f} dB against fp32 when it was made, {alike}"
        found.append(LintFinding(what, path.name, f"under {GOOD_SNR_DB:g} dB: measure its accuracy before it ships"))
    found += _find_islands(graph, _kept(model))
    return found + _find_unfused(path, graph)


def _lint_quantiser(node: onnx.NodeProto, constants: dict[str, np.ndarray]) -> list[LintFinding]:
    where = node.name or node.output[0]
    scale = constants.get(node.input[1])
    zero = constants.get(node.input[2]) if len(node.input) > 2 else None
    if scale is None or zero is None:
        return [LintFinding("scale or zero-point is computed", where, "no runtime fuses it")]
    found = []
    if not np.isfinite(scale).all() or (scale <= 0).any():
        value = float(scale.reshape(-1)[0])
        found.append(LintFinding(f"scale {value:g}", where, "a scale has to be above 0 and finite"))
    if zero.dtype.name not in ("int8", "uint8", "int32"):
        found.append(LintFinding(f"{zero.dtype.name} values", where, "ONNX Runtime has no such kernels on a CPU"))
    if zero.dtype.name == "uint8" and node.input[0] in constants:
        found.append(LintFinding("uint8 weights", where, "kernels for int8 weights are the fast ones"))
    if zero.any() and not (zero.dtype == np.uint8 and (zero == 128).all()):
        found.append(LintFinding("a zero-point that is neither 0 nor uint8's middle", where, "sums get slower"))
    if node.op_type == "QuantizeLinear" and scale.size > 1:
        found.append(LintFinding("activations per channel", where, "ONNX Runtime then fuses nothing around it"))
    return found


def _kept(model: onnx.ModelProto) -> dict[str, str]:
    """Return the kind of each operator that the file says was left in fp32 for speed or exactness, by its name."""
    stated = next((one.value for one in model.metadata_props if one.key == KEPT), "")
    return {name: kind for kind in stated.split(",") if kind in KINDS for name in operators(model, kind)}


def _find_islands(graph: onnx.GraphProto, kept: Mapping[str, str]) -> list[LintFinding]:
    """Find heavy operators in fp32: those that read no dequantised tensor."""
    maker = {name: node for node in graph.node for name in node.output}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    found = []
    for node in graph.node:
        if node.op_type not in _HEAVY:
            continue
        before = [maker[name].op_type for name in node.input if name in maker]
        after = [one.op_type for name in node.output for one in readers.get(name, [])]
        if "DequantizeLinear" not in before:
            beside = "beside quantised operators" if "QuantizeLinear" in after else "on its own"
            kind = kept.get(node.name)
            why = f"left so on purpose: {kind}" if kind else "its input and output are converted"
            found.append(
                LintFinding(f"{node.op_type} in fp32 {beside}", node.name or node.output[0], why, intended=bool(kind))
            )
    return found


def _find_unfused(path: Path, graph: onnx.GraphProto) -> list[LintFinding]:
    """Find quantised heavy operators that ONNX Runtime still runs in fp32 after all its optimisations."""
    import onnx

    with unreported():
        import onnxruntime as ort

    with tempfile.TemporaryDirectory() as folder:
        options = ort.SessionOptions()
        # The level above EXTENDED rewrites layouts for this processor, with operators of its own.
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        options.optimized_model_filepath = str(Path(folder) / "optimised.onnx")
        options.log_severity_level = 3
        try:
            with quiet():
                ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime's exceptions share no public base class
            raise DeployError(f"ONNX Runtime cannot load {path} ({first_line(error)}); quantise it again.") from error
        left = Counter(node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node)
    maker = {name: node.op_type for node in graph.node for name in node.output}
    found = []
    for op_type in _HEAVY:
        nodes = [node for node in graph.node if node.op_type == op_type]
        quantised = sum(maker.get(node.input[0]) == "DequantizeLinear" for node in nodes)
        unfused = left[op_type] - (len(nodes) - quantised)
        if quantised and unfused > 0:
            what = f"{unfused} of {quantised} quantised {op_type} not fused"
            found.append(LintFinding(what, path.name, "they run in fp32"))
    return found
