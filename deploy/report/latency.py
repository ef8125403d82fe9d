"""Show where the time of what ships goes, layer by layer beside the dense network, and why it is not less."""

from __future__ import annotations

from deploy.report import units
from deploy.report.markup import LEFT, NOWRAP, Markup, details, fill, section, table, td, th, tr
from deploy.report.view import Facts, mapping, rows

SHOWN = 30
_LEAST = 0.005
"""Share of the time below which a layer is not listed."""


def render_latency(plan: Facts) -> Markup:
    """Render the layers' times of a run that asked for a latency; nothing where none were measured."""
    asked = mapping(plan.get("latency"))
    explained = mapping(asked.get("explained"))
    listed = rows(explained.get("rows"))
    if not listed:
        return Markup()
    total = sum(units.number(row.get("after_ms")) or 0.0 for row in listed)
    notable = [row for row in listed if (units.number(row.get("after_ms")) or 0.0) >= _LEAST * total]
    lead = (
        f"{asked.get('said') or ''} Below, each layer's best time by {explained.get('runtime') or 'the runtime'}'s own "
        "profile; expected is the dense network's time times the share of the multiply-accumulates that is left."
    )
    shown = [_table(notable[:SHOWN])]
    if rest := notable[SHOWN:]:
        shown.append(details(f"and {len(rest)} more", _table(rest)))
    return section("Where the time goes", lead.strip(), _reasons(listed, total), *shown)


def _reasons(listed: list[Facts], total: float) -> Markup:
    """Render which share of the time lies in layers of each reason."""
    taken: dict[str, float] = {}
    for row in listed:
        if row.get("reason"):
            taken[str(row["reason"])] = taken.get(str(row["reason"]), 0.0) + (units.number(row.get("after_ms")) or 0.0)
    ordered = sorted(taken.items(), key=lambda pair: -pair[1])
    said = ", ".join(f"{reason} {units.percent(ms / total, 0)}" for reason, ms in ordered if total)
    return fill(
        "<p>Share of the time that lies in layers which gain less than expected: {said}.</p>", said=said or "none"
    )


def _table(listed: list[Facts]) -> Markup:
    head = ("<Layer", "<Channels", "Dense", "Expected", "Now", "<Why it is not less")
    return table(head, [_line(row) for row in listed], "ledger")


def _line(row: Facts) -> Markup:
    times = (units.milliseconds(units.number(row.get(key))) for key in ("before_ms", "expected_ms", "after_ms"))
    why = ": ".join(str(row.get(key)) for key in ("reason", "said") if row.get(key))
    return tr(
        th(row.get("name"), row.get("kind") or ""),
        td(row.get("widths") or "", LEFT),
        *(td(value, NOWRAP) for value in times),
        td(why, LEFT),
    )
