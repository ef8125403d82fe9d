"""Curves of sensitivity: what was measured as each group alone was cut, as plain data."""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from compress.errors import PlanError
from compress.prune.units import Trace
from compress.validation import explain


class Cell(BaseModel):
    """One group cut to one ratio, all else whole.

    Args:
        ratio: the share of the group's channels that is gone.
        units: which units those are.
        loss: mean loss of an image.
        accuracy: the share of images whose highest score is their label's, or the metric of another task; None where
            there are no labels.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    ratio: float = Field(gt=0, lt=1)
    units: tuple[int, ...]
    loss: float
    accuracy: float | None


class Curve(BaseModel):
    """One group's cells, in the order of their ratios."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    group: str
    channels: int
    cells: tuple[Cell, ...] = Field(min_length=1)

    def rises(self, loss: float) -> npt.NDArray[np.float64]:
        """By how much the loss rises above ``loss`` when 1, 2, ... of the group's channels go, float64 (channels,).

        Between measured ratios the line is straight, beyond the last it goes on as steeply as on average before; a
        larger cut never costs less than a smaller one.
        """
        shares = [0.0, *(cell.ratio for cell in self.cells), 1.0]
        rises = np.maximum.accumulate([0.0, *(cell.loss - loss for cell in self.cells)])
        last = rises[-1] / shares[-2]
        return np.interp(np.arange(1, self.channels + 1) / self.channels, shares, [*rises, last])


class Sensitivity(BaseModel):
    """What became of loss and accuracy as each group alone was cut.

    Args:
        loss, accuracy: of the whole network.
        curves: one for each group of the trace, in its order.
        images: how many it was measured on.
        metric: what accuracy is: ``accuracy``, ``mAP``, ``mIoU``.
        criterion: what chose the channels that went first.
        correlations: criterion -> Spearman's correlation of what it says of the cuts with the rise of the loss; None
            where it cannot judge this network or its scores do not vary.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    format: Literal["niwaki-sensitivity-1"] = "niwaki-sensitivity-1"
    loss: float
    accuracy: float | None
    curves: tuple[Curve, ...]
    images: int
    metric: str = "accuracy"
    criterion: str = ""
    correlations: dict[str, float | None] = {}

    @classmethod
    def from_json(cls, text: str | bytes) -> Sensitivity:
        """Read what ``model_dump_json`` wrote; raise PlanError with one sentence when it is something else."""
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            raise PlanError(f"Not a measured sensitivity: {explain(error)}; make it with niwaki sensitivity.") from None

    def rises(self, trace: Trace) -> list[npt.NDArray[np.float64]]:
        """For each group of the trace by how much the loss rises when 1, 2, ... of its channels go.

        Raises:
            PlanError: a group was not measured, or had another size.
        """
        known: dict[str, list[Curve]] = {}
        for curve in self.curves:
            known.setdefault(curve.group, []).append(curve)
        found = []
        for group in trace.groups:
            size = len(group.units)
            if size == 1:
                # It cannot go, and nothing was measured.
                found.append(np.full(1, np.inf))
                continue
            fitting = [curve for curve in known.get(group.name, []) if curve.channels == size]
            if not fitting:
                raise PlanError(
                    f"The sensitivity has no curve of the group '{group.name}' with {size} channels; measure this "
                    "network's own by niwaki sensitivity."
                )
            known[group.name].remove(fitting[0])
            found.append(fitting[0].rises(self.loss))
        return found
