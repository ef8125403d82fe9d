"""The JSON lines of a table as Markdown, and as plots that read in black and white."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from scipy.stats import t as student

from benchmarks.papers.settings import Published, read_table

HEAD = ("method", "published", "ours: dense", "before the cut", "after", "at", "file", "seeds", "training", "held")
HATCHES = ("", "///", "...", "xx", "\\\\\\", "++")
MARKERS = "osD^v<>ph*x+1234"
STYLES = ("-", "--", ":", "-.")


def interval(values: Sequence[float]) -> float | None:
    """Half of the 95 % interval of the mean by Student's t; none of fewer than two values."""
    if len(values) < 2:
        return None
    return float(student.ppf(0.975, len(values) - 1) * stdev(values) / len(values) ** 0.5)


def markdown(name: str, lines: Sequence[dict[str, Any]]) -> str:
    """Render a table: a row for each method and terms, means over seeds with 95 % intervals.

    Rows that were not run are there too, open. Smoke runs are left out, for they measure nothing.
    """
    table = read_table(name)
    rows = ["| " + " | ".join(HEAD) + " |", "| --- " * len(HEAD) + "|"]
    for method, about in table.methods.items():
        found = [line for line in lines if line["method"] == method and line["size"] != "smoke"]
        for terms in ("published", "equal"):
            some = last_of_each_seed([line for line in found if line["terms"] == terms])
            if some:
                rows.append(_row(method if terms == "published" else f"{method}, equal FLOPs", about, some))
        if not found:
            rows.append(f"| {method} | {_published(about.published)} |" + " open |" + " |" * (len(HEAD) - 3))
    return "\n".join([f"### {table.title}", "", *rows])


def _row(name: str, about: Any, lines: list[dict[str, Any]]) -> str:
    accuracies = [line["accuracy"] for line in lines]
    before = [line["before"] for line in lines if line["before"] is not None]
    flops = mean(line["training_flops"] for line in lines)
    cells = (
        name,
        _published(about.published),
        figure([line["base"] for line in lines]),
        figure(before) if before else "",
        f"**{figure(accuracies)}**",
        _left(lines),
        _file([line["bytes"] for line in lines]),
        ", ".join(str(line["seed"]) for line in lines),
        f"{flops / 1e12:.1f} TFLOP",
        _held(about, mean(accuracies), mean(line["ratio"] for line in lines)),
    )
    return "| " + " | ".join(cells) + " |"


def _left(lines: list[dict[str, Any]]) -> str:
    """How many times fewer weights there are, or which share of the MACs where whole channels went."""
    if not lines[0]["density"]:
        return f"{100 * mean(line['macs_share'] for line in lines):.1f} % of the MACs"
    return f"{mean(line['ratio'] for line in lines):.1f}x"


def last_of_each_seed(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The last line of each seed, in the order of the seeds."""
    return [line for _, line in sorted({line["seed"]: line for line in lines}.items())]


def figure(values: Sequence[float]) -> str:
    """A mean, and half of its 95 % interval where there are several values."""
    half = interval(values)
    return f"{mean(values):.2f}" + (f" ± {half:.2f}" if half is not None else "")


def _file(sizes: Sequence[int | None]) -> str:
    known = [size for size in sizes if size is not None]
    return f"{mean(known) / 1000:.1f} kB" if known else "dense"


def _published(said: Published | None) -> str:
    if said is None:
        return "–"
    base = f"{said.base:.2f} → " if said.base is not None else ""
    return f"{base}{said.accuracy:.2f}" + (f" at {said.ratio:g}x" if said.ratio is not None else "")


def _held(about: Any, accuracy: float, ratio: float) -> str:
    """Hold an accuracy to the published one; it says nothing where fewer weights went than there."""
    if about.published is None or about.within is None:
        return ""
    off, wanted = accuracy - about.published.accuracy, about.published.ratio
    if wanted is not None and ratio < 0.97 * wanted:
        return f"no: {ratio:.1f}x is not {wanted:g}x, {off:+.2f}"
    return f"{'yes' if abs(off) <= about.within else 'no'}, {off:+.2f} (± {about.within:g})"


def plots(name: str, lines: Sequence[dict[str, Any]], folder: Path) -> list[Path]:
    """Draw density per layer of each method, and of GSM what came back in each epoch and the approximation's error."""
    import matplotlib as mpl

    mpl.use("Agg")
    some = [line for line in lines if line["size"] != "smoke" and line["terms"] == "published" and line["seed"] == 0]
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    dense = [line for line in some if line["density"]]
    if dense:
        paths.append(_density(dense, folder / f"{name}-density.png"))
    back = [line for line in some if "reactivated" in line["details"]]
    if back:
        paths += [_reactivated(back, folder / f"{name}-reactivated.png")]
        paths += [_approximation(back, folder / f"{name}-approximation.png")]
    return paths


def _density(lines: Sequence[dict[str, Any]], path: Path) -> Path:
    """Draw the share of each layer's weights that stays, a marker for each method."""
    from matplotlib import pyplot

    layers = list(lines[0]["density"])
    drawing, axes = pyplot.subplots(figsize=(7, 3.2))
    for k, line in enumerate(lines):
        places = [i + (k + 1) / (len(lines) + 1) for i in range(len(layers))]
        shares = [100 * line["density"].get(layer, 1.0) for layer in layers]
        marker = MARKERS[k % len(MARKERS)]
        axes.plot(places, shares, marker, color="black", fillstyle="none", label=line["method"])
    for border in range(1, len(layers)):
        axes.axvline(border, color="0.8", linewidth=0.8)
    axes.set(yscale="log", ylabel="weights that stay, %", xticks=[i + 0.5 for i in range(len(layers))])
    axes.set_xticklabels(layers, rotation=0 if len(layers) < 6 else 90)
    axes.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1, 1))
    return _saved(drawing, path)


def _reactivated(lines: Sequence[dict[str, Any]], path: Path) -> Path:
    from matplotlib import pyplot

    drawing, axes = pyplot.subplots(figsize=(7, 2.6))
    for k, line in enumerate(lines):
        shares = [max(1e-4, 100 * share) for share in line["details"]["reactivated"]]
        style = STYLES[k % len(STYLES)]
        axes.plot(range(2, len(shares) + 2), shares, style, color="black", label=line["method"])
    axes.set(xlabel="epoch", ylabel="passive weights\nthat came back, %", yscale="log")
    axes.legend()
    return _saved(drawing, path)


def _approximation(lines: Sequence[dict[str, Any]], path: Path) -> Path:
    """Draw, layer by layer, how far the first-order estimate of the cut is from what the cut does to the loss."""
    from matplotlib import pyplot

    layers = list(lines[0]["details"]["approximation"])
    drawing, axes = pyplot.subplots(figsize=(7, 2.6))
    for k, line in enumerate(lines):
        costs = line["details"]["approximation"]
        axes.bar(
            [i + (k + 0.5) / (len(lines) + 1) for i in range(len(layers))],
            [costs[layer]["relative"] for layer in layers],
            1 / (len(lines) + 1),
            label=line["method"],
            color="white",
            edgecolor="black",
            hatch=HATCHES[k % len(HATCHES)],
        )
    axes.set(ylabel="relative error of\nthe approximation", xticks=[i + 0.5 for i in range(len(layers))])
    axes.set_xticklabels(layers, rotation=0 if len(layers) < 6 else 90)
    axes.legend()
    return _saved(drawing, path)


def _saved(drawing: Any, path: Path) -> Path:
    from matplotlib import pyplot

    drawing.savefig(path, dpi=150, bbox_inches="tight")
    pyplot.close(drawing)
    return path
