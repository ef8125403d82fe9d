"""Publish the format of a bench.json as a JSON schema, and hold files to it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from deploy.bench.records import Bench

ADDRESS = "niwaki-bench-1.schema.json"


def schema() -> dict[str, Any]:
    """Return the JSON schema (draft 2020-12) of a ``bench.json``.

    What the schema alone cannot say, that names are distinct and that what is measured has times, ``validate`` holds.
    """
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": ADDRESS,
        **Bench.model_json_schema(mode="validation"),
        "title": "niwaki-bench-1",
    }


def validate(path: Path) -> Bench:
    """Read a ``bench.json`` and hold it to the whole format.

    Raises:
        DeployError: it does not fit; the message names the first fault.
    """
    return Bench.from_file(path)


def schema_text() -> str:
    """Return the schema as it is published in ``docs/``."""
    return json.dumps(schema(), indent=2, sort_keys=True) + "\n"
