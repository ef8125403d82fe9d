"""The graph of an ONNX file off its bytes, and parts of it written back, without the package onnx."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from deploy.onnx.wire import fields, text, varints

INT8 = 3  # of onnx.TensorProto
_INT, _INTS = 2, 7  # of onnx.AttributeProto


@dataclass
class Tensor:
    """A constant: its shape, its element type and, where they are stored raw, its bytes in the file."""

    shape: list[int] = field(default_factory=list)
    kind: int = 0
    raw: memoryview | None = None

    def int8(self) -> np.ndarray:
        """The values, flat; none where they are not int8, not stored raw or not as many as the shape says."""
        raw = self.raw if self.kind == INT8 and isinstance(self.raw, memoryview) else bytearray()
        return np.frombuffer(raw if len(raw) == math.prod(self.shape) else bytearray(), np.int8)


@dataclass
class Node:
    """A node: its operator, its inputs and outputs, its attributes of whole numbers and of words."""

    kind: str = ""
    inputs: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)
    numbers: dict[str, list[int]] = field(default_factory=dict)
    words: dict[str, str] = field(default_factory=dict)


@dataclass
class Graph:
    """Nodes in order, constants by name, and the inputs' shapes, 0 where a dimension is free."""

    nodes: list[Node] = field(default_factory=list)
    tensors: dict[str, Tensor] = field(default_factory=dict)
    inputs: dict[str, list[int]] = field(default_factory=dict)


def graph_of(data: bytes | bytearray) -> Graph:
    """The main graph of the ONNX file ``data``; its constants are views of ``data``.

    Raises:
        ValueError, IndexError, TypeError: the bytes are no ONNX file.
    """
    found = Graph()
    for number, graph in fields(memoryview(data)):
        for part, value in fields(graph) if number == 7 else ():
            if part == 1:
                found.nodes.append(_node(value))
            elif part == 5:
                _tensor(value, found.tensors)
            elif part == 11:
                _input(value, found.inputs)
    return found


def with_parts(data: bytes, nodes: Mapping[int, Sequence[bytes]], tensors: Sequence[bytes]) -> bytes:
    """The file with other nodes in the place of some, and with more constants.

    Args:
        data: an ONNX file.
        nodes: for the place of a node among all, what comes there instead, as ``node_bytes`` gives it.
        tensors: as ``tensor_bytes`` gives them.
    """
    return b"".join(
        _written(number, b"".join(_changed(value, nodes, tensors)) if number == 7 else value)
        for number, value in fields(memoryview(data))
    )


def node_bytes(
    kind: str, inputs: Sequence[str], outputs: Sequence[str], numbers: Mapping[str, int | Sequence[int]]
) -> bytes:
    """A node without a name, as the bytes of its message; attributes are whole numbers or lists of them."""
    parts = [_written(1, name.encode()) for name in inputs] + [_written(2, name.encode()) for name in outputs]
    parts.append(_written(4, kind.encode()))
    for name, value in numbers.items():
        values = [_written(3, value), _written(20, _INT)]
        if not isinstance(value, int):
            values = [*(_written(8, one) for one in value), _written(20, _INTS)]
        parts.append(_written(5, b"".join([_written(1, name.encode()), *values])))
    return b"".join(parts)


def tensor_bytes(name: str, values: np.ndarray) -> bytes:
    """An int8 constant, as the bytes of its message."""
    shape = [_written(1, size) for size in values.shape]
    return b"".join([*shape, _written(2, INT8), _written(8, name.encode()), _written(9, values.tobytes())])


def _changed(graph: memoryview, nodes: Mapping[int, Sequence[bytes]], tensors: Sequence[bytes]) -> Iterator[bytes]:
    place = -1
    for number, value in fields(graph):
        place += number == 1
        if number == 1 and place in nodes:
            yield from (_written(1, one) for one in nodes[place])
        else:
            yield _written(number, value)
    yield from (_written(5, one) for one in tensors)


def _written(number: int, value: Any) -> bytes:
    """One field; a model and its graph have none of a fixed width."""
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value % (1 << 64))
    return _varint(number << 3 | 2) + _varint(len(value)) + bytes(value)


def _varint(value: int) -> bytes:
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*found, value])


def _node(data: memoryview) -> Node:
    node = Node()
    for number, value in fields(data):
        if number in (1, 2):
            (node.inputs if number == 1 else node.outputs).append(text(value))
        elif number == 4:
            node.kind = text(value)
        elif number == 5:
            _attribute(value, node)
    return node


def _attribute(data: memoryview, node: Node) -> None:
    name, numbers, word = "", [], None
    for number, value in fields(data):
        if number == 1:
            name = text(value)
        elif number in (3, 8):  # one, or a list, packed or not
            numbers += [value] if isinstance(value, int) else varints(value)
        elif number == 4:
            word = value
    if numbers:
        node.numbers[name] = numbers
    if isinstance(word, memoryview):  # of a number bytes() would make as many zeros
        node.words[name] = bytes(word).decode(errors="replace")


def _tensor(data: memoryview, tensors: dict[str, Tensor]) -> None:
    name, tensor = "", Tensor()
    for number, value in fields(data):
        if number == 1:
            tensor.shape += [value] if isinstance(value, int) else varints(value)
        elif number == 2:
            tensor.kind = int(value)
        elif number == 8:
            name = text(value)
        elif number == 9:
            tensor.raw = value
    tensors[name] = tensor


def _input(data: memoryview, inputs: dict[str, list[int]]) -> None:
    """A ValueInfoProto: type 2, in it tensor_type 1, in it shape 2, in it dim 1, in it dim_value 1."""
    name, kinds = "", []
    for number, value in fields(data):
        if number == 1:
            name = text(value)
        elif number == 2:
            kinds.append(value)
    for want in (1, 2):
        kinds = [value for kind in kinds for number, value in fields(kind) if number == want]
    dims = [value for shape in kinds for number, value in fields(shape) if number == 1]
    inputs[name] = [next((int(value) for number, value in fields(dim) if number == 1), 0) for dim in dims]
