"""A pydantic error in one clause: where the first fault lies, and what is wrong there."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError


def explain(error: ValidationError, *, under: str = "", whole: str = "the text") -> str:
    """Say the first fault as ``where: what``.

    Args:
        error: what validating raised.
        under: the key under which the validated part stands.
        whole: what to name where the fault is of everything and not of one key.
    """
    fault = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(filter(None, (under, *map(str, fault["loc"])))) or whole
    return f"{where}: {message(fault)}"


def message(fault: Mapping[str, Any]) -> str:
    """Return what one fault says, without the words that pydantic puts before a sentence of ours."""
    kind = fault.get("type")
    if kind == "union_tag_not_found":
        return f"the key {fault['ctx']['discriminator']} is missing"
    if kind == "extra_forbidden":
        return "there is no such key"
    if kind == "tuple_type":
        return "this is a list, such as [96, 96]"
    return _WANTED.get(str(kind)) or worded(fault["msg"].removeprefix("Value error, "))


def worded(said: str) -> str:
    """Put what pydantic says of a value as this project does: "at least 1 is wanted"."""
    for theirs, ours in _BOUNDS.items():
        said = said.replace(f"Input should be {theirs} ", f"Input should be {ours} ")
    return re.sub(r"Input should be (.+)", r"\1 is wanted", said)


_WANTED = {
    **dict.fromkeys(("int_type", "int_parsing", "int_from_float"), "an integer is wanted"),
    **dict.fromkeys(("float_type", "float_parsing"), "a number is wanted"),
    **dict.fromkeys(("bool_type", "bool_parsing"), "true or false is wanted"),
    "missing": "this key is missing",
    "string_type": "a text is wanted",
    "dict_type": "a group of keys is wanted",
    "model_type": "a group of keys is wanted",
}
"""What is wanted, by the kind of fault."""

_BOUNDS = {
    "greater than or equal to": "at least",
    "less than or equal to": "at most",
    "greater than": "more than",
}
"""How pydantic tells a bound, and how we do."""
