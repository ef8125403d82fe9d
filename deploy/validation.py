"""Turn a failed pydantic validation into one sentence."""

from __future__ import annotations

from pydantic import ValidationError

_MAX_SHOWN = 80


def explain(error: ValidationError) -> str:
    """Return the first fault that a validation found: which field, what is wrong, and the value received."""
    first = error.errors(include_url=False)[0]
    field = ".".join(map(str, first["loc"]))
    value = f", not {_shorten(first['input'])}" if isinstance(first["input"], str | int | float) and field else ""
    message = "it is missing" if first["type"] == "missing" else first["msg"].removeprefix("Value error, ")
    return f"{field}: {message}{value}" if field else message


def _shorten(value: str | int | float) -> str:
    """Return the text of a value, cut off where it is long."""
    try:
        text = repr(value)
    except ValueError:  # Python refuses to print an integer of more than a few thousand digits
        return "a number of thousands of digits"
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}..."
