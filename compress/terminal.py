"""What files and users say on its way to a terminal, which would obey the control characters in it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

# C0 and C1 controls, line and paragraph separators, marks that turn the direction of writing, halves of characters.
_OBEYED = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def plain(text: object) -> str:
    r"""``text`` in one line: what a terminal would obey instead of showing is spelt out, such as ``\x1b``."""
    return _OBEYED.sub(lambda found: ascii(found.group())[1:-1], str(text))


LOG = 120
"""Columns of what is no terminal and so has none of its own: a log would fold or lose the last ones of a table."""


class Terminal(Console):
    """Rich's console, which shows no control character but its own: text keeps its line breaks and nothing else."""

    def __init__(self, *, stderr: bool = False, quiet: bool = False) -> None:
        super().__init__(stderr=stderr, quiet=quiet, highlight=False, emoji=False)
        if not self.is_terminal and "COLUMNS" not in os.environ:
            self.width = LOG

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(_lines(text), **options)  # before it is measured: a cell has room for the escapes

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            # What was given as Rich's own Text.
            yield segment if segment.control else Segment(_lines(segment.text), segment.style)


def _lines(text: str) -> str:
    return "\n".join(map(plain, text.split("\n")))
