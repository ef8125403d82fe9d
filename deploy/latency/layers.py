"""Read what each layer of a network takes from the runtime's own profile."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from deploy.engines.base import Engine
from deploy.engines.onnxruntime.engine import OnnxRuntimeEngine
from deploy.engines.openvino import OpenVinoEngine
from deploy.errors import DeployError

Shape = tuple[int, ...]
PROFILED = ("onnxruntime", "openvino")
"""Runtimes whose profile of layers is read here."""
REORDERS = ("ReorderInput", "ReorderOutput", "Transpose", "Reorder")
"""Kinds of layers that only move numbers into the order that a kernel wants."""
TRANSPOSED = ("ConvTranspose", "Deconvolution")
"""Kinds of layers whose weights hold what they read first, and which add up for each number that they read."""
CASTS = ("QuantizeLinear", "DequantizeLinear", "Cast", "Convert", "Parameter", "Result", "Const", "Constant")


@dataclass(frozen=True)
class LayerTime:
    """One layer as a runtime ran it.

    Attributes:
        name: the runtime's name of it.
        kind: its operator, such as ``Conv``, ``QLinearConv`` or ``Reorder``.
        kernel: which kernel ran it, where the runtime tells.
        precision: of what it reads: ``fp32``, ``fp16``, ``int8``, or ``""`` where the runtime does not tell.
        ms: its best time over the runs.
        reads: shapes of what it reads, weights among them.
        makes: shapes of what it makes.
    """

    name: str
    kind: str
    kernel: str
    precision: str
    ms: float
    reads: tuple[Shape, ...] = ()
    makes: tuple[Shape, ...] = ()

    @property
    def is_product(self) -> bool:
        """Tell whether the layer multiplies by weights."""
        return any(part in self.kind for part in ("Conv", "Gemm", "MatMul", "FullyConnected", *TRANSPOSED))

    @property
    def weights(self) -> Shape:
        """Return its weights' shape, what it makes first; empty where it has none or the runtime does not tell."""
        if not self.is_product or len(self.reads) < 2:
            return ()
        # A quantised product reads scales and zero-points too: weights are the largest after the first.
        found = max(self.reads[1:], key=lambda shape: (len(shape), math.prod(shape)))
        if self.kind in TRANSPOSED and len(found) == len(self.reads[0]):
            return turned(found, depthwise=found[1] == 1 and self.makes[0][1:2] == self.reads[0][1:2])
        return found

    @property
    def macs(self) -> float:
        """Count its multiply-accumulates; 0 where it has no weights or shapes are not known."""
        weights, made = self.weights, self.makes[0] if self.makes else ()
        if not weights or not made:
            return 0.0
        if self.kind in TRANSPOSED and len(weights) >= len(made) > 2:
            # The weights are used once for each place of what is read; OpenVINO writes groups in front.
            return float(made[0] * math.prod(self.reads[0][2:]) * math.prod(weights))
        if "Conv" in self.kind and len(weights) > 2:
            # OpenVINO writes the groups of a grouped convolution in front.
            each = weights[2:] if len(weights) > len(made) else weights[1:]
            return float(math.prod(made) * math.prod(each))
        rows = math.prod(made) / made[-1]
        return float(rows * math.prod(weights[-2:]))

    @property
    def places(self) -> int:
        """Count the places of the image at which its weights are used."""
        shapes = self.reads if self.kind in TRANSPOSED else self.makes
        return math.prod(shapes[0][2:] or (1,)) if shapes else 1

    @property
    def bytes(self) -> float:
        """Count the bytes that it reads and makes at its precision."""
        width = {"int8": 1, "fp16": 2}.get(self.precision, 4)
        return float(width * sum(math.prod(shape) for shape in (*self.reads, *self.makes)))

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain data."""
        return asdict(self)

    @classmethod
    def from_dict(cls, given: Mapping[str, Any]) -> LayerTime:
        """Return what ``to_dict`` gave, also after a way through JSON."""
        shapes = {key: tuple(tuple(shape) for shape in given[key]) for key in ("reads", "makes")}
        return cls(**{**given, **shapes})


def turned(weights: Shape, *, depthwise: bool) -> Shape:
    """Return the shape of a transposed convolution's weights as that of any other one's: what it makes comes first."""
    return weights if depthwise or len(weights) < 3 else (weights[1], weights[0], *weights[2:])


class Profiler:
    """An engine that is run and then tells what each of its layers took at best.

    Args:
        path: an ONNX file.
        runtime: one of ``PROFILED``.
        threads: of one run.

    Raises:
        DeployError: the runtime has no profile that is read here, or cannot load the file.
        MissingDependency: the runtime is not installed.
    """

    def __init__(self, path: Path, *, runtime: str = "onnxruntime", threads: int = 1) -> None:
        self.runtime = runtime
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._best: dict[str, float] = {}
        self._counts: dict[str, Any] = {}
        self.engine: Engine
        if runtime == "onnxruntime":
            self._folder = tempfile.TemporaryDirectory()
            self.engine = OnnxRuntimeEngine(path, threads=threads, profile=Path(self._folder.name) / "profile")
        elif runtime == "openvino":
            self.engine = OpenVinoEngine(path, threads=threads, profile=True)
        else:
            raise DeployError(f"TimedLayer times are read from {' and '.join(PROFILED)}, not from {runtime}; name one.")

    def run(self, feeds: Mapping[str, np.ndarray]) -> None:
        """Run once."""
        self.engine.run(feeds)
        if isinstance(self.engine, OpenVinoEngine):
            for one in self.engine.layer_counts():
                ms = one.real_time.total_seconds() * 1e3
                if ms > 0:
                    self._best[one.node_name] = min(ms, self._best.get(one.node_name, ms))
                    self._counts[one.node_name] = one

    def layers(self) -> tuple[LayerTime, ...]:
        """Close the engine and return its layers in the order in which they ran."""
        try:
            if isinstance(self.engine, OnnxRuntimeEngine):
                return _from_events(json.loads(self.engine.end_profile().read_text(encoding="utf-8")))
            assert isinstance(self.engine, OpenVinoEngine)
            return self._from_counts(self.engine.layer_shapes())
        finally:
            self.close()

    def close(self) -> None:
        """Close the engine and remove what its runtime wrote."""
        if isinstance(self.engine, OnnxRuntimeEngine) and self._folder is not None:
            with suppress(DeployError):  # closed before: nothing is being written
                self.engine.end_profile()
        self.engine.close()
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None

    def _from_counts(self, shapes: Mapping[str, tuple[list[Shape], list[Shape]]]) -> tuple[LayerTime, ...]:
        found = []
        for name, one in self._counts.items():
            reads, makes = shapes.get(name, ([], []))
            kernel = str(one.exec_type)
            precision = "int8" if kernel.endswith(("_i8", "_u8")) else "fp16" if kernel.endswith("f16") else ""
            precision = precision or ("fp32" if kernel.endswith("f32") else "")
            layer = LayerTime(name, str(one.node_type), kernel, precision, self._best[name], tuple(reads), tuple(makes))
            found.append(layer)
        return tuple(found)


_PRECISIONS = {"float": "fp32", "float16": "fp16", "uint8": "int8", "int8": "int8"}


def _from_events(events: list[dict[str, Any]]) -> tuple[LayerTime, ...]:
    """Gather ONNX Runtime's events, one for each node of each run, into one time for each node."""
    best: dict[str, LayerTime] = {}
    order: dict[str, int] = {}
    for event in events:
        name = str(event.get("name", ""))
        if event.get("cat") != "Node" or not name.endswith("_kernel_time"):
            continue
        about = event.get("args", {})
        name = f"{name.removesuffix('_kernel_time')}#{about.get('node_index', '')}"
        ms = max(float(event["dur"]), 0.5) / 1e3  # whole microseconds: below one it says nothing
        order.setdefault(name, len(order))
        if name in best and best[name].ms <= ms:
            continue
        reads = [(str(kind), tuple(shape)) for one in about.get("input_type_shape", []) for kind, shape in one.items()]
        makes = [tuple(shape) for one in about.get("output_type_shape", []) for shape in one.values()]
        precision = _PRECISIONS.get(reads[0][0], "") if reads else ""
        kind = str(about.get("op_name", ""))
        shapes = tuple(shape for _, shape in reads)
        best[name] = LayerTime(name.rpartition("#")[0], kind, kind, precision, ms, shapes, tuple(makes))
    return tuple(best[name] for name in sorted(best, key=order.__getitem__))
