"""Sensitivity of the study's networks: each group cut alone, and how well every criterion foresaw what it cost."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

from torch import Tensor

from benchmarks.criteria.subjects import subject
from compress import prune
from compress.files import write_text
from compress.prune import CRITERIA, Sensitivity
from deploy.report.sensitivity import curves_file

HERE = Path(__file__).parent


def measure(name: str, images: int, folder: Path, say: Callable[[str], None]) -> Path:
    """Cut each group of a subject to 75, 50 and 25 % of its channels by L1, all else whole; nothing is trained.

    Loss and accuracy are those of the images to choose by; criteria score `images` calibration images without labels.

    Args:
        name: a subject.
        images: calibration images.
        folder: what ``sensitivity-NAME.json`` and ``.svg`` are written into.
        say: told of each group and criterion.

    Returns:
        the JSON file.
    """
    own = subject(name)
    given = [batch for batch, _ in own.calibration(images, 0)]
    trace = prune.trace(own.network, given[0][:2])

    @cache
    def scored(criterion: str) -> Tensor:
        data = None if CRITERIA[criterion].needs == "weights" else given
        return prune.score(trace, own.network, criterion, data=data)

    def advance(done: int, total: int, what: str) -> None:
        say(f"{name}: {done} of {total}, {what}")

    measured = prune.measure_sensitivity(
        trace, own.network, scored("l1"), own.judged("selection"), ratios=(0.25, 0.5, 0.75), advance=advance
    )
    known = prune.correlations(measured, scored, advance=advance)
    found = measured.model_copy(update={"criterion": "l1", "correlations": known})
    file = folder / f"sensitivity-{Path(name).name}.json"
    write_text(file, found.model_dump_json(indent=1) + "\n")
    write_text(file.with_suffix(".svg"), curves_file(found.model_dump()))
    return file


def table(folder: Path = HERE) -> str:
    """Return the rank correlations of every measured subject, in Markdown; the best first."""
    found = {
        file.stem.removeprefix("sensitivity-"): Sensitivity.model_validate_json(file.read_text(encoding="utf-8"))
        for file in sorted(folder.glob("sensitivity-*.json"))
    }
    if not found:
        return ""
    names = sorted(CRITERIA, key=lambda name: -sum(one.correlations.get(name) or -1 for one in found.values()))
    rows = [[name, *(_shown(one.correlations.get(name)) for one in found.values())] for name in names]
    head = [["criterion", *found], ["---", *["---:"] * len(found)]]
    lines = ["| " + " | ".join(row) + " |" for row in (*head, *rows)]
    return "\n".join(["**Rank correlation with the rise of the loss when one group is cut alone**:", "", *lines])


def _shown(value: float | None) -> str:
    return "" if value is None else f"{value:+.2f}"
