"""Read what matters before a build from an ONNX file's bytes, so that a device needs no package for it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from deploy.errors import DeployError
from deploy.files import read_bytes
from deploy.onnx.joined import check_joined
from deploy.onnx.outside import check_inside, find_outside
from deploy.onnx.protobuf import LARGEST, fields, text, varints

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
        outside: by the name of each tensor that lies in another file, wherever it stands, the name of that file.
        quantisers: its QuantizeLinear and DequantizeLinear nodes.
        constants: (element type, first value that is not 0, read as eight-bit integers) by name; a type that NumPy
            lacks is called ``type <number>``.
    """

    properties: dict[str, str] = field(default_factory=dict)
    outside: dict[str, str] = field(default_factory=dict)
    quantisers: list[WireNode] = field(default_factory=list)
    constants: dict[str, tuple[str, int]] = field(default_factory=dict)


def scan(path: Path) -> Wire:
    """Read the ONNX file at ``path`` as protocol buffers, without the package onnx.

    Raises:
        DeployError: the file is missing or is not ONNX.
    """
    return scan_bytes(read_onnx(path), path)


def read_onnx(path: Path) -> bytes:
    """Return the content of the ONNX file at ``path``.

    Raises:
        DeployError: there is none, it is not a regular file, or it is larger than ONNX files can be.
    """
    if not path.is_file():
        raise DeployError(f"There is no ONNX file at {path}; check the path or export the model first.")
    try:
        return read_bytes(path, LARGEST)
    except OSError as error:
        raise DeployError(f"{path} cannot be read ({error.strerror}); export the model again.") from error


def read_model(path: Path, sha256: str | None = None) -> tuple[bytes, Wire]:
    """Read the ONNX file at ``path`` once, so that what was checked is what runs.

    Args:
        path: the file.
        sha256: the hash that its content must have; such a file keeps nothing outside.

    Returns:
        Its content, and what was read from it. Only a file that keeps tensors outside, all of them in its own
        folder, has to be opened by its path.

    Raises:
        DeployError: the file is missing, is not ONNX, was altered, takes what nothing in it makes, or keeps tensors
            where it must not.
    """
    data = read_onnx(path)
    if sha256 is not None and hashlib.sha256(data).hexdigest() != sha256:
        raise DeployError(f"{path} was altered: its SHA-256 is not {sha256[:12]}...; copy the whole bundle again.")
    wire = scan_bytes(data, path)
    check_joined(path, data)
    if sha256 is not None:
        check_whole(path, wire)
    check_inside(path, wire.outside)
    return data, wire


def bytes_on_disk(path: Path, outside: Mapping[str, str]) -> int:
    """Return the bytes of the ONNX file at ``path``, those of the files that it keeps tensors in among them."""
    return sum((path.parent / name).stat().st_size for name in {path.name, *outside.values()})


def check_whole(path: Path, wire: Wire) -> None:
    """Refuse an ONNX file that keeps anything in another file.

    Raises:
        DeployError: it does.
    """
    for name in wire.outside:
        raise DeployError(f"{path} keeps {name[:100]!r} in another file, which no hash covers; save it as one file.")


def scan_bytes(data: bytes, path: Path) -> Wire:
    """Read ``data``, the content of the ONNX file at ``path``; see ``scan``."""
    wire = Wire()
    graphs = 0
    try:
        wire.outside.update(find_outside(memoryview(data)))
        for number, value in fields(memoryview(data)):
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
    check_qdq(Path(path), scan(Path(path)))


def check_qdq(path: Path, wire: Wire) -> None:
    """Refuse the quantised file at ``path`` that was read as ``wire``; see ``check_tensorrt_qdq``."""
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
    name, kind, first = "", 0, 0
    for number, value in fields(data):
        if number == 2:
            kind = int(value)
        elif number == 8:
            name = text(value)
        elif number == 9:
            values = np.frombuffer(value, np.int8)
            first = int(next(iter(values[values != 0]), 0))
        elif number in (5, 7, 11):  # the lists of integers, packed or not; those of floats are no varints
            # A small negative number is a varint of 64 bits.
            whole = next(filter(None, varints(value)), 0) if isinstance(value, memoryview) else int(value)
            first = first or (whole - (1 << 64) if whole >> 63 else whole)
    wire.constants[name] = (_KINDS.get(kind, f"type {kind}"), first)
