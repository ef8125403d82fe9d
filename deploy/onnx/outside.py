"""Find what an ONNX file keeps in other files, wherever in it a tensor may stand."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from deploy.errors import DeployError
from deploy.onnx.protobuf import fields, text

_NAME, _EXTERNAL, _LOCATION = 8, 13, 14  # of onnx.TensorProto
_DEEPEST = 64

# message -> number of a field -> the message in it, along every way to a tensor or to a node.
_WAYS: Mapping[str, Mapping[int, str]] = MappingProxyType(
    {
        "model": {7: "graph", 20: "training", 25: "function"},
        "training": {1: "graph", 2: "graph"},
        "function": {7: "node", 11: "attribute"},
        "graph": {1: "node", 5: "tensor", 15: "sparse"},
        "sparse": {1: "tensor", 2: "tensor"},
        "node": {5: "attribute"},
        "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    }
)


def find_outside(data: memoryview) -> dict[str, str]:
    """Return, by the name of each tensor that lies in another file, the name of that file.

    A node that stands for an engine in another file (``EPContext``) counts as one.

    Raises:
        ValueError, IndexError, TypeError: the bytes are no ONNX file.
    """
    return dict(_walk("model", data, 0))


def check_inside(path: Path, outside: Mapping[str, str]) -> None:
    """Refuse an ONNX file at ``path`` some of whose tensors lie anywhere but in its own folder.

    Raises:
        DeployError: a file named by ``outside`` is missing, no regular file, or lies elsewhere.
    """
    folder = path.parent.resolve()
    for name, location in outside.items():
        try:
            real = (folder / location).resolve()
            fits = not Path(location).is_absolute() and real.is_relative_to(folder) and real.is_file()
        except (ValueError, OSError, RuntimeError):  # a NUL, a name too long, links in a circle
            fits = False
        if not fits:
            raise DeployError(
                f"{path} keeps {name[:100]!r} in {location[:200]!r}, which is not a file in its folder; save it as one "
                "file."
            )


def _walk(kind: str, data: Any, depth: int) -> Iterator[tuple[str, str]]:
    if not isinstance(data, memoryview) or depth > _DEEPEST:
        raise ValueError("a number in place of a message, or messages without end")
    if kind == "tensor":
        yield from _tensor(data)
        return
    ways = _WAYS[kind]
    for number, value in fields(data):
        if number in ways:
            yield from _walk(ways[number], value, depth + 1)
        elif kind == "node" and number == 4 and text(value) == "EPContext":
            yield "EPContext", "an engine"


def _tensor(data: memoryview) -> Iterator[tuple[str, str]]:
    name, location, outside = "", "", False
    for number, value in fields(data):
        if number == _NAME:
            name = text(value)
        elif number == _EXTERNAL:
            outside = True
            entry = dict(fields(value))
            if text(entry.get(1, memoryview(b""))) == "location":
                location = text(entry.get(2, memoryview(b"")))
        elif number == _LOCATION:
            outside = outside or bool(value)
    if outside:
        yield name, location
