"""Show a measured sensitivity: a curve for each group, what each group lost, and which criteria foresaw it."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from deploy.report import units
from deploy.report.drawing import DENSE, FP16, INK, INT8, LINE, MUTED, PRUNED, STUDENT, alone, drawn, inline
from deploy.report.markup import LEFT, Markup, card, details, fill, join, part, section, table, td, th, tr
from deploy.report.view import Facts, mapping, rows

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

NAMED = 6
"""Curves that are drawn in colour and named; the others are thin lines."""
# Colour and dashes of these: told apart in black too.
LOOKS = ((PRUNED, "-"), (INT8, "--"), (FP16, "-."), (STUDENT, ":"), (DENSE, "-"), (INK, "--"))
SHOWN = 24
_MOST = 2000


@dataclass(frozen=True)
class SensitivityCurve:
    """One group: shares of its channels that are gone, and the metric or the loss with nothing else cut."""

    group: str
    shares: tuple[float, ...]
    values: tuple[float, ...]

    def at(self, share: float) -> float | None:
        """Return the value at a share, straight between measured ones; None beyond the last."""
        pairs = list(zip(self.shares, self.values, strict=True))
        for (low, one), (high, other) in itertools.pairwise(pairs):
            if low <= share <= high:
                return one + (other - one) * (share - low) / (high - low)
        return None


def read_curves(measured: Facts) -> tuple[list[SensitivityCurve], str]:
    """Return the curves and the name of what they show: the metric where there were labels, else the loss."""
    whole = units.number(measured.get("accuracy"))
    key = "loss" if whole is None else "accuracy"
    start = units.number(measured.get(key))
    found = []
    for curve in rows(measured.get("curves"))[:_MOST]:
        cells = [(units.number(cell.get("ratio")), units.number(cell.get(key))) for cell in rows(curve.get("cells"))]
        known = sorted({r: v for r, v in cells if r is not None and 0 < r < 1 and v is not None}.items())
        if start is not None and known:
            shares, values = zip(*known, strict=True)
            found.append(SensitivityCurve(str(curve.get("group")), (0.0, *shares), (start, *values)))
    return found, str(measured.get("metric") or "accuracy") if key == "accuracy" else "loss"


def curves_file(measured: Facts) -> str:
    """Return the curves as an SVG file of its own; raise MissingDependency without matplotlib."""
    found, name = read_curves(measured)
    return alone(_drawn(found, name, width=9.0, height=4.6, salt="file"))


def render_sensitivity(plan: Facts) -> Markup:
    """Render the section of the report; nothing where no sensitivity was measured."""
    measured = mapping(plan.get("sensitivity"))
    found, name = read_curves(measured)
    if not found:
        return Markup()
    images = units.number(measured.get("images"))
    lead = (
        f"Each group cut alone, by {measured.get('criterion') or 'one criterion'}, all else whole and nothing trained"
        f"{f': {name} on {images:,.0f} images' if images else ''}."
    )
    drawings = fill(
        '<div class="plot large" role="img" aria-label="{said}">{large}</div>'
        '<div class="plot small" role="img" aria-label="{said}">{small}</div>',  # one of the two is shown
        said=f"{name} of each group against the share of its channels that is gone",
        large=Markup(inline(_drawn(found, name, width=8.6, height=4.2, salt="curves"))),
        small=Markup(inline(_drawn(found, name, width=4.1, height=4.6, salt="curves-small"))),
    )
    figure = fill("<figure>{card}</figure>", card=card(drawings))
    return section("Sensitivity", lead, figure, _lost(plan, found, name), _foresaw(measured))


# The drawing -------------------------------------------------------------------------------------------------


def _drawn(found: Sequence[SensitivityCurve], name: str, *, width: float, height: float, salt: str) -> str:
    scale = 1.0 if name == "loss" else 100.0
    # Those that lose most are named: the lowest metric, or the highest loss.
    by_loss = sorted(found, key=lambda curve: curve.values[-1], reverse=name == "loss")
    named = by_loss[:NAMED]

    def draw(figure: Figure, canvas: FigureCanvasAgg) -> None:
        axes = figure.add_subplot()
        _frame(axes, name)
        for curve in found:
            if curve not in named:
                axes.plot(curve.shares, [scale * v for v in curve.values], color=MUTED, linewidth=0.8, alpha=0.45)
        for (colour, dashes), curve in zip(LOOKS, named, strict=False):
            shown = [scale * v for v in curve.values]
            axes.plot(curve.shares, shown, color=colour, linestyle=dashes, linewidth=1.7, label=_short(curve.group))
        legend = axes.legend(
            loc="upper left" if name == "loss" else "lower left", frameon=False, labelcolor=INK, fontsize=8
        )
        for text in legend.get_texts():
            text.set_parse_math(False)

    return drawn(draw, width=width, height=height, salt=salt)


def _frame(axes: Axes, name: str) -> None:
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.grid(axis="y", color=LINE, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.set_xlim(0, 1)
    axes.set_xlabel("share of the group's channels that is gone")
    axes.set_ylabel(name if name == "loss" else f"{name} (%)", parse_math=False)


def _short(name: str) -> str:
    """A label that starts with an underscore would be left out of a legend."""
    shown = name if len(name) <= 34 else f"{name[:33]}…"
    return f" {shown}" if shown.startswith("_") else shown


# The tables --------------------------------------------------------------------------------------------------


def _lost(plan: Facts, found: Sequence[SensitivityCurve], name: str) -> Markup:
    """What each group lost: channels, and by its curve the metric that this alone costs."""
    known: dict[str, list[SensitivityCurve]] = {}
    for curve in found:
        known.setdefault(curve.group, []).append(curve)
    lines = []
    for group in rows(plan.get("groups")):
        before, after = units.number(group.get("before")), units.number(group.get("after"))
        curves = known.get(str(group.get("name")))
        if not before or after is None or not curves or not 0 <= after < before:
            continue
        curve = curves.pop(0) if len(curves) > 1 else curves[0]
        gone = 1 - after / before
        alone_at = curve.at(gone)
        cost = None if alone_at is None else alone_at - curve.values[0]
        said = units.NONE if cost is None else units.significant(cost) if name == "loss" else units.points(cost)
        lines.append(
            (cost if name == "loss" else -(cost or 0.0),
             tr(th(group.get("name")), td(f"{before:,.0f} → {after:,.0f}"), td(units.percent(gone, 0)), td(said)))
        )  # fmt: skip
    if not lines:
        return Markup()
    ordered = [line for _, line in sorted(lines, key=lambda pair: -(pair[0] or 0.0))]
    head = ("<Group", "channels", "gone", f"{name}, this alone")
    shown = [table(head, ordered[:SHOWN])]
    if rest := ordered[SHOWN:]:
        shown.append(details(f"and {len(rest)} more", table(head, rest)))
    return part("What each group lost", "Read from the curves; the most costly first.", join(shown))


def _foresaw(measured: Facts) -> Markup:
    known = {str(name): units.number(value) for name, value in mapping(measured.get("correlations")).items()}
    found = sorted(((v, n) for n, v in known.items() if v is not None), reverse=True)
    if not found:
        return Markup()
    lines = [tr(th(name), td(f"{value:+.2f}".replace("-", units.MINUS), LEFT)) for value, name in found]
    unable = sorted(name for name, value in known.items() if value is None)
    lead = "Spearman's rank correlation of the scores that went with the rise of the loss, over all cuts: 1 is best."
    if unable:
        lead += f" Not available for this network: {', '.join(unable)}."
    return details("Which criteria predicted it", part("", lead, table(("<Criterion", "<correlation"), lines)))
