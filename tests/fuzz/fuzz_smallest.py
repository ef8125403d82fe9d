"""Makes a case that fails small, so that what it fails by can be seen."""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable, Iterator
from typing import Any

Fails = Callable[[bytes], bool]
Path = tuple[Any, ...]


def smallest(content: bytes, fails: Fails, seconds: float = 60.0) -> bytes:
    """Leave out what can be left out: keys and items of JSON, then pieces of bytes, as long as it fails alike."""
    end = time.monotonic() + seconds
    try:
        value = json.loads(content)
        if fails(_text(value)):
            content = _text(_fewer_values(value, fails, end))
    except (ValueError, RecursionError):
        pass  # no JSON: bytes alone
    return _fewer_bytes(content, fails, end)


def _text(value: Any) -> bytes:
    return json.dumps(value).encode("utf-8", "surrogatepass")


def _paths(value: Any, above: Path = ()) -> Iterator[Path]:
    """The way to every key and item, the outer ones first."""
    if isinstance(value, dict | list):
        keys = list(value) if isinstance(value, dict) else range(len(value))
        yield from ((*above, key) for key in keys)
        for key in keys:
            yield from _paths(value[key], (*above, key))


def _without(value: Any, path: Path) -> Any:
    value = copy.deepcopy(value)
    place = value
    for key in path[:-1]:
        place = place[key]
    del place[path[-1]]
    return value


def _fewer_values(value: Any, fails: Fails, end: float) -> Any:
    tried: set[Path] = set()
    while time.monotonic() < end:
        path = next((one for one in _paths(value) if one not in tried), None)
        if path is None:
            break
        less = _without(value, path)
        if fails(_text(less)):
            value = less
            # What followed in a list has moved up.
            tried = {one for one in tried if one[: len(path) - 1] != path[:-1]}
        else:
            tried.add(path)
    return value


def _fewer_bytes(content: bytes, fails: Fails, end: float) -> bytes:
    """Zeller's ddmin (Simplifying and isolating failure-inducing input, 2002), by halves, then smaller pieces."""
    size = max(1, len(content) // 2)
    while size and time.monotonic() < end:
        at, less = 0, False
        while at < len(content) and time.monotonic() < end:
            shorter = content[:at] + content[at + size :]
            if fails(shorter):
                content, less = shorter, True
            else:
                at += size
        size = min(size // 2, len(content)) if not less or size > 1 else 1
    return content
