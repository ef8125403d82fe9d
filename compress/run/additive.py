"""A network's time as the sum of its layers', and the widths that keep most saliency within so much of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from compress.errors import PlanError
from compress.prune.allocation import Kept, Limits
from compress.prune.budget import Budget
from compress.prune.knapsack import REST, Steps, group_keys, options_of, within_steps
from compress.prune.units import Trace
from compress.run.probes import PlacedLayer
from deploy.latency.table import Entry

_TURNS, _HALVINGS = 4, 12
Widths = Mapping[str, tuple[int, int]]
"""Channels that each layer reads and makes, by its name."""


@dataclass(frozen=True)
class AdditiveModel:
    """What the layers of a network take together, at any widths.

    Attributes:
        layers: of the whole network, whose widths the table was measured along.
        entries: of the table, by the layer's name.
        trace: of the network that is cut now, the whole one or one that was cut before.
    """

    layers: tuple[PlacedLayer, ...]
    entries: Mapping[str, Entry]
    trace: Trace

    @cached_property
    def _axes(self) -> dict[str, tuple[npt.NDArray[np.int64] | None, npt.NDArray[np.int64] | None]]:
        """Units along both axes of each layer's weight; None where an axis is not a dimension of the trace."""
        found = {}
        for one in self.layers:
            reads, makes = (
                self.trace.slots.get((self.trace.tied.get(name, name), dim)) for name, dim in (one.reads, one.makes)
            )
            # A depthwise convolution reads what it makes.
            found[one.name] = (makes if one.layer.per_group else reads, makes)
        return found

    def widths(self, kept: Kept) -> dict[str, tuple[int, int]]:
        """Return the widths of each layer when only the units in ``kept`` stay."""
        found = {}
        for one in self.layers:
            reads, makes = self._axes[one.name]
            made = one.dense[1] if makes is None else int(kept[makes].sum())
            if one.layer.per_group:
                read = max(1, round(one.dense[0] * made / one.dense[1]))
            else:
                read = one.dense[0] if reads is None else int(kept[reads].sum())
            found[one.name] = (read, made)
        return found

    def ms(self, kept: Kept) -> float:
        """Return the sum of the layers' times; raise DeployError where the table lacks one."""
        widths = self.widths(kept)
        return sum(self._of(one, *widths[one.name]) for one in self.layers)

    def _of(self, one: PlacedLayer, reads: int, makes: int) -> float:
        return self.entries[one.name].ms(max(reads, 1), max(makes, 1), one.dense)

    @cached_property
    def _touched(self) -> list[list[tuple[PlacedLayer, float, float]]]:
        """For each group the layers that it is in, and how many places of each axis one of its units takes."""
        found = []
        for group in self.trace.groups:
            mine = np.zeros(self.trace.units, dtype=bool)
            mine[group.units] = True
            own = []
            for one in self.layers:
                shares = [
                    0.0 if axis is None else float(mine[axis].sum()) / len(group.units) for axis in self._axes[one.name]
                ]
                if any(shares):
                    own.append((one, shares[0], shares[1]))
            found.append(own)
        return found

    def candidates(self, place: int) -> tuple[int, ...]:
        """Return the widths of a group at which some axis that it fills was measured, and its whole width."""
        size = len(self.trace.groups[place].units)
        found = {size}
        for one, reads, makes in self._touched[place]:
            points = self.entries[one.name].points
            found |= {round(p.inputs / reads) for p in points if reads and p.inputs % reads == 0}
            found |= {round(p.outputs / makes) for p in points if makes and p.outputs % makes == 0}
        return tuple(sorted(width for width in found if 1 <= width <= size))

    def steps(self, kept: Kept) -> Steps:
        """Return what each group takes at each of its widths while the others are as ``kept`` says.

        A layer between two groups counts in both, so the steps' sum is no time; what they are good for is how time
        falls from step to step.
        """
        reference = self.widths(kept)
        found: dict[str, list[tuple[int, float]]] = {REST: []}
        for place, key in enumerate(group_keys(self.trace)):
            now = int(kept[self.trace.groups[place].units].sum())
            found[key] = []
            for width in self.candidates(place):
                total = 0.0
                for one, reads, makes in self._touched[place]:
                    read, made = reference[one.name]
                    if one.layer.per_group:
                        made += round(makes * (width - now))
                        read = max(1, round(one.dense[0] * made / one.dense[1]))
                    else:
                        read, made = read + round(reads * (width - now)), made + round(makes * (width - now))
                    total += self._of(one, read, made)
                found[key].append((width, total))
        return found

    def narrowest(self, scores: npt.NDArray[np.float64], limits: Limits) -> Kept:
        """Return what stays when every group is as narrow as is worth having."""
        kept = np.ones(self.trace.units, dtype=bool)
        for _ in range(2):
            options = options_of(self.trace, scores, self.steps(kept), limits)
            kept = np.ones(self.trace.units, dtype=bool)
            for group, own in zip(self.trace.groups, options, strict=True):
                ranked = group.units[np.argsort(-scores[group.units], kind="stable")]
                kept[ranked[own[0].width :]] = False
        return kept

    def allocate(
        self, scores: npt.NDArray[np.float64], budget: Budget, target: float, limits: Limits
    ) -> tuple[Kept, Budget, Steps]:
        """Find the widths that keep most saliency while the layers take no more than ``target`` together.

        The knapsack is given what each group takes with the others as they were found last; its limit is halved in
        on until the true sum meets the target, a few times over.

        Args:
            scores: one per unit.
            budget: what else is bounded.
            target: milliseconds.
            limits: the least that stays.

        Returns:
            What stays; and the budget and the steps by which ``compress.prune.plan`` finds the same.

        Raises:
            PlanError: the target, or another bound, cannot be met.
        """
        kept = np.ones(self.trace.units, dtype=bool)
        if self.ms(kept) <= target and not budget.bounds:
            return kept, budget.model_copy(update={"latency": 1.0}), self.steps(kept)
        narrow = self.narrowest(scores, limits)
        if (least := self.ms(narrow)) > target:
            raise PlanError(
                f"The layers take {least:.3g} ms at their narrowest, but only {target:.3g} ms are left for them."
            )
        best: tuple[float, Kept, Budget, Steps] | None = None
        for _ in range(_TURNS):
            steps = self.steps(kept)
            options = options_of(self.trace, scores, steps, limits)
            low, high = sum(own[0].ms for own in options), sum(own[-1].ms for own in options)
            found: tuple[Kept, Budget] | None = None
            for _ in range(_HALVINGS):
                middle = low if found is None and high - low < 1e-4 * high else (low + high) / 2
                asked = budget.model_copy(update={"latency": f"{middle + 1e-6:.6f} ms"})
                tried = within_steps(self.trace, scores, asked, steps, limits)
                if self.ms(tried) <= target:
                    low, found = middle, (tried, asked)
                else:
                    high = middle
            if found is None:
                break
            kept = found[0]
            worth = float(scores[kept].sum())
            if best is None or worth > best[0]:
                best = (worth, kept, found[1], steps)
        if best is None:
            raise PlanError(f"No widths were found at which the layers take {target:.3g} ms; ask for more.")
        return best[1:]
