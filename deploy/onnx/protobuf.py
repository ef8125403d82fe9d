"""Read protocol buffers: the fields of a message, its texts and its lists of numbers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

LARGEST = (1 << 31) - 1
"""The most bytes that a message, and so an ONNX file, can have."""
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


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
        if key >> 32:  # some readers drop what is above and see another field
            raise ValueError(f"field {key >> 3}")
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
