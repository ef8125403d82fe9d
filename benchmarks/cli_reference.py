"""Write docs/reference/cli.md from the commands themselves: python -m benchmarks.cli_reference."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer.main

from compress.cli.app import app
from compress.cli.examples import EXAMPLES
from compress.files import write_text

PAGE = Path(__file__).resolve().parents[1] / "docs/reference/cli.md"


def text() -> str:
    """Return the page: each command with its arguments, options and example."""
    lines = ["# Command line reference", "", "Written by `python -m benchmarks.cli_reference` from the commands."]
    group: Any = typer.main.get_command(app)
    for name, command in group.commands.items():
        example, page = EXAMPLES[name]
        lines += ["", f"## niwaki {name}", "", " ".join(str(command.help).split()), "", "```text", example, "```", ""]
        lines += ["| | meaning | default |", "| --- | --- | --- |"]
        for parameter in command.params:
            if parameter.name != "help":
                lines.append(_row(parameter))
        lines += ["", f"More: `niwaki docs {page}`"]
    return "\n".join(lines) + "\n"


def _row(parameter: Any) -> str:
    """Return one line of a command's table."""
    shown = ", ".join(f"`{name}`" for name in (*parameter.opts, *parameter.secondary_opts))
    if parameter.param_type_name == "argument":
        shown = f"`{parameter.name.upper()}`"
    meaning = " ".join(str(getattr(parameter, "help", None) or "").split()).replace("|", "\\|")
    default = parameter.default
    said = (
        "required"
        if parameter.required
        else ""
        if default in (None, False, ()) or callable(default)
        else f"`{default}`"
    )
    return f"| {shown} | {meaning} | {said} |"


if __name__ == "__main__":
    write_text(PAGE, text())
