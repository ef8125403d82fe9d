"""Find the divisions and logarithms of a network that a small constant guards, which fp16 would round to zero."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import onnx

_MIN_NORMAL = 6.2e-5  # of fp16; what is smaller loses digits, and below 3e-8 all of them
_GUARDS = ("Add", "Sub", "Clip", "Max", "Where")
# What a guarded value may go through before it is divided by, and what makes the value that is guarded.
_CARRIES = (
    "Sqrt", "Pow", "Expand", "Reshape", "Squeeze", "Unsqueeze", "Transpose", "Identity", "Cast", "Abs", "Neg", "Mul",
    "Max", "Clip", "Where", "ReduceSum", "ReduceMean", "Flatten", "Concat", "Slice",
)  # fmt: skip
_STATISTICS = ("Pow", "Abs", "Sqrt", "Sub", "Identity", "Expand", "Reshape", "Squeeze", "Unsqueeze")
_SINGULAR = ("Reciprocal", "Log", "Div")


def guarded_nodes(model: onnx.ModelProto) -> list[str]:
    """Return the names of the nodes that have to stay in fp32 for the sake of a guard, in the order of the graph.

    Those are the addition or the bound with the small constant, all from there to what divides by it or takes its
    logarithm, and the sums and squares before it: the square of a small number vanishes in fp16 as well.
    """
    graph = model.graph
    small = _small_constants(graph)
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    maker = {name: node for node in graph.node for name in node.output}
    kept: set[str] = set()
    for node in graph.node:
        guards = node.op_type in _GUARDS and (small & set(node.input) or _bound_is_small(node))
        if guards and (chain := _to_singular(node, readers)):
            kept |= {node.name, *chain, *(one.name for name in node.input for one in _statistic(name, maker))}
    return [node.name for node in graph.node if node.name in kept]


def _small_constants(graph: onnx.GraphProto) -> set[str]:
    """Return the names of the constants that are not zero and that fp16 cannot hold exactly enough."""
    from onnx import numpy_helper

    found = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        for attribute in node.attribute:
            if node.op_type == "Constant" and attribute.name == "value":
                found[node.output[0]] = attribute.t
    small = set()
    for name, tensor in found.items():
        if tensor.data_type == tensor.FLOAT:
            values = np.abs(numpy_helper.to_array(tensor))
            if values.size and 0 < values.max() < _MIN_NORMAL:
                small.add(name)
    return small


def _bound_is_small(node: onnx.NodeProto) -> bool:
    """Return whether ``node`` is a Clip that holds a small lower bound as an attribute, as before opset 11."""
    return node.op_type == "Clip" and any(a.name == "min" and 0 < a.f < _MIN_NORMAL for a in node.attribute)


def _to_singular(start: onnx.NodeProto, readers: dict[str, list[onnx.NodeProto]]) -> set[str]:
    """Return the names of the nodes on the ways from ``start`` to a division by it, a reciprocal or a logarithm."""
    found: set[str] = set()
    ends = False
    waiting = [start]
    while waiting:
        node = waiting.pop()
        for name in node.output:
            for reader in readers.get(name, []):
                if _is_singular(reader, name):
                    ends = True
                    found.add(reader.name)
                elif reader.op_type in _CARRIES and reader.name not in found:
                    found.add(reader.name)
                    waiting.append(reader)
    return found if ends else set()


def _is_singular(node: onnx.NodeProto, name: str) -> bool:
    return node.op_type in _SINGULAR and (node.op_type != "Div" or name in node.input[1:])


def _statistic(name: str, maker: dict[str, onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    """Yield the sums, squares and differences that make the tensor ``name``, back to the first other operator."""
    seen: set[str] = set()
    waiting = [name]
    while waiting:
        node = maker.get(waiting.pop())
        if node is None or node.name in seen:
            continue
        square = node.op_type == "Mul" and len(set(node.input)) == 1
        if square or node.op_type in _STATISTICS or node.op_type.startswith("Reduce"):
            seen.add(node.name)
            yield node
            waiting.extend(node.input)
