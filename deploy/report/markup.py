"""Build the few shapes of markup that the page consists of.

Each docstring says which arguments are markup already; all others are escaped.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from typing import Any

from deploy.report.units import NONE

LEFT = ' class="l"'
NOWRAP = ' class="nowrap"'


def esc(value: Any) -> str:
    """Escape text for the page; a missing value becomes an en dash."""
    return NONE if value is None else html.escape(str(value))


def th(text: Any, beside: str = "") -> str:
    """Return the heading of a row."""
    return f'<th scope="row">{esc(text)}{small(beside)}</th>'


def td(value: str, attributes: str = "", beside: str = "") -> str:
    """Return a cell; ``value`` and ``beside`` are markup."""
    return f"<td{attributes}>{value}{small(beside)}</td>"


def tr(*cells: str) -> str:
    """Return a row of cells, which are markup."""
    return f"<tr>{''.join(cells)}</tr>"


def small(value: str) -> str:
    """Return a second, smaller line of markup, or nothing."""
    return f"<small>{value}</small>" if value else ""


def table(head: Sequence[str], lines: Iterable[str], kind: str = "") -> str:
    """Return a card with a table of ``lines``, which are markup; a heading that starts with ``<`` is left-aligned."""
    heads = "".join(
        f'<th scope="col"{LEFT if text.startswith("<") else ""}>{esc(text.removeprefix("<"))}</th>' for text in head
    )
    kind = f' class="{kind}"' if kind else ""
    return (
        f'<div class="card scroll"><table{kind}><thead><tr>{heads}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def card(inner: str) -> str:
    """Return a frame around markup."""
    return f'<div class="card">{inner}</div>'


def section(title: str, lead: str, *parts: str) -> str:
    """Return a section with its heading and, where given, a sentence about it; ``parts`` are markup."""
    return f"<section><h2>{esc(title)}</h2>{sentence(lead)}{''.join(parts)}</section>"


def part(title: str, lead: str, inner: str) -> str:
    """Return a titled part of a section; ``inner`` is markup."""
    return f"<h3>{esc(title)}</h3>{sentence(lead)}{inner}"


def sentence(text: str) -> str:
    """Return a sentence that introduces what follows, or nothing."""
    return f'<p class="lead">{esc(text)}</p>' if text else ""


def details(title: str, inner: str) -> str:
    """Return markup that is hidden until the reader opens it."""
    return f"<details><summary>{esc(title)}</summary>{inner}</details>"


def pair(key: Any, value: str) -> str:
    """Return a setting and its value, which is markup."""
    return f'<span class="pair"><i>{esc(key)}</i> {value}</span> '


def facts(lines: Iterable[tuple[Any, str]]) -> str:
    """Return a card with a definition list; the values are markup."""
    shown = "".join(f"<dt>{esc(key)}</dt><dd>{value}</dd>" for key, value in lines)
    return card(f'<dl class="facts">{shown}</dl>') if shown else ""
