"""Check that what the nodes of an ONNX file take is there: some runtimes look for what is not without end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from deploy.errors import DeployError
from deploy.onnx.protobuf import fields, text

# Numbers of fields of onnx.GraphProto, of names where they are not 1, and of onnx.NodeProto.
_NODE, _CONSTANT, _INPUT, _OUTPUT, _SPARSE = 1, 5, 11, 12, 15
_TENSOR_NAME, _SPARSE_VALUES = 8, 1
_TAKES, _MAKES = 1, 2


def check_joined(path: Path, data: bytes) -> None:
    """Refuse the ONNX file at ``path`` whose content is ``data`` where a node takes what nothing before it makes.

    ONNX asks for nodes in the order of their work. Graphs inside nodes are not looked at.

    Raises:
        DeployError: a node of the main graph takes, or the graph returns, what is no input, no constant and made by no
            node before it.
    """
    try:
        for number, graph in fields(memoryview(data)):
            if number == 7 and (missing := _missing(graph)):
                raise DeployError(f"{path} takes {missing[:100]!r}, which nothing in it makes; export the model again.")
    except (ValueError, IndexError, TypeError) as error:
        raise DeployError(f"{path} is not a valid ONNX file; export the model again.") from error


def _missing(graph: memoryview) -> str:
    """Return the first name that is taken and not there, or nothing."""
    parts: dict[int, list[Any]] = {}
    for number, value in fields(graph):
        parts.setdefault(number, []).append(value)
    known = {"", *(_name(value, 1) for value in parts.get(_INPUT, []))}
    known |= {_name(value, _TENSOR_NAME) for value in parts.get(_CONSTANT, [])}
    for sparse in parts.get(_SPARSE, []):
        known |= {_name(value, _TENSOR_NAME) for number, value in fields(sparse) if number == _SPARSE_VALUES}
    for node in parts.get(_NODE, []):
        makes = []
        for number, value in fields(node):
            if number == _TAKES and (name := text(value)) not in known:
                return name
            if number == _MAKES:
                makes.append(text(value))
        known.update(makes)
    return next((name for value in parts.get(_OUTPUT, []) if (name := _name(value, 1)) not in known), "")


def _name(message: memoryview, field: int) -> str:
    return next((text(value) for number, value in fields(message) if number == field), "")
