"""Parse the graph of an ONNX file from its bytes and write parts of it back, without the package onnx."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from deploy.onnx.protobuf import fields, text, varints

INT8 = 3  # of onnx.TensorProto
_INT, _INTS = 2, 7  # of onnx.AttributeProto
_DEEPEST = 64


@dataclass
class GraphTensor:
    """A constant: its shape, its element type and, where its values are stored raw, their bytes in the file."""

    shape: list[int] = field(default_factory=list)
    dtype: int = 0
    raw: memoryview | None = None

    def int8(self) -> np.ndarray:
        """Return the values, flat; none where they are not int8, not stored raw or not as many as the shape says."""
        raw = self.raw if self.dtype == INT8 and isinstance(self.raw, memoryview) else bytearray()
        return np.frombuffer(raw if len(raw) == math.prod(self.shape) else bytearray(), np.int8)


@dataclass
class GraphNode:
    """A node: its operator, its inputs and outputs, and its attributes that hold integers or strings.

    ``dtype`` is the element type of a tensor that it holds, as a Constant does; 0 where it holds none.
    """

    op_type: str = ""
    inputs: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)
    ints: dict[str, list[int]] = field(default_factory=dict)
    strings: dict[str, str] = field(default_factory=dict)
    dtype: int = 0


@dataclass
class Graph:
    """Nodes in order, constants by name, the shape of each input, 0 where a dimension is free, and its element type."""

    nodes: list[GraphNode] = field(default_factory=list)
    tensors: dict[str, GraphTensor] = field(default_factory=dict)
    inputs: dict[str, list[int]] = field(default_factory=dict)
    input_types: dict[str, int] = field(default_factory=dict)


def parse_graph(data: bytes | bytearray) -> Graph:
    """Parse the main graph of the ONNX file ``data``; its constants are views of ``data``.

    Raises:
        ValueError, IndexError, TypeError: the bytes are no ONNX file.
    """
    found = Graph()
    for number, graph in fields(memoryview(data)):
        for part, value in fields(graph) if number == 7 else ():
            if part == 1:
                found.nodes.append(_parse_node(value))
            elif part == 5:
                _parse_tensor(value, found.tensors)
            elif part == 11:
                _parse_input(value, found)
    return found


def every_node(data: bytes | bytearray) -> Iterator[GraphNode]:
    """Yield the nodes of the ONNX file ``data``, those within branches, loops and functions among them.

    Raises:
        ValueError, IndexError, TypeError: the bytes are no ONNX file, or graphs lie in each other without end.
    """
    for number, value in fields(memoryview(data)):
        if number in (7, 25):  # the graph, and functions, whose nodes have another number
            yield from _nodes_in(value, 1 if number == 7 else 7, 0)


def _nodes_in(graph: Any, number: int, depth: int) -> Iterator[GraphNode]:
    if depth > _DEEPEST:
        raise ValueError("graphs without end")
    for part, node in fields(graph):
        if part != number:
            continue
        yield _parse_node(node)
        for attribute in (value for kind, value in fields(node) if kind == 5):
            for kind, inner in fields(attribute):
                if kind in (6, 11):
                    yield from _nodes_in(inner, 1, depth + 1)


def replace_nodes(data: bytes, nodes: Mapping[int, Sequence[bytes]], tensors: Sequence[bytes]) -> bytes:
    """Return the file with some nodes replaced and some constants added.

    Args:
        data: an ONNX file.
        nodes: by the index of a node among all, the nodes that replace it, from ``encode_node``.
        tensors: from ``encode_tensor``.
    """
    return b"".join(
        _encode_field(number, b"".join(_rewrite(value, nodes, tensors)) if number == 7 else value)
        for number, value in fields(memoryview(data))
    )


def encode_node(
    op_type: str, inputs: Sequence[str], outputs: Sequence[str], ints: Mapping[str, int | Sequence[int]]
) -> bytes:
    """Encode a node without a name as its message; each attribute is an integer or a list of integers."""
    parts = [_encode_field(1, name.encode()) for name in inputs] + [_encode_field(2, name.encode()) for name in outputs]
    parts.append(_encode_field(4, op_type.encode()))
    for name, value in ints.items():
        values = [_encode_field(3, value), _encode_field(20, _INT)]
        if not isinstance(value, int):
            values = [*(_encode_field(8, one) for one in value), _encode_field(20, _INTS)]
        parts.append(_encode_field(5, b"".join([_encode_field(1, name.encode()), *values])))
    return b"".join(parts)


def encode_tensor(name: str, values: np.ndarray) -> bytes:
    """Encode an int8 constant as its message."""
    shape = [_encode_field(1, size) for size in values.shape]
    name_and_type = [_encode_field(2, INT8), _encode_field(8, name.encode())]
    return b"".join([*shape, *name_and_type, _encode_field(9, values.tobytes())])


def _rewrite(graph: memoryview, nodes: Mapping[int, Sequence[bytes]], tensors: Sequence[bytes]) -> Iterator[bytes]:
    place = -1
    for number, value in fields(graph):
        place += number == 1
        if number == 1 and place in nodes:
            yield from (_encode_field(1, one) for one in nodes[place])
        else:
            yield _encode_field(number, value)
    yield from (_encode_field(5, one) for one in tensors)


def _encode_field(number: int, value: Any) -> bytes:
    """Encode one field; a model and its graph have none of fixed width."""
    if isinstance(value, int):
        return _encode_varint(number << 3) + _encode_varint(value % (1 << 64))
    return _encode_varint(number << 3 | 2) + _encode_varint(len(value)) + bytes(value)


def _encode_varint(value: int) -> bytes:
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*found, value])


def _parse_node(data: memoryview) -> GraphNode:
    node = GraphNode()
    for number, value in fields(data):
        if number in (1, 2):
            (node.inputs if number == 1 else node.outputs).append(text(value))
        elif number == 4:
            node.op_type = text(value)
        elif number == 5:
            _parse_attribute(value, node)
    return node


def _parse_attribute(data: memoryview, node: GraphNode) -> None:
    name, ints, string = "", [], None
    for number, value in fields(data):
        if number == 1:
            name = text(value)
        elif number in (3, 8):  # one, or a list, packed or not
            ints += [value] if isinstance(value, int) else varints(value)
        elif number == 4:
            string = value
        elif number == 5:
            node.dtype = next((int(kind) for part, kind in fields(value) if part == 2), 0)
    if ints:
        node.ints[name] = ints
    if isinstance(string, memoryview):  # from a number n, bytes() would make n zeros
        node.strings[name] = bytes(string).decode(errors="replace")


def _parse_tensor(data: memoryview, tensors: dict[str, GraphTensor]) -> None:
    name, tensor = "", GraphTensor()
    for number, value in fields(data):
        if number == 1:
            tensor.shape += [value] if isinstance(value, int) else varints(value)
        elif number == 2:
            tensor.dtype = int(value)
        elif number == 8:
            name = text(value)
        elif number == 9:
            tensor.raw = value
    tensors[name] = tensor


def _parse_input(data: memoryview, found: Graph) -> None:
    """Parse a ValueInfoProto: field 2 is its type, then tensor_type is 1, elem_type 1, shape 2, dim 1, dim_value 1."""
    name, nested = "", []
    for number, value in fields(data):
        if number == 1:
            name = text(value)
        elif number == 2:
            nested.append(value)
    tensors = [value for message in nested for number, value in fields(message) if number == 1]
    parts = [part for tensor in tensors for part in fields(tensor)]
    found.input_types[name] = next((value for number, value in parts if number == 1 and isinstance(value, int)), 0)
    dims = [dim for number, shape in parts if number == 2 for one, dim in fields(shape) if one == 1]
    found.inputs[name] = [next((int(value) for number, value in fields(dim) if number == 1), 0) for dim in dims]
