"""Show how sure teacher and student are of their answers on the test split, and how often they are right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from deploy.report import units
from deploy.report.drawing import CARD, DENSE, LINE, MUTED, STUDENT, drawn, inline
from deploy.report.markup import LEFT, Markup, card, details, fill, section, table, td, th, tr
from deploy.report.view import Facts, Results, rows

if TYPE_CHECKING:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

# Role, marker, dashes, colour and filling: told apart in black too.
_LOOKS = (("teacher", "o", "--", DENSE, False), ("student", "s", "-", STUDENT, True))
_MOST = 100


@dataclass(frozen=True)
class AnswersOf:
    """The answers of one network by their probability.

    Attributes:
        role: ``teacher`` or ``student``.
        bins: (low, high, images, right, mean probability) of each, the lowest first.
    """

    role: str
    bins: tuple[tuple[float, float, float, float, float], ...]

    @property
    def images(self) -> float:
        """How many answers there are."""
        return sum(images for _, _, images, _, _ in self.bins)

    @property
    def probability(self) -> float:
        """The mean probability of an answer."""
        return sum(images * share for _, _, images, _, share in self.bins) / self.images

    @property
    def right(self) -> float:
        """The share of the answers that are right."""
        return sum(right for _, _, _, right, _ in self.bins) / self.images

    @property
    def error(self) -> float:
        """The expected calibration error (Guo et al., 2017): the mean gap of probability and share of right answers."""
        return sum(abs(right - images * share) for _, _, images, right, share in self.bins) / self.images


def render_calibration(results: Results) -> Markup:
    """Render the reliability diagram of teacher and student; nothing where the run counted no probabilities."""
    found = [answers for role, *_ in _LOOKS if (answers := _answers(role, results.role(role)))]
    if not found:
        return Markup()
    lead = (
        "Each prediction comes with a probability. If the probabilities are right, the marks lie on the thin line: of "
        "the predictions made at 80 %, four in five are right. Below the line a network is overconfident. Both are "
        "counted as networks in fp32, before they are lowered."
    )
    said = "; ".join(
        f"{one.role}: {units.percent(one.right)} right at {units.percent(one.probability)} on average" for one in found
    )
    drawing = fill(
        '<div class="plot narrow" role="img" aria-label="{said}">{drawing}</div>',
        said=said,
        drawing=Markup(inline(_drawn(found))),
    )
    figure = fill("<figure>{card}</figure>", card=card(drawing))
    head = ("<Network", "probability, mean", "right", "calibration error")
    lines = [
        tr(
            th(one.role),
            td(units.percent(one.probability)),
            td(units.percent(one.right)),
            td(fill("<b>{error}</b>", error=units.percent(one.error))),
        )
        for one in found
    ]
    each = details("The predictions by their probability", table(("<Network", "<At", "images", "right"), _each(found)))
    return section("How confident, and how often right", lead, table(head, lines, "tight"), figure, each)


def _each(found: Sequence[AnswersOf]) -> list[Markup]:
    return [
        tr(
            th(one.role),
            td(f"{units.percent(low, 0)} to {units.percent(high, 0)}", LEFT),
            td(f"{images:,.0f}"),
            td(units.percent(right / images)),
        )
        for one in found
        for low, high, images, right, _ in one.bins
    ]


def _answers(role: str, model: Facts) -> AnswersOf | None:
    """Return what the ledger counted of one network; what is no count or no share is left out."""
    bins = []
    for one in rows(model.get("test_reliability"))[:_MOST]:
        low, high, images, right, share = (
            units.number(one.get(key)) for key in ("low", "high", "images", "right", "probability")
        )
        if low is None or high is None or images is None or right is None or share is None:
            continue
        if images >= 1 and 0 <= right <= images and 0 <= low <= high <= 1 and 0 <= share <= 1:
            bins.append((low, high, images, right, share))
    return AnswersOf(role, tuple(sorted(bins))) if bins else None


def _drawn(found: Sequence[AnswersOf]) -> str:
    def draw(figure: Figure, canvas: FigureCanvasAgg) -> None:
        axes = figure.add_subplot()
        axes.plot([0, 100], [0, 100], color=MUTED, linewidth=0.9)
        for role, marker, dashes, colour, filled in _LOOKS:
            for one in found:
                if one.role != role:
                    continue
                axes.plot(
                    [100 * share for *_, share in one.bins],
                    [100 * right / images for _, _, images, right, _ in one.bins],
                    color=colour,
                    linestyle=dashes,
                    linewidth=1.4,
                    marker=marker,
                    markersize=6.5,
                    markeredgewidth=1.6,
                    markerfacecolor=colour if filled else CARD,
                    label=role,
                    clip_on=False,
                )
        axes.set_xlim(0, 100)
        axes.set_ylim(0, 100)
        axes.set_aspect("equal")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color=LINE, linewidth=0.6)
        axes.set_axisbelow(True)
        axes.set_xlabel("probability of its answer (%)")
        axes.set_ylabel("right (%)")
        axes.legend(loc="upper left", frameon=False, labelcolor=MUTED, fontsize=9)

    return drawn(draw, width=4.1, height=3.9, salt="calibration")
