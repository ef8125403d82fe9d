"""Say how to make the run again: commands, and hashes of what went in and came out."""

from __future__ import annotations

import hashlib
from typing import Any

from deploy.report.markup import Markup, details, facts, fill, join, section
from deploy.report.view import Results, mapping, rows

_RUN = "niwaki run recipe.yaml --out FOLDER"
_GATE = "niwaki gate FOLDER/bench.json --baseline THIS/bench.json"
_REPORT = "niwaki report FOLDER"


def render_again(results: Results, recipe_yaml: str) -> Markup:
    """Render the commands, the seed, what the last bits depend on, and the hashes of recipe, files and stages."""
    if not results.ledger:
        return Markup()
    lines: list[tuple[Any, Any]] = []
    if recipe_yaml.strip():
        lines.append(("Recipe", _code(hashlib.sha256(recipe_yaml.encode()).hexdigest())))
    for key, title in (("commit", "Commit"), ("data_sha256", "Data")):
        if results.ledger.get(key):
            lines.append((title, _code(results.ledger[key])))
    seed = results.ledger.get("seed")
    if seed is not None:
        lines.append(("Seed", seed))
    made_by = mapping(results.ledger.get("made_by"))
    if made_by:
        lines.append(("Made by", ", ".join(f"{key} {value}" for key, value in made_by.items())))
    files = [(r.get("name"), _code(r["sha256"])) for r in results.measured() if r.get("sha256")]
    made = [
        (f"{stage.get('name')}, made from", _code(parents))
        for stage in rows(results.ledger.get("stages"))
        if (parents := mapping(stage.get("made")).get("parents"))
    ]
    folded = details(f"SHA-256 of {len(files)} engines and {len(made)} stages", facts([*files, *made]))
    # A run that lowers nothing has no times to be held to.
    commands = fill("<pre>{text}</pre>", text="\n".join((_RUN, *([_GATE] if results.bench else []), _REPORT)))
    shown = join((commands, facts(lines), folded if files or made else ""))
    return section("Make it again", "recipe.yaml lies in the folder of the run.", shown)


def _code(text: Any) -> Markup:
    return fill("<code>{text}</code>", text=text)
