"""Draw with matplotlib as SVG: inline in the colours of the page, or a file of its own."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from deploy.errors import MissingDependency

if TYPE_CHECKING:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

# Placeholder colours -> the page's variables that replace them, so that one drawing serves both themes.
THEME = {
    "#010101": "var(--ink)",
    "#020202": "var(--muted)",
    "#030303": "var(--line)",
    "#040404": "var(--card)",
    "#050505": "var(--c-dense)",
    "#060606": "var(--c-pruned)",
    "#070707": "var(--c-student)",
    "#080808": "var(--c-fp16)",
    "#090909": "var(--c-int8)",
}
INK, MUTED, LINE, CARD, DENSE, PRUNED, STUDENT, FP16, INT8 = THEME

# The same colours for a file that stands alone, on white.
ALONE = ("#1d2320", "#5c6660", "#d5dbd7", "#ffffff", "#5c6660", "#b4532a", "#2f7d4f", "#3b6ea8", "#8a5fb0")


def drawn(draw: Callable[[Figure, FigureCanvasAgg], None], *, width: float, height: float, salt: str) -> str:
    """Return what ``draw`` puts on a figure as SVG, in placeholder colours.

    Args:
        draw: fills the figure, whose canvas tells the final layout.
        width, height: of the drawing, in inches.
        salt: any text; it keeps the ids of two drawings on one page apart.

    Raises:
        MissingDependency: matplotlib is not installed.
    """
    try:
        import matplotlib
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingDependency(
            f"the report draws its plot with matplotlib, which cannot be imported here ({error}): "
            'pip install "niwaki-vision[report]".'
        ) from error
    settings: Any = {
        "svg.fonttype": "none",
        "svg.hashsalt": salt,
        "font.family": "DejaVu Sans",
        "font.size": 9,
        "axes.edgecolor": LINE,
        "axes.labelcolor": MUTED,
        "xtick.color": MUTED,
        "ytick.color": MUTED,
        "xtick.major.size": 0,
        "ytick.major.size": 0,
    }
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=(width, height), layout="constrained")
        draw(figure, FigureCanvasAgg(figure))
        buffer = io.StringIO()
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    return buffer.getvalue()


def alone(svg: str) -> str:
    """Return a drawing as a file of its own, on white."""
    for placeholder, colour in zip(THEME, ALONE, strict=True):
        svg = svg.replace(placeholder, colour)
    return re.sub(r"(<svg[^>]*)>", r'\1 style="background:#ffffff">', svg, count=1)


def inline(svg: str) -> str:
    """Return only the ``<svg>`` element, scaled by the page, in the page's font and colours."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = svg.replace('<style type="text/css">*{', '<style type="text/css">.plot *{')
    svg = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font-size: \1", svg)
    svg = re.sub(r"font-family: [^;\"]*", "font-family: inherit", svg)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)  # nothing refers to groups, and ids would clash between two drawings
    for drawn, meant in THEME.items():
        svg = svg.replace(drawn, meant)
    return svg.strip()
