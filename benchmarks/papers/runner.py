"""Runs the cells of a table, a method and a seed each, and appends a JSON line for each that is done."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.papers.cifar import published, read_cifar10
from benchmarks.papers.desk import Desk, OutOfTimeError, Schedule
from benchmarks.papers.mnist import Digits, read_mnist
from benchmarks.papers.procedures import PROCEDURES, Job, Outcome
from benchmarks.papers.settings import HERE, Method, PaperTable, Size, Training, digest, read_table
from compress.cost import macs, parameters
from compress.errors import RecipeError
from compress.models.factory import build
from compress.sparse.masks import bare
from compress.sparse.storage import sparse_bytes
from deploy.environment import machine_info

_DATA: dict[str, Callable[..., Digits]] = {"mnist": read_mnist, "cifar10": read_cifar10}
RESULTS = HERE / "results"
WORK = Path("runs/papers")


@dataclass(frozen=True)
class Asked:
    """What the command line asks for.

    Attributes:
        table: name of a YAML file.
        size: ``smoke``, ``small`` or ``full``.
        methods: rows; none for all.
        seeds: none for the size's.
        terms: ``published`` epochs, or ``equal`` training FLOPs for every row.
        minutes: end of the slice; none for no end.
        results: folder of the JSON lines.
        work: folder of phases and checkpoints.
    """

    table: str
    size: str
    methods: tuple[str, ...] = ()
    seeds: tuple[int, ...] = ()
    terms: str = "published"
    minutes: float | None = None
    results: Path = RESULTS
    work: Path = WORK


def run(asked: Asked, say: Callable[[str], None] = print, data: Digits | None = None) -> bool:
    """Run what is not done yet; returns whether all is.

    Raises:
        RecipeError: no such table, size or method.
    """
    table = read_table(asked.table)
    if asked.size not in table.sizes:
        raise RecipeError(f"The table {asked.table} has no size '{asked.size}'; it has {', '.join(table.sizes)}.")
    unknown = [m for m in asked.methods if m not in table.methods]
    if unknown:
        raise RecipeError(f"The table {asked.table} has no row '{unknown[0]}'; it has {', '.join(table.methods)}.")
    size = table.sizes[asked.size]  # type: ignore[index]
    deadline = time.monotonic() + 60 * asked.minutes if asked.minutes is not None else math.inf
    file = asked.results / f"{asked.table}.jsonl"
    done = {(line["method"], line["seed"], line["settings"]) for line in read_lines(file)}
    data = (data or _DATA[table.data](images=size.images)).normalised(table.mean, table.std)
    cells = [(m, s) for s in asked.seeds or size.seeds for m in asked.methods or tuple(table.methods)]
    for name, seed in cells:
        cell = Cell(table, asked, size, name, seed)
        if (name, seed, cell.key) in done:
            say(f"{name} seed {seed}: done before")
            continue
        try:
            line = cell.work(data, deadline, say)
        except OutOfTimeError:
            say(f"{name} seed {seed}: the slice is over; the same command goes on from its checkpoint")
            return False
        append(file, line)
        say(f"{name} seed {seed}: {line['accuracy']:.2f} % at {line['ratio']:.1f}x (dense {line['base']:.2f} %)")
    return True


@dataclass(frozen=True)
class Cell:
    """A method with a seed."""

    table: PaperTable
    asked: Asked
    size: Size
    name: str
    seed: int

    @property
    def method(self) -> Method:
        return self.table.methods[self.name]

    @property
    def key(self) -> str:
        """Differs when anything differs that the result hangs on."""
        method = self.method.model_dump(mode="json", exclude={"published", "within"}, exclude_unset=True)
        of = self.method.options.get("of")
        before = [replace(self, name=of).key] if of is not None else []
        return digest([self._ground(), method, self.asked.terms, self.table.equal_epochs, *before])

    def work(self, data: Digits, deadline: float, say: Callable[[str], None]) -> dict[str, Any]:
        """Do the cell from where it stands; a line of the results."""
        base, initial, base_desk = self._base(data, deadline, say)
        dense = base_desk.accuracy(base)

        def outcome_of(name: str) -> tuple[Outcome, Desk]:
            cell = replace(self, name=name)
            desk = Desk(cell.folder, data, self.seed, deadline, say, self.table.flip)
            extra: list[Desk] = []

            def other(of: str) -> Outcome:
                found, spent = outcome_of(of)
                extra.append(spent)
                return found

            torch.manual_seed(self.seed)
            whole = cell._scheduled(self.table.base, self.size.epochs)
            job = Job(desk, base, initial, cell.schedule(), cell.method.options, other, whole, self.size.epochs)
            outcome = PROCEDURES[cell.method.procedure](job)
            desk.flops += sum(spent.flops for spent in extra)
            desk.seconds += sum(spent.seconds for spent in extra)
            return outcome, desk

        outcome, desk = outcome_of(self.name)
        example, masks = data.train_images[:2], outcome.masks
        broken = masks.broken(outcome.model) if masks is not None else []
        if broken and not outcome.dense:
            raise AssertionError(f"{self.name}: {broken[0]} has weights where its mask says zero")
        return {
            "table": self.asked.table,
            "size": self.asked.size,
            "terms": self.asked.terms,
            "method": self.name,
            "seed": self.seed,
            "settings": self.key,
            "base": dense,
            "before": outcome.before,
            "accuracy": desk.accuracy(outcome.model),
            **_weights(outcome, base),
            "macs_share": macs(outcome.model, example) / macs(base, example),
            "training_flops": desk.flops,
            "base_training_flops": base_desk.flops,
            "seconds": round(desk.seconds, 1),
            "details": outcome.details,
            "environment": environment(),
        }

    def _base(self, data: Digits, deadline: float, say: Callable[[str], None]) -> tuple[nn.Module, nn.Module, Desk]:
        """The dense network of the seed, which all rows share, and how it was drawn."""
        torch.manual_seed(self.seed)
        model = build(self.table.network, self.table.arguments, 10)
        if self.table.weights is not None:
            return published(self.table.weights), model, Desk(self.asked.work, data, self.seed)
        initial = {n: t.clone() for n, t in model.state_dict().items()}
        folder = self.asked.work / f"{self.asked.table}-base-{self.seed}-{digest(self._ground())}"
        desk = Desk(folder, data, self.seed, deadline, say)
        desk.train(model, self._scheduled(self.table.base, self.size.epochs))
        drawn = build(self.table.network, self.table.arguments, 10)
        drawn.load_state_dict(initial)
        return bare(model), drawn, desk

    def _ground(self) -> list[Any]:
        base = self.table.base.model_dump(mode="json", exclude_unset=True)
        pixels = [self.table.mean, self.table.std, self.size.images]
        more = [self.table.arguments, self.table.weights, self.table.flip] if self.table.data != "mnist" else []
        return [self.table.network, self.table.batch_size, base, self.size.epochs, pixels, self.seed, *more]

    @property
    def folder(self) -> Path:
        """Of the cell's phases and checkpoint."""
        return self.asked.work / f"{self.asked.table}-{self.name}-{self.seed}-{self.key}"

    def schedule(self) -> Schedule:
        """The method's, with epochs for the size and the terms."""
        training, factor = self.method.train, self.size.epochs
        if self.asked.terms == "equal":
            own = self.method.phases * sum(count for _, count in training.steps)
            factor *= self.table.equal_epochs / own
        return self._scheduled(training, factor)

    def _scheduled(self, training: Training, factor: float) -> Schedule:
        steps = tuple((rate, max(1, round(count * factor))) for rate, count in training.steps)
        return Schedule(steps, training.momentum, training.weight_decay, training.nesterov, self.table.batch_size)


