"""Read what matters before a build from an ONNX file's bytes, so that a device needs no package for it."""

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
    """A QuantizeLinear or DequantizeLinear node: its name, its operator and the names of its inputs."""

    name: str
    op: str
    inputs: tuple[str, ...]


@dataclass(frozen=True)
class Wire:
    """The parts of an ONNX file that were read.

    Attributes:
        properties: the file's metadata.
        outside: the names of the constants that lie in another file.
        quantisers: its QuantizeLinear and DequantizeLinear nodes.
        constants: (element type, first value that is not 0, read as eight-bit integers) by name; a type that NumPy
            lacks is called ``type <number>``.
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
    """Refuse a quantised file that TensorRT would silently misread; a file that is not quantised passes.

    Raises:
        DeployError: a quantised tensor is not int8, or a zero-point is not 0 or not constant.
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


def has_fp16_constants(data: bytes) -> bool:
    """Return whether the ONNX file ``data`` has fp16 constants; False for bytes that are no ONNX file."""
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
    texts = {3: "", 4: ""}  # name, operator
    output = ""
    for number, value in fields(data):
        if number == 1:
            inputs.append(text(value))
        elif number == 2:
            output = output or text(value)
        elif number in texts:
            texts[number] = text(value)
    if texts[4] in _QUANTISERS:
        wire.quantisers.append(WireNode(texts[3] or output, texts[4], tuple(inputs)))


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
            # A small negative number is a varint of 64 bits.
            whole = next(filter(None, varints(value)), 0) if isinstance(value, memoryview) else int(value)
            first = first or (whole - (1 << 64) if whole >> 63 else whole)
    if outside:
        wire.outside.append(name)
    wire.constants[name] = (_KINDS.get(kind, f"type {kind}"), first)


def text(value: Any) -> str:
    """Return a field's value as text.

    Raises:
        ValueError: it is not UTF-8, or a number, from which bytes() would make that many zeros.
    """
    if not isinstance(value, memoryview):
        raise ValueError("a number in place of a text")
    return bytes(value).decode()


def varints(data: memoryview) -> list[int]:
    """Return the numbers of a packed list."""
    found, at = [], 0
    while at < len(data):
        value, at = _varint(data, at)
        found.append(value)
    return found


def fields(data: memoryview) -> Iterator[tuple[int, Any]]:
    """Yield (field number, value) for each field of a message; values are numbers, or views where they have a length.

    Raises:
        ValueError, IndexError: the bytes are no protocol buffer message.
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
