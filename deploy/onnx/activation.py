"""Tell from an ONNX file whether an output of it is decoded already: whether it ends in a softmax or a sigmoid."""

from __future__ import annotations

from pathlib import Path

from deploy.files import read_bytes
from deploy.onnx.protobuf import LARGEST, fields, text
from deploy.onnx.wire_graph import parse_graph

_DECODING = ("Softmax", "Sigmoid", "HardSigmoid")
_TRANSPARENT = (
    "Identity", "Cast", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "QuantizeLinear", "DequantizeLinear",
    "Clip", "Slice", "Gather", "Split", "ReduceMean", "ReduceMax", "GlobalAveragePool", "GlobalMaxPool", "AveragePool",
    "MaxPool",
)  # fmt: skip
_MIXING = ("Concat", "Max", "Min", "Mean", "Mul")  # of probabilities with each other


def final_activation(path: Path, output: str | None = None) -> str | None:
    """Return the operator that turns logits into probabilities at the end of a file; None where there is none.

    What only moves, converts, bounds, joins, chooses or averages probabilities after it is passed over. The logarithm
    of a softmax counts as logits, for its softmax is that of the logits.

    Args:
        path: an ONNX file.
        output: the name of an output; by default the first.

    Raises:
        OSError: the file cannot be read.
        ValueError, IndexError, TypeError: it is no ONNX file.
    """
    data = read_bytes(Path(path), LARGEST)
    graph = parse_graph(data)
    maker = {name: node for node in graph.nodes for name in node.outputs}
    constants = {*graph.tensors, *(name for node in graph.nodes if not node.inputs for name in node.outputs)}
    waiting, seen, found = [output or _first_output(data)], set[str](), None
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)  # a file that goes in circles ends too
        node = maker.get(name)
        if node is None:
            return None  # an input of the network
        if node.op_type in _DECODING:
            found = found or node.op_type
        elif node.op_type in _TRANSPARENT:
            waiting += node.inputs[:1]
        elif node.op_type == "Sub" and node.inputs[0] in constants:
            waiting += node.inputs[1:]  # what is left to 1
        elif node.op_type in _MIXING and not constants & set(node.inputs):
            waiting += node.inputs
        else:
            return None
    return found


def _first_output(data: bytes) -> str:
    for number, graph in fields(memoryview(data)):
        for part, value in fields(graph) if number == 7 else ():
            if part == 12:
                return next((text(name) for kind, name in fields(value) if kind == 1), "")
    return ""