def _weights(outcome: Outcome, base: nn.Module) -> dict[str, Any]:
    """What is left of the weights; of a network whose channels went how many times fewer parameters."""
    masks = outcome.masks
    if masks is None:
        left = parameters(outcome.model)
        return {"ratio": parameters(base) / left, "nonzeros": left, "bytes": None, "density": {}}
    return {
        "ratio": 1.0 if outcome.dense else masks.ratio,
        "nonzeros": masks.total if outcome.dense else masks.nonzeros,
        "bytes": None if outcome.dense else sparse_bytes(outcome.model, masks),
        "density": masks.density(),
    }


def read_lines(file: Path) -> list[dict[str, Any]]:
    """The lines of a file of results; none when there is no file.

    Raises:
        RecipeError: a line is damaged.
    """
    lines = file.read_text("utf-8").splitlines() if file.is_file() else []
    try:
        return [json.loads(line) for line in lines]
    except ValueError as error:
        raise RecipeError(f"{file} has a damaged line ({error}); remove it, and its cell is run again.") from None


def append(file: Path, line: dict[str, Any]) -> None:
    """Add one line, whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a", encoding="utf-8") as out:
        out.write(json.dumps(line) + "\n")
        out.flush()
        os.fsync(out.fileno())


def environment() -> dict[str, Any]:
    """The machine, what it computes with, and when."""
    return {
        **machine_info(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "date": datetime.now(UTC).date().isoformat(),
    }
