"""Render times as bars that a browser draws without a script: each engine's spread, and what each step took away."""

from __future__ import annotations

from collections.abc import Sequence

from deploy.report import units
from deploy.report.markup import Markup, card, fill, join, part, small
from deploy.report.view import Facts, Results

# Records in the order in which one is made from the one before.
STEPS = (
    ("dense", "dense", "the teacher, fp32"),
    ("distilled", "pruned and distilled", "fewer channels, fp32"),
    ("distilled-fp16", "fp16", "the student in half precision"),
    ("int8", "int8", "the student quantised"),
)
_MARKS = (("min_ms", "best"), ("median_ms", "median"), ("p90_ms", "p90"), ("p99_ms", "p99"))


def waterfall(results: Results) -> Markup:
    """Render the milliseconds that are left after each step; best times, which other processes do not stretch."""
    measured = {str(record.get("name")): record for record in results.measured()}
    known = [(name, title, said, time) for name, title, said in STEPS if (time := _best(measured.get(name, {})))]
    if len(known) < 2 or known[0][0] != "dense":
        return Markup()
    first, lines = known[0][3], []
    for place, (_, title, said, time) in enumerate(known):
        # int8 and fp16 are both made from the student: each is compared with it, and not with one another.
        before = known[0][3] if place == 1 else next((t for n, _, _, t in known if n == "distilled"), first)
        gain = time / before - 1
        sign = "+" if gain > 0 else ""
        base = "dense" if place == 1 else "the student's fp32"
        change = Markup() if place == 0 else small(f"{sign}{units.percent(gain, 0)} against {base}")
        lines.append(
            fill(
                '<div class="fall"><div><b>{title}</b>{said}</div>'
                '<span class="bar" aria-hidden="true"><i style="width:{width}%"></i></span>'
                '<div class="gain">{time}{change}</div></div>',
                title=title,
                said=small(said),
                width=f"{min(100.0, 100 * time / max(t for *_, t in known)):.1f}",
                time=units.milliseconds(time),
                change=change,
            )
        )
    lead = (
        "Best time of a run after each step. Half precision and int8 are two alternatives, each made from the student."
    )
    return part("Milliseconds, step by step", lead, card(join(lines)))


def distributions(records: Sequence[Facts]) -> Markup:
    """Render each engine's best time, median, 90th and 99th percentile on one scale."""
    spreads = [(record, [units.number(record.get(key)) for key, _ in _MARKS]) for record in records]
    known = [(record, [t for t in times if t]) for record, times in spreads if all(times)]
    if not known:
        return Markup()
    # A single hiccup of a busy machine would press all others together.
    widest = max(times[2] for _, times in known) * 1.25
    lines = [_spread(record, times, widest) for record, times in known]
    lead = "From the best time to the 90th percentile; the bar is the median, the ring the 99th percentile."
    return part("How the times vary", lead, card(join(lines)))


def _best(record: Facts) -> float | None:
    return units.number(record.get("min_ms")) or units.number(record.get("median_ms"))


def _spread(record: Facts, times: Sequence[float], widest: float) -> Markup:
    best, median, p90, p99 = (min(100.0, 100 * time / widest) for time in times)
    beyond = times[3] > widest
    said = ", ".join(f"{word} {units.milliseconds(time)}" for (_, word), time in zip(_MARKS, times, strict=True))
    return fill(
        '<div class="spread"><code title="{name}">{name}</code>'
        '<span class="line" role="img" aria-label="{said}"><i style="left:{best}%;width:{width}%"></i>'
        '<b style="left:{median}%"></b><u style="left:{p99}%"></u></span><small>{said}{beyond}</small></div>',
        name=record.get("name"),
        said=said,
        best=f"{best:.1f}",
        width=f"{max(0.4, p90 - best):.1f}",
        median=f"{median:.1f}",
        p99=f"{p99:.1f}",
        beyond=" (beyond the drawing)" if beyond else "",
    )
