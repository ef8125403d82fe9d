"""Measure what fp16 would lose in each tensor of a network by running its calibration through the fp32 file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from deploy.engines.base import first_line
from deploy.engines.unreported import unreported
from deploy.errors import DeployError
from deploy.onnx.file import quiet
from deploy.onnx.opsets import too_new
from deploy.quantization.feeds import Feed

if TYPE_CHECKING:
    import onnx

FP16_MAX = 65504.0
HEADROOM = 2.0
MIN_SNR_DB = 40.0
MAX_IMAGES = 32  # more change no range much


@dataclass(frozen=True)
class TensorRange:
    """The range of one tensor over all images.

    Attributes:
        peak: its largest finite magnitude.
        snr_db: the signal to noise ratio of rounding it to fp16, in decibels: about 70 where its values are normal
            fp16 numbers, less the deeper they lie among the subnormal ones, and 0 where all of them vanish.
    """

    peak: float
    snr_db: float

    @property
    def fits(self) -> bool:
        """Whether fp16 holds it, even at twice the peak, for other images may peak higher."""
        return self.peak * HEADROOM <= FP16_MAX and self.snr_db >= MIN_SNR_DB


def tensor_ranges(model: onnx.ModelProto, feeds: Sequence[Feed]) -> dict[str, TensorRange]:
    """Measure the range of every float32 weight, input and intermediate tensor of ``model``.

    Args:
        model: an fp32 model.
        feeds: what it reads, one row each.

    Raises:
        DeployError: ONNX Runtime cannot run the model.
    """
    from onnx import numpy_helper

    found: dict[str, list[float]] = {}
    for tensor in model.graph.initializer:
        _add(found, tensor.name, numpy_helper.to_array(tensor))
    for node in model.graph.node:
        for attribute in node.attribute:
            if node.op_type == "Constant" and attribute.name == "value":
                _add(found, node.output[0], numpy_helper.to_array(attribute.t))
    for values in _intermediates(model, feeds):
        for key, value in values.items():
            _add(found, key, value)
    return {key: _range(*sums) for key, sums in found.items()}


def overflowing_nodes(model: onnx.ModelProto, found: dict[str, TensorRange]) -> list[str]:
    """Return the names of the nodes that read or write a tensor which fp16 cannot hold, in the order of the graph."""
    weights = {tensor.name for tensor in model.graph.initializer}
    return [
        node.name
        for node in model.graph.node
        if any(not found[key].fits for key in (*node.input, *node.output) if key in found and key not in weights)
        or any(
            not _tolerates_fp16(node, k, found[key])
            for k, key in enumerate(node.input)
            if key in weights and key in found
        )
    ]


def _tolerates_fp16(node: onnx.NodeProto, place: int, weight: TensorRange) -> bool:
    """Return whether a node works with a weight in fp16; the small values of one that is only added do not matter."""
    added = node.op_type in ("Add", "Sub") or (node.op_type in ("Conv", "ConvTranspose", "Gemm") and place == 2)
    return weight.peak <= FP16_MAX and (added or weight.snr_db >= MIN_SNR_DB)


def _add(found: dict[str, list[float]], key: str, value: np.ndarray) -> None:
    """Add a tensor to its sums: peak, energy, and the energy of the rounding error."""
    if value.dtype != np.float32:
        return
    exact = value[np.isfinite(value)].astype(np.float64)
    with np.errstate(over="ignore", under="ignore"):
        rounded = exact.astype(np.float16).astype(np.float64)
    lost = np.where(np.isfinite(rounded), rounded - exact, 0.0)  # overflow shows in the peak
    peak, energy, noise = found.setdefault(key, [0.0, 0.0, 0.0])
    found[key] = [
        max(peak, float(np.abs(exact).max(initial=0.0))),
        energy + float((exact**2).sum()),
        noise + float((lost**2).sum()),
    ]


def _range(peak: float, energy: float, noise: float) -> TensorRange:
    # 200 dB stands for a tensor that rounding does not change at all.
    return TensorRange(peak, 200.0 if noise <= energy * 1e-20 else float(10 * np.log10(energy / noise)))


def _intermediates(model: onnx.ModelProto, feeds: Sequence[Feed]) -> Iterator[dict[str, np.ndarray]]:
    """Yield the inputs and the outputs of all nodes, feed by feed, computed without any fusion."""
    import onnx

    with unreported():
        import onnxruntime as ort

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    known = {value.name for value in copy.graph.output}
    names = [output for node in copy.graph.node for output in node.output if output]
    copy.graph.output.extend(onnx.ValueInfoProto(name=output) for output in names if output not in known)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    try:
        with quiet():
            session = ort.InferenceSession(copy.SerializeToString(), options, providers=["CPUExecutionProvider"])
        for feed in feeds:
            yield feed | dict(zip(names, session.run(names, feed), strict=True))
    except Exception as error:  # ONNX Runtime's exceptions share no public base class
        said = (
            too_new(str(error), "the fp32 file") or f"cannot run the fp32 file ({first_line(error)}); export it again."
        )
        raise DeployError(f"ONNX Runtime {said}") from error
