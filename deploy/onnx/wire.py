"""Reading what matters before a build off an ONNX file's bytes, so that a device needs no package for it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from deploy.errors import DeployError

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_KINDS = {1: "float32", 2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32", 7: "int64", 10: "float16"}
_QUANTISERS = ("QuantizeLinear", "DequantizeLinear")


@dataclass(frozen=True)
class WireNode:
    """A quantising node: its name, its operator and the names of its inputs."""

    name: str
    op: str
    inputs: tuple[str, ...]


@dataclass(frozen=True)
class Wire:
    """What was read: the file's properties, its Q and DQ nodes, its constants by name, and those kept ``outside`` it.

    A constant is (element type, its first value that is not 0, read as eight-bit integers); types that ONNX has and
    NumPy lacks are ``type <number>``.
    """

    properties: dict[str, str] = field(default_factory=dict)
    outside: list[str] = field(default_factory=list)
    quantisers: list[WireNode] = field(default_factory=list)
    constants: dict[str, tuple[str, int]] = field(default_factory=dict)


def scan(path: Path) -> Wire:
    """Read the ONNX file at ``path`` as protocol buffers, without the package onnx.

    Raises:
        DeployError: the file is missing or is not ONNX.
    """
    if not path.is_file():
        raise DeployError(f"There is no ONNX file at {path}; export the model first.")
    wire = Wire()
    graphs = 0
    try:
        for number, value in fields(memoryview(path.read_bytes())):
            if number == 7:
                graphs += 1
                _graph(value, wire)
            elif number == 14:
                entry = {key: text(said) for key, said in fields(value)}
                wire.properties[entry[1]] = entry.get(2, "")
    except (ValueError, IndexError, KeyError, TypeError) as error:
        raise DeployError(f"{path} is not a valid ONNX file; export the model again.") from error
    if graphs != 1:
        raise DeployError(f"{path} is not a valid ONNX file; export the model again.")
    return wire


def check_tensorrt_qdq(path: Path) -> None:
    """Refuse a quantised file that TensorRT would silently misread; a file without quantisers passes.

    Raises:
        DeployError: a quantised tensor is not int8, or a zero-point is not 0 or no constant.
    """
    path = Path(path)
    wire = scan(path)
    for node in wire.quantisers:
        if len(node.inputs) < 3 or not all(name in wire.constants for name in node.inputs[1:3]):
            raise DeployError(
                f"{path.name} computes the scale or zero-point of {node.name}, or leaves it out; "
                "quantise with constant scales and zero-points."
            )
        kind, zero = wire.constants[node.inputs[2]]
        if kind != "int8" or zero:
            what = f"{kind} values" if kind != "int8" else f"the zero-point {zero}"
            raise DeployError(
                f"{path.name} has {what} in {node.name}, which TensorRT would silently "
                "misread; build from its signed variant (deploy.quantization.int8.signed_from_unsigned)."
            )


def holds_fp16(data: bytes) -> bool:
    """Whether the ONNX file ``data`` has constants in fp16; of bytes that are no ONNX file, no."""
    try:
        for number, graph in fields(memoryview(data)):
            for part, tensor in fields(graph) if number == 7 else ():
                if part == 5 and any(key == 2 and _KINDS.get(value) == "float16" for key, value in fields(tensor)):
                    return True
    except (ValueError, IndexError, TypeError):
        return False
    return False


def _graph(data: memoryview, wire: Wire) -> None:
    for number, value in fields(data):
        if number == 1:
            _node(value, wire)
        elif number == 5:
            _constant(value, wire)


def _node(data: memoryview, wire: Wire) -> None:
    inputs: list[str] = []
    words = {3: "", 4: ""}
    first = ""
    for number, value in fields(data):
        if number == 1:
            inputs.append(text(value))
        elif number == 2:
            first = first or text(value)
        elif number in words:
            words[number] = text(value)
    if words[4] in _QUANTISERS:
        wire.quantisers.append(WireNode(words[3] or first, words[4], tuple(inputs)))


def _constant(data: memoryview, wire: Wire) -> None:
    name, kind, first, outside = "", 0, 0, False
    for number, value in fields(data):
        if number == 2:
            kind = int(value)
        elif number == 8:
            name = text(value)
        elif number == 13 or (number == 14 and value):
            outside = True
        elif number == 9:
            values = np.frombuffer(value, np.int8)
            first = int(next(iter(values[values != 0]), 0))
        elif number in (4, 5, 7, 10):  # the typed lists, packed or not
            # A varint of a small negative number is one of 64 bits.
            whole = next(filter(None, varints(value)), 0) if isinstance(value, memoryview) else int(value)
            first = first or (whole - (1 << 64) if whole >> 63 else whole)
    if outside:
        wire.outside.append(name)
    wire.constants[name] = (_KINDS.get(kind, f"type {kind}"), first)


def text(value: Any) -> str:
    """A field's value as text.

    Raises:
        ValueError: it is a number, of which bytes() would make as many zeros, or is not UTF-8.
    """
    if not isinstance(value, memoryview):
        raise ValueError("a number in place of a text")
    return bytes(value).decode()


def varints(data: memoryview) -> list[int]:
    """The numbers of a packed list."""
    found, at = [], 0
    while at < len(data):
        value, at = _varint(data, at)
        found.append(value)
    return found


def fields(data: memoryview) -> Iterator[tuple[int, Any]]:
    """(field number, value) of one message: a view for what has a length, a number for the rest.

    Raises:
        ValueError, IndexError: the bytes are no such message.
    """
    at, end = 0, len(data)
    while at < end:
        key, at = _varint(data, at)
        number, kind = key >> 3, key & 7
        if kind == _VARINT:
            value, at = _varint(data, at)
            yield number, value
        elif kind in (_BYTES, _FIXED64, _FIXED32):
            size = {_FIXED64: 8, _FIXED32: 4}.get(kind)
            if size is None:
                size, at = _varint(data, at)
            if at + size > end:
                raise ValueError("cut short")
            yield number, data[at : at + size]
            at += size
        else:
            raise ValueError(f"wire type {kind}")


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise ValueError("a number without end")
