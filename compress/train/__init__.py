"""One training loop on Lightning Fabric, for every stage that trains."""

from compress.train.loop import Fit, Trainable, evaluate, fit, make_fabric

__all__ = ["Fit", "Trainable", "evaluate", "fit", "make_fabric"]
