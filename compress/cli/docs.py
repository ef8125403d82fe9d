"""The command ``niwaki docs``: the pages of this version, wherever it is installed; needs no torch."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Annotated

import typer

from compress.cli.common import JsonFlag
from compress.errors import NiwakiError
from compress.terminal import Terminal

INSTALLED = Path(__file__).resolve().parents[1] / "pages"
"""Where a wheel carries the pages; in a checkout they are in ``docs``."""

CHECKOUT = Path(__file__).resolve().parents[2] / "docs"


def docs(
    topic: Annotated[
        str | None, typer.Argument(help="A page, such as recipes or howto/cpp; without it pages are listed.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Print a page of the documentation, or list the pages; needs no torch and no network."""
    folder = home()
    found = topics(folder)
    if topic is None:
        listed = {name: title(path) for name, path in found.items()}
        if as_json:
            print(json.dumps(listed))
        else:
            width = max(map(len, listed))
            print("\n".join(f"{name:{width}}  {said}" for name, said in listed.items()))
        return
    name = page(topic, found)
    # What is there for the tests of the pages is not for readers.
    text = re.sub(r"<!--.*?-->\n?", "", found[name].read_text("utf-8"), flags=re.DOTALL)
    if as_json:
        print(json.dumps({"topic": name, "text": text}))
    elif sys.stdout.isatty():
        from rich.markdown import Markdown

        Terminal().print(Markdown(text))
    else:
        print(text, end="")


def home() -> Path:
    """Return the folder of the pages; raise NiwakiError where this installation has none."""
    for folder in (INSTALLED, CHECKOUT):
        if (folder / "index.md").is_file():
            return folder
    raise NiwakiError(f"{INSTALLED} holds no pages; install niwaki-vision again from its wheel.")


def topics(folder: Path) -> dict[str, Path]:
    """Return the pages by name, such as ``recipes`` and ``howto/cpp``, sorted; ``readme`` first."""
    pages = sorted(folder.rglob("*.md"), key=lambda path: (len(path.parts), path))
    # A wheel carries it among the pages, a checkout has it beside their folder.
    readme = {} if folder == INSTALLED else {"readme": folder.parent / "README.md"}
    return readme | {path.relative_to(folder).with_suffix("").as_posix(): path for path in pages}


def page(topic: str, found: dict[str, Path]) -> str:
    """Return the whole name of a page of which the last part may be enough; raise NiwakiError where none fits."""
    asked = topic.removesuffix(".md").removeprefix("docs/").lower()
    if asked in found:
        return asked
    fitting = [name for name in found if name.rpartition("/")[2] == asked]
    if len(fitting) == 1:
        return fitting[0]
    near = fitting or [name for name in found if asked and asked in name]
    hint = f"near it are {', '.join(near)}" if near else "niwaki docs lists them"
    raise NiwakiError(f"There is no page '{topic[:80]}'; {hint}.")


def title(path: Path) -> str:
    """Return a page's first heading."""
    lines = path.read_text("utf-8").splitlines()
    return next((line.removeprefix("# ") for line in lines if line.startswith("# ")), path.stem)
