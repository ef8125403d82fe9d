"""Tell from an ONNX file whether an output of it is decoded already: whether it ends in a softmax or a sigmoid."""

from __future__ import annotations

from pathlib import Path

from deploy.files import read_bytes
from deploy.onnx.protobuf import LARGEST, fields, text
from deploy.onnx.wire_graph import parse_graph

_DECODING = ("Softmax", "Sigmoid", "HardSigmoid")
_TRANSPARENT = (
    "Identity", "Cast", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "QuantizeLinear", "DequantizeLinear",
)  # fmt: skip


def final_activation(path: Path, output: str | None = None) -> str | None:
    """Return the operator that turns logits into probabilities at the end of a file; None where there is none.

    What only moves or converts values after it is passed over. The logarithm of a softmax counts as logits, for its
    softmax is that of the logits.

    Args:
        path: an ONNX file.
        output: the name of an output; by default the first.

    Raises:
        OSError: the file cannot be read.
        ValueError, IndexError, TypeError: it is no ONNX file.
    """
    data = read_bytes(Path(path), LARGEST)
    maker = {name: node for node in parse_graph(data).nodes for name in node.outputs}
    name = output or _first_output(data)
    for _ in range(len(maker)):  # a file that goes in circles ends too
        node = maker.get(name)
        if node is None or node.op_type in _DECODING:
            return node.op_type if node else None
        if node.op_type not in _TRANSPARENT or not node.inputs:
            return None
        name = node.inputs[0]
    return None


def _first_output(data: bytes) -> str:
    for number, graph in fields(memoryview(data)):
        for part, value in fields(graph) if number == 7 else ():
            if part == 12:
                return next((text(name) for kind, name in fields(value) if kind == 1), "")
    return ""
