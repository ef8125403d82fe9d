"""Reading a recipe: YAML without surprises, overrides from the command line, and one sentence for what is wrong."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from compress.errors import RecipeError
from compress.files import read_bytes
from compress.recipe.data import KINDS
from compress.recipe.schema import Recipe
from compress.recipe.yaml_text import parsed, told
from compress.trust import check_trusted
from compress.validation import message

_LARGEST, _SHOWN = 1_000_000, 120


def load_recipe(path: str | Path, overrides: Sequence[str] = (), *, trusted: Sequence[str] = ()) -> Recipe:
    """Read a recipe file and apply ``key.key=value`` overrides.

    Args:
        path: the file.
        overrides: keys and values that take the place of the file's.
        trusted: modules of the user's own whose functions the recipe may name.

    Raises:
        RecipeError: no such file, not YAML, an unknown key, a value of the wrong type or range, or a function of the
            user's own that is not trusted.
    """
    path = Path(path)
    if not path.is_file():
        raise RecipeError(f"There is no recipe {path}; recipes/ holds examples to start from.")
    if (size := path.stat().st_size) > _LARGEST:
        raise RecipeError(f"{path} has {size:,} bytes, more than any recipe has; see recipes/digits.yaml.")
    try:
        raw = parsed(read_bytes(path, _LARGEST).decode())
    except (yaml.YAMLError, ValueError, OSError, RecursionError) as error:
        raise RecipeError(f"{path} is not YAML ({told(error)}); correct that line.") from None
    if not isinstance(raw, dict):
        raise RecipeError(f"{path} holds {type(raw).__name__}, not a mapping of keys; see recipes/digits.yaml.")
    _make_way(raw, overrides)
    for override in overrides:
        _set(raw, override)
    try:
        recipe = Recipe.model_validate(_expanded(raw, path))
    except ValidationError as error:
        raise RecipeError(_sentence(path, overrides, error)) from None
    for key, function in recipe.functions().items():
        check_trusted(function, trusted, f"in {path}, {key}", RecipeError)
    return recipe


_COUNTED_AT = ("precision", "batch")


def _make_way(raw: dict[str, Any], overrides: Sequence[str]) -> None:
    """Remove the file's bounds in place where an override sets one that the file does not have.

    ``prune.budget.latency=0.5`` over a file with ``macs: 0.5`` asks for the latency instead; several bounds that are
    set on one command line hold together.
    """
    prune = raw.get("prune")
    budget = prune.get("budget") if isinstance(prune, dict) else None
    keys = [override.partition("=")[0] for override in overrides]
    new = {key.removeprefix("prune.budget.") for key in keys if key.startswith("prune.budget.")} - {*_COUNTED_AT}
    if isinstance(budget, dict) and isinstance(prune, dict) and new - budget.keys():
        prune["budget"] = {key: value for key, value in budget.items() if key in (*_COUNTED_AT, *new)}


def _set(raw: dict[str, Any], override: str) -> None:
    """Apply one ``KEY=VALUE`` in place; raise RecipeError where it is none."""
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise RecipeError(f"--set {_short(override)} is not KEY=VALUE, such as prune.budget.macs=0.4.")
    *parents, last = key.split(".")
    place = raw
    for parent in parents:
        place = place.setdefault(parent, {})
        if not isinstance(place, dict):
            raise RecipeError(f"--set {_short(override)}: '{_short(parent)}' is a value, not a group of keys.")
    try:
        place[last] = parsed(text)
    except (yaml.YAMLError, ValueError, RecursionError):
        raise RecipeError(f"--set {_short(override)}: {_short(repr(text))} is not a YAML value.") from None


def _expanded(value: Any, path: Path) -> Any:
    """Replace ``${NAME}`` by the environment's value in every string."""
    if isinstance(value, dict):
        return {key: _expanded(item, path) for key, item in value.items()}
    if isinstance(value, list):
        return [_expanded(item, path) for item in value]
    if not isinstance(value, str):
        return value

    def look_up(match: re.Match[str]) -> str:
        name = match.group(1)
        if name not in os.environ:
            raise RecipeError(f"{path} uses ${{{name}}}, which is not set; export {name}=/the/folder first.")
        return os.environ[name]

    return re.sub(r"\$\{(\w+)\}", look_up, value)


def _sentence(path: Path, overrides: Sequence[str], error: ValidationError) -> str:
    """Say the first fault in one sentence: file or override, key, value, way out."""
    fault = _told_best(error.errors())
    unknown = fault["type"] == "extra_forbidden"
    keys = [*_keys(fault["loc"][:-1]), str(fault["loc"][-1])] if unknown else _keys(fault["loc"])
    where = _short(".".join(keys)) or "the recipe"
    made = (one for one in overrides if _made_by(where, one.partition("=")[0], unknown))
    source = next((f"--set {_short(one)}" for one in made), str(path))
    if unknown:
        near = get_close_matches(keys[-1], _names(), 1)
        way_out = f"did you mean '{near[0]}'? See" if near else "remove it or see"
        return f"{source}: the key '{where}' is unknown; {way_out} niwaki docs recipes for the keys there are."
    if fault["type"] == "missing":
        return f"{source}: the key '{where}' is missing; add it (niwaki docs recipes says what it may hold)."
    said = message(fault)
    said = said[0].lower() + said[1:]
    given = fault.get("input")
    try:
        shown = "" if isinstance(given, dict) else f" (given: {_short(repr(given))})"
    except ValueError:  # Python writes no number of thousands of digits
        shown = ""
    return f"{source}: {where}: {said}{shown}; change it (niwaki docs recipes says what it may hold)."


def _told_best(faults: Sequence[Any]) -> Any:
    """Return the first fault; of a key that may be of several kinds the one of the kind that was given."""
    first = faults[0]
    same = [fault for fault in faults if fault["loc"][:-1] == first["loc"][:-1] and fault["input"] is first["input"]]
    return next((fault for fault in same if not fault["type"].endswith("_type")), first)


def _made_by(where: str, key: str, unknown: bool) -> bool:
    """Tell whether a faulty key is an override's or lies in its value; an unknown one also if made on the way."""
    return f"{where}.".startswith(f"{key}.") or (unknown and key.startswith(f"{where}."))


def _names() -> list[str]:
    """Return the names of all keys that a recipe may have, at any depth."""
    schema = Recipe.model_json_schema()
    return sorted({name for part in (schema, *schema["$defs"].values()) for name in part.get("properties", {})})


def _short(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def _keys(location: tuple[int | str, ...]) -> list[str]:
    """Return a fault's location without the tags of unions, which stand beside the keys that the user wrote."""
    members = {"str", "float", "constrained-float", "constrained-str", "CocoSplit", "MaskSplit"}
    keys: list[str] = []
    for before, part in zip(("", *location), map(str, location), strict=False):
        kind = before in ("target", "data") and part in KINDS
        if not kind and part not in members and "[" not in part:
            keys.append(part)
    return keys
