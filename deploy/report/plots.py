"""Draw accuracy against latency, as an inline SVG in the colours of the page."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from deploy.report.drawing import CARD, DENSE, FP16, INK, INT8, LINE, MUTED, PRUNED, STUDENT, drawn, inline
from deploy.report.units import milliseconds, percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.backend_bases import RendererBase
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.text import Annotation
    from matplotlib.transforms import Bbox

# Record -> marker, colour, filled: shape and filling tell records apart even when printed in black.
LOOK = {
    "dense": ("o", DENSE, False),
    "pruned": ("v", PRUNED, False),
    "distilled": ("s", STUDENT, True),
    "distilled-fp16": ("D", FP16, False),
    "int8": ("^", INT8, True),
}
OTHER = ("P", MUTED, False)
_FARTHEST = 1.6
"""How far the axis goes beyond the slowest median, as a factor."""


@dataclass(frozen=True)
class Point:
    """One measured engine: its latency in milliseconds and its accuracy as a share, with their spreads."""

    name: str
    label: str
    latency: float
    accuracy: float
    p90: float | None = None
    low: float | None = None
    high: float | None = None


def accuracy_latency(points: Sequence[Point], *, width: float, height: float, salt: str, metric: str) -> str:
    """Draw ``points``; ``salt`` keeps the ids of two drawings on one page apart.

    Args:
        points: the engines.
        width, height: of the drawing, in inches.
        salt: any text.
        metric: the name of the accuracy axis.

    Raises:
        MissingDependency: matplotlib is not installed.
    """

    def draw(figure: Figure, canvas: FigureCanvasAgg) -> None:
        axes = figure.add_subplot()
        floor = _floor(points)
        _frame(axes, points, floor, metric)
        for point in points:
            _mark(axes, point, floor)
        canvas.draw()  # labels can be kept apart only in the final layout
        _label(figure, axes, points, floor, canvas.get_renderer())

    return inline(drawn(draw, width=width, height=height, salt=salt))


def _floor(points: Sequence[Point]) -> float | None:
    """Return where the axis ends if the pruned network, not yet retrained, would squeeze all others together."""
    trained = [point.accuracy for point in points if point.name != "pruned"]
    cut = [point.accuracy for point in points if point.name == "pruned"]
    if len(trained) < 2 or not cut:
        return None
    room = max(3 * (max(trained) - min(trained)), 0.06)
    return min(trained) - room / 2 if min(cut) < min(trained) - room else None


def _height(point: Point, floor: float | None) -> float:
    """Return the height at which a point is drawn, in per cent."""
    return 100 * (point.accuracy if floor is None else max(point.accuracy, floor))


def _frame(axes: Axes, points: Sequence[Point], floor: float | None, metric: str) -> None:
    # A busy machine's 90th percentile would press all marks together.
    most = _FARTHEST * max(point.latency for point in points)
    latencies = [min(value, most) for point in points for value in (point.latency, point.p90) if value is not None]
    heights = [_height(point, floor) for point in points]
    heights += [100 * end for point in points if point.name != "pruned" for end in (point.low, point.high) if end]
    low, high = min(heights), max(heights)
    margin = max(0.12 * (high - low), 0.4)
    if max(latencies) > 20 * min(latencies):
        axes.set_xscale("log")
        axes.set_xlim(min(latencies) / 1.6, max(latencies) * 1.6)
    else:
        axes.set_xlim(0, 1.18 * max(latencies))
    bottom = low - margin if floor is None else low - 0.14 * (high - low)  # room for a mark at the edge
    axes.set_ylim(bottom, min(high + margin, 100 + margin / 2))
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.grid(axis="y", color=LINE, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.set_xlabel("median latency (ms): further left is faster")
    axes.set_ylabel(f"test {metric} (%)", parse_math=False)  # a $ in a name is a $


def _mark(axes: Axes, point: Point, floor: float | None) -> None:
    marker, colour, filled = LOOK.get(point.name, OTHER)
    height = _height(point, floor)
    cut_off = floor is not None and point.accuracy < floor
    if point.low is not None and point.high is not None and not cut_off:
        axes.vlines(point.latency, 100 * point.low, 100 * point.high, color=colour, linewidth=1.1, alpha=0.55)
    if point.p90 is not None:
        end = min(point.p90, axes.get_xlim()[1])
        axes.hlines(height, point.latency, end, color=colour, linewidth=1.1, alpha=0.55, clip_on=False)
    axes.plot(
        [point.latency],
        [height],
        marker=marker,
        markersize=8.5,
        markeredgewidth=1.8,
        markeredgecolor=colour,
        markerfacecolor=colour if filled else CARD,
        linestyle="none",
        clip_on=False,
        zorder=5,
    )


LEADER = 24  # points: a label further away than this is tied to its mark by a line
DIRECTIONS = ((1, 0), (-1, 0), (1, 1), (1, -1), (-1, 1), (-1, -1), (0, 1), (0, -1))


def _label(figure: Figure, axes: Axes, points: Sequence[Point], floor: float | None, renderer: RendererBase) -> None:
    """Write each name beside its mark, at the nearest place where it covers nothing."""
    from matplotlib.transforms import Bbox

    room, page = axes.get_window_extent(renderer), figure.get_window_extent(renderer)
    inside = Bbox.from_extents(room.x0, room.y0, page.x1, page.y1)  # may leave the frame, but covers neither axis
    marks = {point: tuple(axes.transData.transform((point.latency, _height(point, floor)))) for point in points}
    taken = [box for point in points for box in _obstacles(axes, point, marks[point], floor, figure.dpi / 72)]

    def cost(box: Bbox, own: tuple[float, float], way: tuple[float, float]) -> float:
        """Return what is wrong with a place, 0 for a good one: overlap, overhang, and what would be misread."""
        covered = sum(_overlap(box, other) for other in taken)
        outside = max(0.0, box.width * box.height - _overlap(box, inside))
        # A leader that crosses another mark is misread.
        path = [(own[0] + t * way[0], own[1] + t * way[1]) for t in (0.4, 0.6, 0.8)]
        crossed = sum(other.contains(*spot) for other in taken for spot in path) if max(map(abs, way)) > leader else 0
        # So is a label that lies nearer to another mark than to its own.
        astray = any(_gap(box, mark) < _gap(box, own) for mark in marks.values() if mark != own)
        return covered + 4 * outside + 200 * crossed + 1000 * astray

    scale = figure.dpi / 72
    leader = LEADER * scale
    # Marks with the nearest neighbours choose first, for they have the fewest places.
    for point in sorted(points, key=lambda p: min([abs(p.latency - q.latency) for q in points if q != p] or [0])):
        anchor = (point.latency, _height(point, floor))
        cut_off = floor is not None and point.accuracy < floor
        lines = (
            point.label,
            f"{percent(point.accuracy)}{' ↓' if cut_off else ''}",
            milliseconds(point.latency),
        )
        text = "\n".join(lines) if page.width < 6 * figure.dpi else f"{lines[0]}\n{lines[1]} · {lines[2]}"
        note = axes.annotate(
            text,
            anchor,
            parse_math=False,
            xytext=(0, 0),
            textcoords="offset points",
            color=INK,
            fontsize=8.5,
            linespacing=1.25,
            annotation_clip=False,
        )
        places = []
        for distance, way in itertools.product((11, 20, 32, 46, 62), DIRECTIONS):
            offset = (way[0] * distance, way[1] * distance)
            box = _put(note, offset, renderer)
            places.append((cost(box, marks[point], (offset[0] * scale, offset[1] * scale)), offset))
            if places[-1][0] <= 0:
                break
        _, offset = min(places, key=lambda place: place[0])
        taken.append(_put(note, offset, renderer))
        if max(map(abs, offset)) > LEADER:
            line = {"arrowstyle": "-", "color": MUTED, "linewidth": 0.7, "shrinkA": 0, "shrinkB": 6}
            end = (0.82 * offset[0], 0.82 * offset[1])
            axes.annotate("", anchor, xytext=end, textcoords="offset points", arrowprops=line)


def _put(note: Annotation, offset: tuple[float, float], renderer: RendererBase) -> Bbox:
    """Move a label, aligned towards its mark, and return the box that it now covers."""
    dx, dy = offset
    note.set_position(offset)
    note.set_horizontalalignment("left" if dx > 0 else "right" if dx < 0 else "center")
    note.set_verticalalignment("bottom" if dy > 0 else "top" if dy < 0 else "center")
    return note.get_window_extent(renderer)


def _obstacles(axes: Axes, point: Point, mark: tuple[float, ...], floor: float | None, scale: float) -> Iterator[Bbox]:
    """Yield the boxes of a mark and of its two spreads, in pixels."""
    from matplotlib.transforms import Bbox

    x, y = mark
    yield Bbox.from_extents(x - 8 * scale, y - 8 * scale, x + 8 * scale, y + 8 * scale)
    if point.low is not None and point.high is not None and not (floor is not None and point.accuracy < floor):
        bottom, top = (axes.transData.transform((point.latency, 100 * end))[1] for end in (point.low, point.high))
        yield Bbox.from_extents(x - 2, bottom, x + 2, top)
    if point.p90 is not None:
        right = axes.transData.transform((min(point.p90, axes.get_xlim()[1]), 0))[0]
        yield Bbox.from_extents(x, y - 2, max(right, x + 1), y + 2)


def _overlap(one: Bbox, other: Bbox) -> float:
    width = min(one.x1, other.x1) - max(one.x0, other.x0)
    height = min(one.y1, other.y1) - max(one.y0, other.y0)
    return width * height if width > 0 and height > 0 else 0.0


def _gap(box: Bbox, spot: tuple[float, float]) -> float:
    """Return the distance from a box to a spot outside it, 0 within."""
    return math.hypot(max(box.x0 - spot[0], 0.0, spot[0] - box.x1), max(box.y0 - spot[1], 0.0, spot[1] - box.y1))
