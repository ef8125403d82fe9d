"""The three stages of the study: every criterion, the best with every allocation, the best on the test."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, get_args

from benchmarks.criteria.cells import Cell
from compress.prune import CRITERIA
from compress.prune.allocation import Scope

Stage = Literal["criteria", "allocation", "test"]

BASELINES = ("l1", "random")
HALF = 0.5
"""The share of the MACs by which criteria are ranked."""

FINALISTS, RUNNERS, SEEDS = 3, 4, (0, 1, 2)


def cells(stage: Stage, subject: str, lines: Iterable[Mapping[str, Any]], images: int) -> list[Cell]:
    """Return the cells of a stage; the later two follow what the lines of the one before say.

    Args:
        stage: `criteria`: each, ranked globally; `allocation`: the best four, ranked in each way; `test`: the best
            three combinations and the baselines with three seeds, on the test.
        subject: what is cut.
        lines: what is known.
        images: calibration images.
    """
    if stage == "criteria":
        return [Cell(subject, name, images=images) for name in CRITERIA]
    best = ranking(lines, subject)
    if stage == "allocation":
        names = list(dict.fromkeys(line["criterion"] for line in best))[:RUNNERS]
        return [Cell(subject, name, scope, images=images) for name in names for scope in get_args(Scope)]
    pairs: dict[str, Scope] = {}
    for line in best:
        # One combination of each criterion, so that three are compared.
        if line["criterion"] not in BASELINES:
            pairs.setdefault(line["criterion"], line["scope"])
    chosen = [*list(pairs.items())[:FINALISTS], *((name, get_args(Scope)[0]) for name in BASELINES)]
    return [Cell(subject, c, s, split="test", seed=seed, images=images) for c, s in chosen for seed in SEEDS]


def ranking(lines: Iterable[Mapping[str, Any]], subject: str) -> list[Mapping[str, Any]]:
    """Sort a subject's lines of the selection at half of the MACs, the most right answers once solved first."""
    name = Path(subject).name
    own = [
        line
        for line in lines
        if line["subject"] == name
        and line["split"] == "selection"
        and line["rounds"] == 1
        and line["macs"] == HALF
        and "refused" not in line
    ]
    return sorted(own, key=lambda line: (-line["solved"]["right"], line["after"]))
