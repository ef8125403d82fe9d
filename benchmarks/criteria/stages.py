"""The stages of the study: every criterion, the best with every allocation, the best on the test; and norms."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, get_args

from benchmarks.criteria.cells import Cell
from compress.prune import CRITERIA
from compress.prune.allocation import Scope
from compress.prune.criteria import Normalization

Stage = Literal["criteria", "allocation", "test", "normalization"]

BASELINES = ("l1", "random")
DEFAULT: tuple[str, Scope] = ("kfac", "global")
"""Criterion and scope of a recipe that names none, on the test whatever was best."""

HALF = 0.5
"""The share of the MACs by which criteria are ranked."""

NORMED = ("l1", "mean_activation", "regression", "taylor", "taylor_gate", "fisher", "obd", "hutchinson", "kfac")
"""Two criteria of each need, and all that are in units of the loss."""

FINALISTS, RUNNERS, SEEDS = 3, 4, (0, 1, 2)


def cells(stage: Stage, subject: str, lines: Iterable[Mapping[str, Any]], images: int) -> list[Cell]:
    """Return the cells of a stage; the later two follow what the lines of the one before say.

    Args:
        stage: `criteria`: each, ranked globally; `allocation`: the best four, ranked in each way; `test`: the best
            three combinations, the default and the baselines with three seeds, on the test; `normalization`: those of
            `NORMED`, ranked globally, with scores as they are and divided in each way.
        subject: what is cut.
        lines: what is known.
        images: calibration images.
    """
    if stage == "criteria":
        return [Cell(subject, name, images=images) for name in CRITERIA]
    if stage == "normalization":
        ways = [(name, how) for name in NORMED for how in get_args(Normalization)]
        # A criterion's own way has the line of the first stage.
        other = {(name, how): None if how == CRITERIA[name].normalize else how for name, how in ways}
        return [Cell(subject, name, images=images, normalize=how) for (name, _), how in other.items()]
    best = ranking(lines, subject)
    if stage == "allocation":
        names = list(dict.fromkeys(line["criterion"] for line in best))[:RUNNERS]
        return [Cell(subject, name, scope, images=images) for name in names for scope in get_args(Scope)]
    known: dict[str, tuple[str, Scope, Normalization | None]] = {}
    for line in ranking(lines, subject, normalized=True):
        # One combination of each criterion, so that three are compared.
        if line["criterion"] not in BASELINES:
            known.setdefault(line["criterion"], (line["criterion"], line["scope"], line.get("normalize")))
    finalists = list(known.values())[:FINALISTS]
    chosen = dict.fromkeys([*finalists, (*DEFAULT, None), *((name, get_args(Scope)[0], None) for name in BASELINES)])
    return [
        Cell(subject, criterion, scope, split="test", seed=seed, images=images, normalize=how)
        for criterion, scope, how in chosen
        for seed in SEEDS
    ]


def ranking(lines: Iterable[Mapping[str, Any]], subject: str, normalized: bool = False) -> list[Mapping[str, Any]]:
    """Sort a subject's lines of the selection at half of the MACs, the most right answers once solved first.

    Args:
        lines: what is known.
        subject: what is cut.
        normalized: whether lines count whose scores were divided in another way than the criterion's own.
    """
    name = Path(subject).name
    own = [
        line
        for line in lines
        if line["subject"] == name
        and line["split"] == "selection"
        and line["rounds"] == 1
        and line["macs"] == HALF
        and (normalized or line.get("normalize") is None)
        and "refused" not in line
    ]
    return sorted(own, key=lambda line: (-line["solved"]["right"], line["after"]))
