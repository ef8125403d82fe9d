"""Quantised weights as ONNX Runtime computes them fastest on a processor with AMX, value for value.

ONNX Runtime's convolution for weights with zero-point 0 uses VNNI alone; its matrix product, which it takes for any
other zero-point, uses AMX. So weights w with zero-point 0 become w - 1 with zero-point -1: the same numbers, the same
answers. It pays only where a convolution sums many products, and OpenVINO leaves such weights in fp32; so it is done to
the bytes on their way into ONNX Runtime, and the file stays as it is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from deploy.onnxwire import fields, text

_INT8 = 3  # of onnx.TensorProto
PRODUCTS = 700
"""From this many products a sum on, ONNX Runtime 1.31 gains; docs/engines.md has what was measured."""


@dataclass
class _Tensor:
    """A constant: its shape, its element type and, writable, its bytes where they are stored raw."""

    shape: list[int] = field(default_factory=list)
    kind: int = 0
    raw: memoryview | None = None


@dataclass
class _Node:
    """A node: its operator, the names of its inputs and outputs, and how many groups it has."""

    kind: str = ""
    inputs: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)
    groups: int = 1


def has_amx(told: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether this processor multiplies matrices of int8 by itself; where the system does not say, no."""
    return told.is_file() and "amx_int8" in told.read_text(encoding="utf-8", errors="replace")


def for_amx(data: bytes) -> bytes | None:
    """The ONNX file ``data`` with the weights of its long quantised convolutions one lower, and their zero-points.

    Returns:
        A file of the same length that computes the same, or None where there is nothing to change; so too for bytes
        that are no ONNX file, for ONNX Runtime says better what is wrong with them.
    """
    if b"DequantizeLinear" not in data:
        return None
    changed = bytearray(data)
    nodes: list[_Node] = []
    tensors: dict[str, _Tensor] = {}
    try:
        for number, graph in fields(memoryview(changed)):
            for part, value in fields(graph) if number == 7 else ():
                if part == 1:
                    nodes.append(_node(value))
                elif part == 5:
                    _tensor(value, tensors)
    except (ValueError, IndexError, TypeError):
        return None
    found = _long(nodes, tensors)
    for array in found:
        np.subtract(array, 1, out=array)
    return bytes(changed) if found else None


def _long(nodes: list[_Node], tensors: Mapping[str, _Tensor]) -> list[np.ndarray]:
    """The weights and zero-points to lower, as arrays into the file."""
    reads = Counter(name for node in nodes for name in node.inputs)
    maker = {name: node for node in nodes for name in node.outputs}
    found: list[np.ndarray] = []
    for node in nodes:
        weighed = node.kind == "Conv" and node.groups == 1 and len(node.inputs) > 1
        restored = maker.get(node.inputs[1]) if weighed else None
        if restored is None or restored.kind != "DequantizeLinear" or len(restored.inputs) != 3:
            continue
        name, _, zero_name = restored.inputs
        weights, zeros = tensors.get(name), tensors.get(zero_name)
        if weights is None or zeros is None or int(np.prod(weights.shape[1:])) < PRODUCTS:
            continue
        # What somebody else reads as well has to stay.
        pair = [_array(one) for one in (weights, zeros) if reads[name] == reads[zero_name] == 1]
        if len(pair) == 2 and pair[0].size and pair[0].min() > -128 and pair[1].size and not pair[1].any():
            found += pair
    return found


def _array(tensor: _Tensor) -> np.ndarray:
    """The int8 values, writable; none where the tensor is of another type or not stored raw."""
    raw = tensor.raw if tensor.kind == _INT8 and tensor.raw is not None else bytearray()
    return np.frombuffer(raw, np.int8)


def _node(data: memoryview) -> _Node:
    node = _Node()
    for number, value in fields(data):
        if number in (1, 2):
            (node.inputs if number == 1 else node.outputs).append(text(value))
        elif number == 4:
            node.kind = text(value)
        elif number == 5:
            attribute = dict(fields(value))
            if text(attribute.get(1, memoryview(b""))) == "group":
                node.groups = int(attribute.get(3, 1))
    return node


def _tensor(data: memoryview, tensors: dict[str, _Tensor]) -> None:
    name, tensor = "", _Tensor()
    for number, value in fields(data):
        if number == 1:
            tensor.shape.append(int(value))
        elif number == 2:
            tensor.kind = int(value)
        elif number == 8:
            name = text(value)
        elif number == 9:
            tensor.raw = value
    tensors[name] = tensor
