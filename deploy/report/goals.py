"""Hold what came out to what was asked for: each bound of the budget, and whether it was met."""

from __future__ import annotations

from typing import Any

from deploy.report import units
from deploy.report.markup import LEFT, NOWRAP, Markup, fill, section, table, td, th, tr
from deploy.report.view import Results, larger_ratio, mapping, ratio

_SLACK = 1.0 + 1e-9


def render_goals(results: Results) -> Markup:
    """Render each thing that the recipe asked for beside what came out; nothing where it asked for none."""
    lines = [_line(*goal) for goal in goals_of(results)]
    if not lines:
        return Markup()
    head = ("<Asked", "Wanted", "Got", "<Verdict")
    return section("What was asked for, and what was reached", "", table(head, lines, "goals"))


def goals_of(results: Results) -> list[tuple[str, str, str, bool | None]]:
    """Return (what, wanted, got, met) for each bound of the budget and for the accuracy; met is None where unknown."""
    plan, final, dense = results.plan(), results.final(), results.columns()[0]
    budget = mapping(plan.get("budget"))
    share_of_time = larger_ratio(final.record)
    got: dict[str, tuple[Any, Any]] = {
        "macs": (ratio(plan.get("macs_after"), plan.get("macs_before")), plan.get("macs_after")),
        "params": (ratio(plan.get("params_after"), plan.get("params_before")), plan.get("params_after")),
        "size": (ratio(final.file_bytes, dense.file_bytes), final.file_bytes),
        "latency": (share_of_time, final.record.get("median_ms")),
    }
    found = []
    for what, bound in budget.items():
        wanted = units.number(bound)
        if wanted is None or what not in (*got, "memory"):
            continue
        share, amount = got.get(what, (None, None))
        value = share if wanted <= 1 else units.number(amount)
        met = None if value is None else value <= wanted * _SLACK
        found.append((_NAMES.get(what, what), _bound(wanted), _bound(value), met))
    return found + _accuracy(results)


_NAMES = {"macs": "MACs of dense", "params": "parameters of dense", "size": "file size", "latency": "time of dense"}


def _accuracy(results: Results) -> list[tuple[str, str, str, bool | None]]:
    allowed = units.number(mapping(results.recipe.get("deploy")).get("accuracy_drop"))
    final, dense = results.final(), results.columns()[0]
    if final.accuracy is None or dense.accuracy is None:
        return []
    gap = final.accuracy - dense.accuracy
    wanted = "no bound" if allowed is None else f"at most {units.points(allowed).lstrip('+')} lost"
    met = None if allowed is None else gap >= -allowed - 1e-12
    return [(f"test {results.metric()} against dense", wanted, units.points(gap), met)]


def _bound(value: float | None) -> str:
    """Format a share of the dense network as per cent, anything larger as a count."""
    if value is None:
        return units.NONE
    return units.percent(value, 1) if value <= 1 else units.count(value)


def _line(what: str, wanted: str, got: str, met: bool | None) -> Markup:
    said = Markup(units.NONE)
    if met is not None:
        said = Markup('<span class="ok">✓ met</span>' if met else '<span class="bad">✗ not met</span>')
    return tr(th(what), td(wanted, NOWRAP), td(fill("<b>{got}</b>", got=got), NOWRAP), td(said, LEFT))
