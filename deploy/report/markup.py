"""Build the few shapes of markup that the page consists of.

Text and markup are two types: whatever is no ``Markup`` is escaped where it enters the page, and only ``fill`` and what
is built on it make markup, from templates that stand in the source.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from typing import Any, LiteralString

from deploy.report.units import NONE


class Markup(str):
    """Text that is markup already; what is cut out of it or added to it is a mere ``str`` again."""

    __slots__ = ()


LEFT = Markup(' class="l"')
NOWRAP = Markup(' class="nowrap"')


def esc(value: Any) -> Markup:
    """Escape what is no markup for the page; a missing value becomes an en dash."""
    if isinstance(value, Markup):
        return value
    return Markup(NONE if value is None else html.escape(str(value)))


def fill(template: LiteralString, **values: Any) -> Markup:
    """Return a template with each ``{name}`` replaced by a value, escaped unless it is markup."""
    return Markup(template.format_map({name: esc(value) for name, value in values.items()}))


def join(parts: Iterable[Any], between: LiteralString = "") -> Markup:
    """Return the parts, escaped unless they are markup, one after the other."""
    return Markup(between.join(esc(part) for part in parts))


def th(text: Any, beside: Any = "") -> Markup:
    """Return the heading of a row."""
    return fill('<th scope="row">{text}{beside}</th>', text=text, beside=small(beside))


def td(value: Any, attributes: Markup = Markup(), beside: Any = "") -> Markup:  # noqa: B008  (it cannot be changed)
    """Return a cell."""
    return fill("<td{attributes}>{value}{beside}</td>", attributes=attributes, value=value, beside=small(beside))


def tr(*cells: Any) -> Markup:
    """Return a row of cells."""
    return fill("<tr>{cells}</tr>", cells=join(cells))


def small(value: Any) -> Markup:
    """Return a second, smaller line, or nothing."""
    return fill("<small>{value}</small>", value=value) if value else Markup()


def table(head: Sequence[str], lines: Iterable[Any], kind: str = "") -> Markup:
    """Return a card with a table of ``lines``; a heading that starts with ``<`` is left-aligned."""
    heads = join(
        fill(
            '<th scope="col"{left}>{text}</th>',
            left=LEFT if text.startswith("<") else "",
            text=text.removeprefix("<"),
        )
        for text in head
    )
    return fill(
        '<div class="card scroll"><table{kind}><thead><tr>{heads}</tr></thead><tbody>{lines}</tbody></table></div>',
        kind=fill(' class="{kind}"', kind=kind) if kind else "",
        heads=heads,
        lines=join(lines),
    )


def card(inner: Any) -> Markup:
    """Return a frame."""
    return fill('<div class="card">{inner}</div>', inner=inner)


def section(title: str, lead: str, *parts: Any) -> Markup:
    """Return a section with its heading and, where given, a sentence about it."""
    return fill("<section><h2>{title}</h2>{lead}{parts}</section>", title=title, lead=sentence(lead), parts=join(parts))


def part(title: str, lead: str, inner: Any) -> Markup:
    """Return a titled part of a section."""
    return fill("<h3>{title}</h3>{lead}{inner}", title=title, lead=sentence(lead), inner=inner)


def sentence(text: str) -> Markup:
    """Return a sentence that introduces what follows, or nothing."""
    return fill('<p class="lead">{text}</p>', text=text) if text else Markup()


def details(title: str, inner: Any) -> Markup:
    """Return what is hidden until the reader opens it."""
    return fill("<details><summary>{title}</summary>{inner}</details>", title=title, inner=inner)


def pair(key: Any, value: Any) -> Markup:
    """Return a setting and its value."""
    return fill('<span class="pair"><i>{key}</i> {value}</span> ', key=key, value=value)


def facts(lines: Iterable[tuple[Any, Any]]) -> Markup:
    """Return a card with a definition list."""
    shown = join(fill("<dt>{key}</dt><dd>{value}</dd>", key=key, value=value) for key, value in lines)
    return card(fill('<dl class="facts">{shown}</dl>', shown=shown)) if shown else Markup()
