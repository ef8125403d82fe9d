"""How well an engine does on the run's own data."""

from __future__ import annotations

from pathlib import Path

import torch

import deploy
from compress.run.variants import lowered_of
from compress.run.workspace import Workspace
from compress.train import TASKS
from compress.train.ranks import measured_alone
from deploy.engines import load_engine

BATCH = 64
"""Images of one run of an engine."""


def metrics_of(work: Workspace, engine: deploy.Engine, split: str, like: str = "student") -> dict[str, float]:
    """Measure the task's metrics of an engine on one split, through the bundle's own postprocessing.

    Args:
        work: the run.
        engine: of a network of the run.
        split: its name.
        like: a saved network whose outputs are read as the engine's are.
    """
    task, network = TASKS[work.target.task], work.load(like)
    postprocessing = lowered_of(work, network).postprocessing
    metrics = task.metrics(work.target.classes)
    measured_alone(metrics)
    (name,) = tuple(engine.inputs)
    for batch in work.target.splits[split].batches(BATCH):
        outputs = engine.run({name: batch.images.numpy()})
        metrics.update(task.read(outputs, postprocessing), batch.targets)
    return metrics.compute()


def accuracy_of(work: Workspace, engine: deploy.Engine, split: str) -> float:
    """Measure the metric that the task is selected by, of an engine of the student on one split."""
    return metrics_of(work, engine, split)[TASKS[work.target.task].selects]


def accuracy_of_file(work: Workspace, path: Path, split: str, like: str = "student") -> float:
    """Measure the same of a file, with as many threads as torch has; see ``metrics_of``."""
    with load_engine(path, threads=torch.get_num_threads()) as engine:
        return metrics_of(work, engine, split, like)[TASKS[work.target.task].selects]
