"""Cells of the study: a network cut by a criterion and an allocation, judged before and after reconstruction."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.criteria.subjects import Split, Subject, answers_right, subject
from compress import prune
from compress.errors import PlanError
from compress.prune import CRITERIA
from compress.prune.allocation import Scope
from compress.prune.criteria import Normalization
from deploy.environment import machine_info

RESULTS = Path(__file__).parent / "results.jsonl"


@dataclass(frozen=True)
class Cell:
    """What is done once.

    Args:
        subject: a name as `subjects.subject` takes it.
        criterion: a name in `CRITERIA`.
        scope: how channels are ranked.
        macs: share of the MACs that stays.
        split: what the accuracy is measured on.
        seed: of calibration images and of all that is drawn.
        images: calibration images.
        rounds: cuts, each reconstructed before the next is scored.
        max_ratio: the largest share of a group that goes.
        normalize: what makes scores comparable from group to group; None for the criterion's own.
    """

    subject: str
    criterion: str
    scope: Scope = "global"
    macs: float = 0.5
    split: Split = "selection"
    seed: int = 0
    images: int = 256
    rounds: int = 1
    max_ratio: float = 0.95
    normalize: Normalization | None = None

    @property
    def key(self) -> str:
        """What tells the cell from all others; of a run's folder the name alone."""
        settings = asdict(self) | {"subject": Path(self.subject).name}
        if self.normalize is None:
            # As before there was a choice, so that lines stay known.
            del settings["normalize"]
        return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]


def run(cells: list[Cell], file: Path, say: Callable[[str], None]) -> None:
    """Run the cells that the file has no line of, and append a line for each.

    Raises:
        NiwakiError: a subject is not there. A criterion that refuses a network is a line that says so.
    """
    known = {line["key"] for line in read_lines(file)}
    for cell in cells:
        if cell.key in known:
            continue
        line = _line(cell)
        with file.open("a", encoding="utf-8") as out:
            out.write(json.dumps(line) + "\n")
        known.add(cell.key)
        say(f"{Path(cell.subject).name} {cell.criterion} {cell.scope} seed {cell.seed}: {_shown(line)}")


def read_lines(file: Path) -> list[dict[str, Any]]:
    """Return the lines that are there."""
    if not file.is_file():
        return []
    return [json.loads(text) for text in file.read_text(encoding="utf-8").splitlines() if text]


def _shown(line: dict[str, Any]) -> str:
    if "refused" in line:
        return str(line["refused"])
    dense, cut, solved = (100 * line[name]["right"] / line["judged"] for name in ("dense", "cut", "solved"))
    return f"dense {dense:.1f}, cut {cut:.1f}, solved {solved:.1f} %; {line['seconds']:.0f} s"


@cache
def _subject(name: str) -> Subject:
    return subject(name)


@cache
def _dense(name: str, split: Split) -> Tensor:
    own = _subject(name)
    return answers_right(own.network, own.judged(split))


def _line(cell: Cell) -> dict[str, Any]:
    asked = asdict(cell) | {"subject": Path(cell.subject).name, "key": cell.key}
    about = {
        "done": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpu": machine_info()["cpu"],
        "torch": torch.__version__,
    }
    began, spent = time.perf_counter(), time.process_time()
    try:
        found = _measured(cell)
    except PlanError as error:
        return asked | about | {"refused": str(error)}
    seconds = {"seconds": time.perf_counter() - began, "cpu_seconds": time.process_time() - spent}
    return asked | about | found | {name: round(value, 1) for name, value in seconds.items()}


def _measured(cell: Cell) -> dict[str, Any]:
    own, work = _subject(cell.subject), _Cutting(cell)
    dense = _dense(cell.subject, cell.split)
    for cut, solved in work.steps(own):
        last = cut, solved
    right = [answers_right(network, own.judged(cell.split)) for network in last]
    return {
        "judged": len(dense),
        "dense": {"right": int(dense.sum())},
        **{name: _against(dense, found) for name, found in zip(("cut", "solved"), right, strict=True)},
        **work.said,
    }


def _against(dense: Tensor, found: Tensor) -> dict[str, int]:
    """Count right answers, and those that only one of the two networks gives."""
    return {
        "right": int(found.sum()),
        "lost": int((dense & ~found).sum()),
        "won": int((found & ~dense).sum()),
    }


@dataclass
class _Cutting:
    """One cell's cuts, round by round, and what is said of the last of them."""

    cell: Cell
    said: dict[str, Any] = field(default_factory=dict)

    def steps(self, own: Subject) -> Iterator[tuple[nn.Module, nn.Module]]:
        """Yield each round's network as cut and as solved."""
        cell, network = self.cell, own.network
        batches = list(own.calibration(cell.images, cell.seed))
        images = [images for images, _ in batches]
        whole = 0.0
        for turn in range(1, cell.rounds + 1):
            trace = prune.trace(network, images[0][:2])
            now = trace.macs(np.ones(trace.units, dtype=bool))
            whole = whole or now
            started = time.process_time()
            # No label is looked at.
            data = None if CRITERIA[cell.criterion].needs == "weights" else images
            scores = prune.score(trace, network, cell.criterion, data=data, seed=cell.seed, normalize=cell.normalize)
            scored = time.process_time()
            left = 1 - (1 - cell.macs) * turn / cell.rounds
            plan = prune.plan(
                trace,
                scores,
                budget=prune.Budget(macs=min(1.0, left * whole / now)),
                scope=cell.scope,
                round_to=own.round_to,
                max_ratio=cell.max_ratio,
            )
            cut = prune.apply(network, plan)
            if turn == 1:
                prune.check(network, plan, images[0][:4])
            solved, report = prune.reconstruct(network, cut, plan, images, seed=cell.seed)
            self.said = {
                "measure": report.measure,
                "before": report.before,
                "after": report.after,
                "layers": len(report.layers),
                "kept": sum(layer.kept for layer in report.layers),
                "share": plan.costs["macs_after"] / whole,
                "widths": [group.after for group in plan.groups],
                "score_seconds": round(scored - started, 1),
                "solve_seconds": round(time.process_time() - scored, 1),
            }
            yield cut, solved
            network = solved
