"""One training loop on Lightning Fabric, for every stage and task that trains."""

from compress.train.fabric import make_fabric
from compress.train.loop import Fit, Trainable, evaluate, fit
from compress.train.tasks import TASKS, Task

__all__ = ["TASKS", "Fit", "Task", "Trainable", "evaluate", "fit", "make_fabric"]
