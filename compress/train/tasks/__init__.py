"""What differs between classification, segmentation and detection in training: one dict by name."""

from __future__ import annotations

from compress.train.tasks.base import Task, TaskMetrics
from compress.train.tasks.classification import Classification
from compress.train.tasks.detection import Detection
from compress.train.tasks.segmentation import Segmentation

TASKS: dict[str, Task] = {task.name: task for task in (Classification(), Detection(), Segmentation())}

__all__ = ["TASKS", "Task", "TaskMetrics"]
