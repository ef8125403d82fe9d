"""What half precision would lose in each tensor of a network, found by running images through the fp32 file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from deploy.engines.base import first_line
from deploy.errors import DeployError
from deploy.onnx.file import quiet

if TYPE_CHECKING:
    import onnx

LARGEST = 65504.0
HEADROOM = 2.0
LEAST_DB = 40.0
IMAGES = 32


@dataclass(frozen=True)
class Range:
    """One tensor over all images.

    Attributes:
        peak: its largest finite magnitude.
        snr_db: signal to noise, in decibels, of rounding it to fp16; some 70 while its values are normal numbers of
            fp16, less the deeper they lie among the subnormal ones, 0 where all of them vanish.
    """

    peak: float
    snr_db: float

    @property
    def fits(self) -> bool:
        """Whether fp16 holds it: twice the peak does not overflow, for other images may peak higher."""
        return self.peak * HEADROOM <= LARGEST and self.snr_db >= LEAST_DB


def ranges(model: onnx.ModelProto, name: str, images: Sequence[np.ndarray]) -> dict[str, Range]:
    """The range of every weight and every intermediate tensor of ``model`` that is float32.

    Args:
        model: an fp32 model with one input, ``name``.
        images: float32 arrays (1, C, H, W); the first ``IMAGES`` are used.

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
    for values in _intermediates(model, name, images[:IMAGES]):
        for key, value in values.items():
            _add(found, key, value)
    return {key: _range(*sums) for key, sums in found.items()}


def wide_nodes(model: onnx.ModelProto, found: dict[str, Range]) -> list[str]:
    """The names of the nodes that read or write a tensor that fp16 does not hold, in the order of the graph."""
    weights = {tensor.name for tensor in model.graph.initializer}
    return [
        node.name
        for node in model.graph.node
        if any(not found[key].fits for key in (*node.input, *node.output) if key in found and key not in weights)
        or any(not _bears(node, k, found[key]) for k, key in enumerate(node.input) if key in weights and key in found)
    ]


def _bears(node: onnx.NodeProto, place: int, weight: Range) -> bool:
    """Whether a node can do with a weight in fp16; of one that is only added, the small values do not matter."""
    added = node.op_type in ("Add", "Sub") or (node.op_type in ("Conv", "ConvTranspose", "Gemm") and place == 2)
    return weight.peak <= LARGEST if added else weight.peak <= LARGEST and weight.snr_db >= LEAST_DB


def _add(found: dict[str, list[float]], key: str, value: np.ndarray) -> None:
    """Add the tensor to its sums: peak, energy, energy of what rounding changes."""
    if value.dtype != np.float32:
        return
    exact = value[np.isfinite(value)].astype(np.float64)
    with np.errstate(over="ignore", under="ignore"):
        rounded = exact.astype(np.float16).astype(np.float64)
    lost = np.where(np.isfinite(rounded), rounded - exact, 0.0)  # what overflows shows in the peak
    peak, energy, noise = found.setdefault(key, [0.0, 0.0, 0.0])
    found[key] = [
        max(peak, float(np.abs(exact).max(initial=0.0))),
        energy + float((exact**2).sum()),
        noise + float((lost**2).sum()),
    ]


def _range(peak: float, energy: float, noise: float) -> Range:
    # 200 dB stands for a tensor that rounding does not change at all.
    return Range(peak, 200.0 if noise <= energy * 1e-20 else float(10 * np.log10(energy / noise)))


def _intermediates(model: onnx.ModelProto, name: str, images: Sequence[np.ndarray]) -> Iterator[dict[str, np.ndarray]]:
    """The outputs of all nodes, image by image, computed without any fusion."""
    import onnx
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
        for image in images:
            yield dict(zip(names, session.run(names, {name: image}), strict=True))
    except Exception as error:  # ONNX Runtime's exceptions share no public base class
        raise DeployError(f"ONNX Runtime cannot run the fp32 file ({first_line(error)}); export it again.") from error
