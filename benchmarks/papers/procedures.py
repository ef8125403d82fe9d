"""What each row of a table does with a trained network: one function a method, told in the order it happens."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.papers.desk import Desk, Schedule
from compress.sparse.gsm import GSM, active, parameters_by_name
from compress.sparse.magnitude import largest
from compress.sparse.masks import Masks, weights_of
from compress.sparse.measures import Reactivation, approximation, readiness


@dataclass
class Outcome:
    """A sparse network and what was seen on the way.

    Attributes:
        model: obeys `masks`.
        masks: what stayed.
        before: accuracy before the cut, where the cut is the last thing that happens.
        details: more figures, plain data.
    """

    model: nn.Module
    masks: Masks
    before: float | None
    details: dict[str, Any]


@dataclass
class Job:
    """What a procedure works with.

    Attributes:
        desk: trains and measures.
        base: the trained dense network; copied before it is changed.
        initial: the network as it was drawn, before any training.
        schedule: of the method, its epochs already scaled.
        options: the method's numbers.
    """

    desk: Desk
    base: nn.Module
    initial: nn.Module
    schedule: Schedule
    options: dict[str, Any]

    def keep(self) -> int:
        """Q of a ratio."""
        return round(sum(p.numel() for p in weights_of(self.base).values()) / float(self.options["ratio"]))


def gsm(job: Job) -> Outcome:
    """Global sparse momentum from the trained network; the cut is the end, nothing is trained after it."""
    model, keep, back = copy.deepcopy(job.base), job.keep(), Reactivation()
    optimizer = _gsm_optimizer(job, model, keep)
    job.desk.train(model, job.schedule, optimizer=optimizer, after_epoch=lambda _: back.look(active(optimizer)))
    before = job.desk.accuracy(model)
    ready = readiness(parameters_by_name(model).values(), keep)
    masks = largest(model, keep)
    costs = approximation(model, masks, lambda network: _train_loss(job, network))
    masks.apply_(model)
    details = {
        "survivors": ready.survivors,
        "gap": ready.gap,
        "energy": ready.energy,
        "reactivated": back.shares,
        "approximation": {name: vars(cost) for name, cost in costs.items()},
    }
    return Outcome(model, masks, before, details)


def _gsm_optimizer(job: Job, model: nn.Module, keep: int) -> GSM:
    schedule = job.schedule
    return GSM(model.named_parameters(), schedule.steps[0][0], keep, schedule.momentum, schedule.weight_decay)


def _train_loss(job: Job, model: nn.Module) -> torch.Tensor:
    data = job.desk.data
    return F.cross_entropy(model(data.train_images[:2048]), data.train_labels[:2048])


PROCEDURES: dict[str, Callable[[Job], Outcome]] = {"gsm": gsm}
"""Name in the YAML -> function."""
