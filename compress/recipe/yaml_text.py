"""YAML without surprises: no tags, no key that stands twice, no alias that stands for very much."""

from __future__ import annotations

from typing import Any

import yaml

_MOST_VALUES = 100_000


def parsed(text: str) -> Any:
    """Parse a YAML text without tags, in which no key stands twice and no alias stands for very much.

    Raises:
        yaml.YAMLError, ValueError, RecursionError: it is not YAML, or not of this kind.
    """
    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _weight(node, {})
        return loader.construct_document(node)
    finally:
        loader.dispose()


def told(error: Exception) -> str:
    """Say what is wrong with a YAML text, and at which line; the line comes first, since the rest may be long."""
    mark = getattr(error, "problem_mark", None)
    if mark is None:
        return " ".join(str(error).split())[:160]
    problem = getattr(error, "problem", None) or getattr(error, "context", None) or "it cannot be read"
    return f"line {mark.line + 1}, column {mark.column + 1}: {' '.join(problem.split())[:120]}"


def _weight(node: yaml.Node, known: dict[int, int | None]) -> int:
    """Count the values that a node stands for, its aliases written out; refuse a key that stands twice on the way."""
    if id(node) in known:
        weight = known[id(node)]
        if weight is None:
            raise yaml.YAMLError("an alias holds itself; write the value out")
        return weight
    known[id(node)] = None
    inside: list[yaml.Node] = []
    if isinstance(node, yaml.MappingNode):
        seen: set[tuple[str, str]] = set()
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode) and (key.tag, key.value) in seen:
                raise yaml.YAMLError(f"the key '{str(key.value)[:120]}' stands twice, line {key.start_mark.line + 1}")
            seen.add((key.tag, str(key.value)))
            inside += [key, value]
    elif isinstance(node, yaml.SequenceNode):
        inside = list(node.value)
    weight = 1 + sum(_weight(one, known) for one in inside)
    if weight > _MOST_VALUES:
        raise yaml.YAMLError(f"its aliases stand for more than {_MOST_VALUES:,} values")
    known[id(node)] = weight
    return weight
