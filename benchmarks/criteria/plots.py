"""Every criterion's points lost, as cut and as solved, in shapes that black and white keep apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.criteria.stages import HALF
from benchmarks.criteria.tables import points_lost


def plot(lines: Sequence[Mapping[str, Any]], folder: Path) -> list[Path]:
    """Draw one plot for each subject: its criteria ranked globally in one cut, on the selection images.

    Returns:
        the files, SVG.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    files = []
    for subject in dict.fromkeys(line["subject"] for line in lines):
        own = sorted((line for line in lines if _shown(line, subject)), key=lambda line: line["solved"]["right"])
        if not own:
            continue
        figure, axes = pyplot.subplots(figsize=(7, 0.8 + 0.27 * len(own)), layout="constrained")
        for name, mark, title in (("cut", "o", "as cut"), ("solved", "s", "solved by least squares")):
            points = [points_lost(line, name) for line in own]
            axes.errorbar(
                [lost for lost, _ in points],
                range(len(own)),
                xerr=[error for _, error in points],
                fmt=mark,
                color="black",
                markerfacecolor="white" if name == "cut" else "black",
                capsize=2,
                label=title,
            )
        axes.set_yticks(range(len(own)), [line["criterion"] for line in own])
        axes.set_xlabel(f"points of accuracy lost at {100 * own[0]['macs']:.0f} % of the MACs, without training")
        axes.set_title(subject)
        axes.legend(frameon=False)
        axes.grid(axis="x", color="0.85")
        folder.mkdir(parents=True, exist_ok=True)
        files.append(folder / f"criteria-{subject}.svg")
        figure.savefig(files[-1], metadata={"Date": None})
        pyplot.close(figure)
    return files


def _shown(line: Mapping[str, Any], subject: str) -> bool:
    plain = line["subject"] == subject and line["split"] == "selection" and line["scope"] == "global"
    plain = plain and line.get("normalize") is None
    return plain and line["rounds"] == 1 and line["macs"] == HALF and "refused" not in line
