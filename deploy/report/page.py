"""Assemble the page from top to bottom: what was run, what was asked, and where it was measured."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib import resources
from string import Template
from typing import Any

from deploy.report import units
from deploy.report.calibration import render_calibration
from deploy.report.differing import render_differing
from deploy.report.evidence import built, proof, stages, widths
from deploy.report.goals import render_goals
from deploy.report.latency import render_latency
from deploy.report.markup import Markup, details, esc, facts, fill, join, pair, section
from deploy.report.outcome import render_outcome, render_step_gains
from deploy.report.reproduction import render_again
from deploy.report.sensitivity import render_sensitivity
from deploy.report.view import RUNTIMES, Facts, Results, mapping, ratio, rows

TREE = Markup(
    '<svg viewBox="0 0 48 48" fill="currentColor" aria-hidden="true">'
    '<path d="M22 46c1-8-3-12-1-18s6-6 5-13h2c2 8-4 9-5 15s3 9 3 16z"/>'
    '<ellipse cx="27" cy="10" rx="10" ry="5.5"/><ellipse cx="12" cy="24" rx="10" ry="5"/>'
    '<ellipse cx="37" cy="27" rx="9.5" ry="4.6"/></svg>'
)
SHOWN_SETTINGS = 8


def render_page(results: Results, recipe_yaml: str) -> str:
    """Return the whole document."""
    parts = (
        _header(results),
        render_goals(results),
        render_outcome(results),
        render_differing(results),
        render_calibration(results),
        render_step_gains(results),
        widths(results.plan()),
        render_sensitivity(results.plan()),
        render_latency(results.plan()),
        stages(rows(results.ledger.get("stages"))),
        proof(results),
        built(results.records("built")),
        _asked(results, recipe_yaml),
        _machine(results),
        render_again(results, recipe_yaml),
        fill(
            "<footer>Every figure on this page is read from <code>ledger.json</code>{record} "
            "in the folder of the run.</footer>",
            record=Markup(" and <code>bench.json</code>") if results.bench else "",
        ),
    )
    return document(_name(results), join(filter(None, parts), "\n"), columns=len(results.columns()))


def document(title: Any, body: Markup, *, columns: int = 4) -> str:
    """Return a whole document around ``body``, whose main table has so many columns of figures."""
    template = Template(resources.files(__package__).joinpath("page.html.tmpl").read_text("utf-8"))
    return template.substitute(name=esc(title), columns=str(columns), body=body)


def _name(results: Results) -> Any:
    return results.ledger.get("name") or results.bench.get("name") or "unnamed run"


def _header(results: Results) -> Markup:
    dense, final = results.columns()[0], results.final()
    created, seed = results.ledger.get("created"), results.ledger.get("seed")
    brand = ["Niwaki report", str(created)[:16].replace("T", " ") if created else ""]
    brand.append("" if seed is None else f"seed {seed}")
    macs = ratio(final.model.get("macs"), dense.model.get("macs"))
    against = ""
    if final.accuracy is not None and dense.accuracy is not None:
        against = f", {units.points(final.accuracy - dense.accuracy)} against dense"
    runtime = results.runtime()
    where = f" on {RUNTIMES.get(runtime, runtime)}" if runtime else ""
    tiles = (
        (units.percent(final.accuracy), f"test {results.metric()}{against}"),
        (units.percent(macs), f"of the MACs: {units.count(final.model.get('macs'))}"),
        (
            units.percent(ratio(final.file_bytes, dense.file_bytes)),
            f"of the file size: {units.size(final.file_bytes)}",
        ),
        (
            units.times(final.speedup),
            f"the speed: {units.milliseconds(final.record.get('min_ms'))} at best, "
            f"{units.milliseconds(final.record.get('median_ms'))} median{where}",
        ),
    )
    # Without records nothing was timed.
    measured = tiles if results.bench else tiles[:3]
    return fill(
        '<header><div class="brand">{tree}<span>{brand}</span></div><h1>{name}</h1>'
        '<p class="verdict">{verdict}</p><div class="tiles">{tiles}</div></header>',
        tree=TREE,
        brand=" · ".join(filter(None, brand)),
        name=_name(results),
        verdict=results.verdict(),
        tiles=join(
            fill('<div class="tile"><b>{figure}</b><span>{said}</span></div>', figure=figure, said=said)
            for figure, said in measured
        ),
    )


_COUNTED_AT = ("precision", "batch")


def _asked(results: Results, recipe_yaml: str) -> Markup:
    plan = results.plan()
    budget = _budget(mapping(plan.get("budget")))
    cut = [("budget", budget)] if budget else []
    names = (("criterion", "criterion"), ("scope", "scope"), ("round_to", "widths in multiples of"))
    cut += [(title, plan[key]) for key, title in names if plan.get(key)]
    lines: list[tuple[Any, Any]] = [("Cut", join(pair(key, value) for key, value in cut))] if cut else []
    classes = results.ledger.get("classes")
    if isinstance(classes, list | tuple):
        shown = ", ".join(map(str, classes[:12])) + (", …" if len(classes) > 12 else "")
        lines.append(("Classes", f"{len(classes)}: {shown}"))
    lines += _recipe(results.recipe)
    full = details("The whole recipe, as resolved", fill("<pre>{recipe}</pre>", recipe=recipe_yaml.strip()))
    return section("The recipe", "", facts(lines), full if recipe_yaml.strip() else "")


def _budget(asked: Facts) -> str:
    """Return the bounds of a budget in words, and what its bytes are counted at."""
    bounds = {key: value for key, value in asked.items() if key not in _COUNTED_AT and value is not None}
    said = ", ".join(f"{key} ≤ {_bound(value)}" for key, value in bounds.items())
    at = [f"{key} {asked[key]}" for key in _COUNTED_AT if asked.get(key) is not None]
    return f"{said} at {', '.join(at)}" if at and bounds.keys() & {"size", "memory"} else said


def _bound(value: Any) -> str:
    """Format a share of the dense network as per cent, bytes as such, and anything else as it was written."""
    amount = units.number(value)
    if amount is None or amount <= 0:
        return str(value)
    return units.percent(amount, 0) if amount <= 1 else f"{amount:,.0f} bytes"


def _recipe(recipe: Facts) -> list[tuple[str, Markup]]:
    """Return the settings of the recipe, one line per section."""
    single = {key: value for key, value in recipe.items() if not isinstance(value, Mapping)}
    sections = [("recipe", single), *((key, value) for key, value in recipe.items() if key not in single)]
    lines = []
    for title, settings in sections:
        known = [(key, value) for key, value in _flat(settings) if _short(value)]
        shown = [pair(key, value) for key, value in known[:SHOWN_SETTINGS]]
        if (rest := len(known) - SHOWN_SETTINGS) > 0:
            shown.append(pair(f"and {rest} more below", ""))
        if shown:
            lines.append((str(title).replace("_", " ").capitalize(), join(shown)))
    return lines


def _flat(settings: Facts) -> Iterable[tuple[str, Any]]:
    """Yield the settings of a section: those of a nested mapping under a dotted name, a list as one text."""
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from ((f"{key}.{inner}", innermost) for inner, innermost in _flat(value))
        else:
            yield str(key), ", ".join(map(str, value)) if isinstance(value, list) else value


def _short(value: Any) -> bool:
    """Return whether a value fits on a line; null and long ones appear only in the full text."""
    return isinstance(value, str | int | float) and 0 < len(str(value)) < 80


def _machine(results: Results) -> Markup:
    parts = {
        "Machine": mapping(results.bench.get("machine")) or mapping(results.ledger.get("machine")),
        "Timing": mapping(results.bench.get("settings")),
        "Versions": {**mapping(results.ledger.get("versions")), **mapping(results.bench.get("versions"))},
    }
    lines: list[tuple[Any, Any]] = [
        (title, join(pair(str(key).replace("_", " "), value) for key, value in values.items()))
        for title, values in parts.items()
        if values
    ]
    decided = mapping(results.ledger.get("shipping"))
    if decided:
        where = RUNTIMES.get(str(decided.get("runtime")), "")
        lines.append(("Ships", f"{decided.get('precision')} on {where} first: {decided.get('reason')}"))
    notes = results.ledger.get("notes")
    if isinstance(notes, list | tuple) and notes:
        lines.append(("Notes", " ".join(map(str, notes))))
    return section("Where it was measured", "", facts(lines)) if lines else Markup()
