"""Find the divisions and logarithms of a network that a small constant guards, which fp16 would round to zero."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import onnx

_MIN_NORMAL = 6.2e-5  # of fp16; what is smaller loses digits, and below 3e-8 all of them
_SMALLEST = 6e-8  # of fp16
_MOVES = ("Expand", "Reshape", "Squeeze", "Unsqueeze", "Transpose", "Identity", "Cast", "Flatten")
_COMPARES = ("Less", "LessOrEqual", "Greater", "GreaterOrEqual", "Not", "And", "Or")
_GUARDS = ("Add", "Sub", "Clip", "Max", "Where", *_COMPARES[:4])
# What a guarded value may go through before it is divided by, and what makes the value that is guarded.
_CARRIES = (
    *_MOVES, *_COMPARES, "Sqrt", "Pow", "Abs", "Neg", "Mul", "Div", "Add", "Sub", "Sum", "Mean", "Max", "Min", "Clip",
    "Where", "Relu", "Concat", "Split", "Slice", "Gather", "Tile", "Pad", "ReduceSum", "ReduceMean", "ReduceMax",
    "ReduceMin", "ReduceProd", "ReduceL1", "ReduceL2", "ReduceSumSquare", "MaxPool", "AveragePool", "GlobalMaxPool",
    "GlobalAveragePool",
)  # fmt: skip
# What a logarithm may go through before an exponential turns it into a power.
_SCALES = (*_MOVES, "Mul", "Div", "Neg", "Add", "Sub")
_STATISTICS = (*_MOVES, *_COMPARES, "Pow", "Abs", "Sqrt", "Sub", "Neg")


@dataclass(frozen=True)
class _Graph:
    """Who reads and who makes each tensor, and the values of those that are constants."""

    readers: Mapping[str, list[onnx.NodeProto]]
    maker: Mapping[str, onnx.NodeProto]
    constants: Mapping[str, np.ndarray]

    @classmethod
    def of(cls, graph: onnx.GraphProto) -> _Graph:
        from onnx import numpy_helper

        readers: dict[str, list[onnx.NodeProto]] = {}
        constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
        for node in graph.node:
            for name in node.input:
                readers.setdefault(name, []).append(node)
            if node.op_type in ("Constant", "ConstantOfShape"):
                for attribute in (a for a in node.attribute if a.name == "value"):
                    constants[node.output[0]] = numpy_helper.to_array(attribute.t)
            elif node.op_type in _MOVES and node.input[0] in constants:
                constants[node.output[0]] = constants[node.input[0]]
        return cls(readers, {name: node for node in graph.node for name in node.output}, constants)

    def is_guard(self, node: onnx.NodeProto) -> bool:
        """Return whether ``node`` adds, compares with or is bounded by a constant that fp16 cannot hold exactly enough.

        Before opset 11 the bound of a Clip is an attribute.
        """
        if node.op_type not in _GUARDS:
            return False
        found = [np.abs(self.constants[name]) for name in node.input if name in self.constants]
        found += [np.abs(np.float32(a.f)) for a in node.attribute if node.op_type == "Clip" and a.name == "min"]
        return any(one.dtype == np.float32 and one.size > 0 and 0 < one.max() < _MIN_NORMAL for one in found)

    def is_singular(self, node: onnx.NodeProto, name: str) -> bool:
        """Return whether ``node`` grows without bounds where its input ``name`` goes to zero."""
        if node.op_type == "Pow":
            exponent = self.constants.get(node.input[1])
            return name == node.input[0] and exponent is not None and bool((exponent < 0).any())
        return node.op_type in ("Reciprocal", "Log") or (node.op_type == "Div" and name in node.input[1:])

    def makes_statistics(self, node: onnx.NodeProto) -> bool:
        """Return whether ``node`` is one of the sums, squares, multiples and differences that a guard is added to."""
        if node.op_type in ("Mul", "Div"):
            square = len(set(node.input)) == 1
            return square or any(name in self.constants for name in node.input)
        return node.op_type in _STATISTICS or node.op_type.startswith("Reduce") or self.is_guard(node)


def guarded_nodes(model: onnx.ModelProto) -> list[str]:
    """Return the names of the nodes that have to stay in fp32 for the sake of a guard, in the order of the graph.

    Those are the addition, the comparison or the bound with the small constant, all from there to what divides by it or
    takes its logarithm, and the sums and squares before both: the square of a small number vanishes in fp16 as well.
    So does what multiplies by the inverse of a guarded value, which is too large for fp16 where that value is blank.
    """
    graph = _Graph.of(model.graph)
    kept: set[str] = set()
    for node in model.graph.node:
        if any(a.name == "epsilon" and 0 < a.f < _SMALLEST for a in node.attribute):
            kept.add(node.name)  # a normalisation of one operator
        if graph.is_guard(node):
            carrying, ends = _to_singular(node, graph)
            if ends:
                kept |= {node.name, *carrying, *(one.name for one in ends)}
                kept |= {one.name for end in (node, *ends) for one in _statistics(end, graph)}
                kept |= {one.name for end in ends for one in _products(end, graph)}
    return [node.name for node in model.graph.node if node.name in kept]


def _to_singular(start: onnx.NodeProto, graph: _Graph) -> tuple[set[str], list[onnx.NodeProto]]:
    """Return the names of the nodes that carry what ``start`` gives, and the divisions and logarithms where it ends."""
    found: set[str] = set()
    ends: list[onnx.NodeProto] = []
    waiting = [start]
    while waiting:
        for name in waiting.pop().output:
            for reader in graph.readers.get(name, []):
                if graph.is_singular(reader, name):
                    ends.append(reader)
                elif reader.op_type in _CARRIES and reader.name not in found:
                    found.add(reader.name)
                    waiting.append(reader)
    return found, ends


def _products(end: onnx.NodeProto, graph: _Graph) -> Iterator[onnx.NodeProto]:
    """Yield the products that read what ``end`` gives, and what lies between, where that is an inverse.

    So is the exponential of a multiple of a logarithm.
    """
    if end.op_type == "Log":
        for path in _to_exponential(end, graph):
            yield from path
            yield from _products(path[-1], graph)
        return
    if end.op_type == "Div" and end.input[0] not in graph.constants:
        return
    seen: set[str] = set()
    waiting = [end]
    while waiting:
        for reader in (one for name in waiting.pop().output for one in graph.readers.get(name, [])):
            if reader.name in seen or reader.op_type not in (*_MOVES, "Mul", "Sqrt"):
                continue
            seen.add(reader.name)
            yield reader
            if reader.op_type != "Mul":
                waiting.append(reader)


def _to_exponential(start: onnx.NodeProto, graph: _Graph) -> Iterator[tuple[onnx.NodeProto, ...]]:
    """Yield each way from ``start`` to an exponential, that one last; of ways that meet again only the first."""
    seen: set[str] = set()
    waiting: list[tuple[onnx.NodeProto, ...]] = [(start,)]
    while waiting:
        path = waiting.pop()
        for reader in (one for name in path[-1].output for one in graph.readers.get(name, [])):
            if reader.op_type == "Exp":
                yield (*path, reader)
            elif reader.op_type in _SCALES and reader.name not in seen:
                seen.add(reader.name)
                waiting.append((*path, reader))


def _statistics(end: onnx.NodeProto, graph: _Graph) -> Iterator[onnx.NodeProto]:
    """Yield the sums, squares and differences that make what ``end`` reads, back to the first other operators."""
    seen: set[str] = set()
    waiting = list(end.input)
    while waiting:
        node = graph.maker.get(waiting.pop())
        if node is not None and node.name not in seen and graph.makes_statistics(node):
            seen.add(node.name)
            yield node
            waiting.extend(node.input)
