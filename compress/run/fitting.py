"""The loop that hits a latency: allocate, cut, write what ships, measure it beside dense, correct, and again."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from compress import prune
from compress.errors import PlanError
from compress.prune import Budget, Plan
from compress.prune.allocation import Kept, Limits, costs
from compress.prune.knapsack import Steps
from compress.prune.planning import plan_from_kept
from compress.prune.schedule import Schedule, left_after
from compress.run.additive import AdditiveModel
from compress.run.filling import Shipping
from compress.run.progress import Advance
from deploy.latency.profile import How, Job
from deploy.latency.table import Network

MOST_ROUNDS, AT_ONCE = 4, 3
"""How often networks are written and measured, and how many at most each time."""
WITHIN = 0.05
"""How far from the target, as a share of it, a network may be that ships."""
AGREE = 0.03
"""How far the two best processes that time a network may lie apart before more are started."""
_CLOSE = 0.02
_FAR = 0.25
_SECONDS_EACH = 1.0
_TOO_SLOW = 1e6


@dataclass(frozen=True)
class Target:
    """What a latency asks for: a share of the dense network's, or milliseconds; between rounds a part of the way.

    Attributes:
        share: of what the dense network takes; None where milliseconds are asked for.
        ms: see above.
        turn, rounds, schedule: which of several rounds this is, and how much of the way each goes.
    """

    share: float | None
    ms: float | None = None
    turn: int = 1
    rounds: int = 1
    schedule: Schedule = "linear"

    @classmethod
    def of(cls, budget: Budget, turn: int = 1, rounds: int = 1, schedule: Schedule = "linear") -> Target:
        """Return what a budget with a latency asks for, in one of several rounds."""
        if isinstance(budget.latency, str):
            return cls(None, budget.latency_limit(0.0), turn, rounds, schedule)
        return cls(budget.latency, None, turn, rounds, schedule)

    def share_of(self, dense_ms: float) -> float:
        """Return the target as a share of what the dense network takes."""
        whole = self.share if self.share is not None else (self.ms or 0.0) / dense_ms
        return left_after(self.turn, self.rounds, min(whole, 1.0), self.schedule)

    def __str__(self) -> str:
        return f"{self.share:g}" if self.share is not None else f"{self.ms:g} ms"

    def said(self, share: float, dense_ms: float) -> str:
        """Say a share as the user asked for it, rounded up."""
        if self.ms is not None:
            return f"{np.ceil(100 * share * dense_ms) / 100:g} ms"
        return f"{min(1.0, np.ceil(1000 * share) / 1000):g}"


@dataclass(frozen=True)
class Reading:
    """One network as written and timed beside the dense one, best times."""

    ms: float
    dense_ms: float
    load: tuple[float, ...] = ()

    @property
    def share(self) -> float:
        """Its time as a share of the dense network's."""
        return self.ms / self.dense_ms


@dataclass(frozen=True)
class Tried:
    """A network that was tried: what stays, the sum of its layers, its plan, its file, and its best times so far."""

    kept: Kept
    total: float
    plan: Plan
    path: Path
    reading: Reading = Reading(np.inf, np.inf)

    def miss(self, target: Target) -> float:
        """Return how far it is from the target, as a share of it; what is too slow to ship is further than all else."""
        over = self.reading.share / target.share_of(self.reading.dense_ms) - 1
        return abs(over) + (_TOO_SLOW if over > WITHIN else 0.0)


def _nearest(seen: Sequence[Tried], target: Target) -> Tried:
    """Return the network nearest to the target among those that are not slower than one that keeps all they keep."""

    def outdone(one: Tried) -> bool:
        return any(wider.reading.ms < one.reading.ms and not (one.kept & ~wider.kept).any() for wider in seen)

    return min((one for one in seen if not outdone(one)), key=lambda one: one.miss(target))


@dataclass(frozen=True)
class FittedCut:
    """A plan that meets a latency.

    Attributes:
        plan: what stays.
        reading: its times; a device's are predicted from its table.
        asked: the share that was asked for.
        additive_error: how far the sum of the layers was off before anything was corrected, as a share.
        networks: how many were written and measured; 0 where the times are predicted.
        rounds: how often that was done, several networks being measured at once.
    """

    plan: Plan
    reading: Reading
    asked: float
    additive_error: float
    networks: int
    rounds: int

    def sentence(self, seconds: float, where: str) -> str:
        """Say what was reached and how; ``seconds`` is what profiling took, ``where`` a precision and a runtime."""
        now = self.reading
        times = (
            f"{now.share:.3f} of the dense one's ({now.ms:.3g} of {now.dense_ms:.3g} ms), {self.asked:.3f} asked for"
        )
        if not self.networks:
            return (
                f"Latency of the cut network, {where}, as the device's table predicts: {times}; time the bundle there."
            )
        load = f", at a load of {max(now.load):.1f}" if now.load else ""
        under = 1 - now.share / self.asked
        load += f", {100 * under:.0f} % faster than asked for and nothing found nearer" if under > WITHIN else ""
        return (
            f"Measured latency of the cut network, {where}: {times}{load}; {self.networks} network(s) measured in "
            f"{self.rounds} round(s), the sum of the layers was off by {100 * self.additive_error:.1f} % at first, "
            f"profiling took {seconds:.0f} s."
        )


@dataclass(frozen=True)
class LatencyFit:
    """A network whose latency is to be met, and all that is needed for it.

    Attributes:
        dense: the whole network, that shares refer to.
        network: the one that is cut now: the whole one, or what earlier rounds left of it.
        model: the layers' times at any widths of ``network``.
        scores: one per unit of its trace.
        shipping: how it will run.
        limits: the least that stays of a group.
        advance: told of each round.
    """

    dense: nn.Module
    network: nn.Module
    model: AdditiveModel
    scores: npt.NDArray[np.float64]
    shipping: Shipping
    limits: Limits
    advance: Advance

    def fit(self, budget: Budget, target: Target) -> FittedCut:
        """Return the plan that keeps most saliency within the target, as measured.

        Raises:
            PlanError: the target lies below what can be reached; the sentence says what can, and how wide the
                network is then.
        """
        whole = np.ones(self.model.trace.units, dtype=bool)
        if self.shipping.table is not None:
            return self._predicted(budget, target, self.shipping.table.networks)
        with tempfile.TemporaryDirectory() as folder:
            dense = self.shipping.write(self.dense, Path(folder) / "dense.onnx")
            return self._measured(budget, target, Path(folder), dense, self.model.ms(whole))

    def _measured(self, budget: Budget, target: Target, folder: Path, dense: Path, dense_sum: float) -> FittedCut:
        """Correct the additive model by what whole networks take until one is within the target."""
        floor = self.model.ms(self.model.narrowest(self.scores, self.limits))
        whole = self._dense_sum(dense_sum)
        seen: list[Tried] = []
        share = target.share_of(1.0 if target.ms is None else self._dense_alone(dense))
        aims, error, between, turn = [share * whole], 0.0, False, 0
        while turn < MOST_ROUNDS:
            found = self._next(seen, [max(aim, floor * 1.0001) for aim in aims], share, budget)
            if between := not found:
                break  # no other network lies between the steps
            turn += 1
            new: list[Tried] = []
            for kept, asked, steps in found:
                plan = self._plan(kept, asked, steps)
                path = folder / f"cut-{len(seen) + len(new)}.onnx"
                path = self.shipping.write(prune.apply(self.network, plan), path)
                new.append(Tried(kept, self.model.ms(kept), plan, path))
            seen = self._timed_again(dense, seen, new, share)
            share = target.share_of(seen[-1].reading.dense_ms)
            error = abs(seen[0].total / whole / seen[0].reading.share - 1) if turn == 1 else error
            best = _nearest(seen, target)
            self.advance(turn, MOST_ROUNDS, f"latency x {best.reading.share:.3f}, {share:.3f} asked for")
            at_floor = any(one.total <= floor * 1.001 and one.reading.share > share for one in seen)
            if best.miss(target) <= _CLOSE or at_floor:
                break
            aims = self._aims(share, whole, seen)
        best = _nearest(seen, target)
        if best.miss(target) > (_TOO_SLOW - 1 if between else _FAR):
            raise PlanError(self._unreached(target, best, floor))
        return FittedCut(best.plan, best.reading, target.share_of(best.reading.dense_ms), error, len(seen), turn)

    def _aims(self, share: float, whole: float, seen: Sequence[Tried]) -> list[float]:
        """Return the sums of layers to aim at next: where the line says, and as far again by half beyond it."""
        aim = self._corrected(share, whole, [(one.total, one.reading.share) for one in seen])
        # A network that is too slow is not tried again: the step below it is taken.
        slow = [one.total for one in seen if one.reading.share > share * (1 + WITHIN)]
        aim = min([aim, *(0.999 * total for total in slow)])
        nearest = min(seen, key=lambda one: abs(one.reading.share - share))
        return [aim, aim + (aim - nearest.total) / 2]

    def _next(
        self, seen: Sequence[Tried], aims: Sequence[float], share: float, budget: Budget
    ) -> list[tuple[Kept, Budget, Steps]]:
        """Return the networks to measure next, none of which was seen: mixed ones as soon as the target is enclosed."""
        mixed = self._mixed(seen, share, budget)
        found: list[tuple[Kept, Budget, Steps]] = []
        totals = [one.total for one in seen]
        for aim in aims[:1] if mixed else aims:
            kept, asked, steps = self.model.allocate(self.scores, budget, aim, self.limits)
            if mixed:
                return [(one, asked, steps) for one in mixed]
            if (total := self.model.ms(kept)) and all(abs(total - other) > 1e-9 * total for other in totals):
                found.append((kept, asked, steps))
                totals.append(total)
        return found

    def _mixed(self, seen: Sequence[Tried], share: float, budget: Budget) -> list[Kept]:
        """Return networks between the nearest faster one and the nearest slower one that were measured.

        Other totals of the knapsack give other widths everywhere, and where the sum of layers is off by another factor
        for each layer the measured times jump about. Between two networks that were measured they jump less: groups
        take the widths of the slower one, one after the other, as long as the times in between allow it. Three are
        made, where the line through the two says and halfway from there to both, for times may jump even there.

        Returns:
            What stays, in each; nothing where no two networks enclose the target that the sum of layers has in the
            same order.
        """
        pairs = [
            (fast, slow)
            for fast, slow in product(seen, seen)
            if fast.reading.share <= share < slow.reading.share and fast.total < slow.total
        ]
        if not pairs:
            return []
        fast, slow = min(pairs, key=lambda pair: pair[1].reading.share - pair[0].reading.share)
        way = (share - fast.reading.share) / (slow.reading.share - fast.reading.share)
        found: list[Kept] = []
        for part in (way, way / 2, (1 + way) / 2)[:AT_ONCE]:
            kept = self._between(fast, slow, part, budget)
            known = [*(one.kept for one in seen), *found]
            if kept is not None and not any(np.array_equal(kept, one) for one in known):
                found.append(kept)
        return found

    def _between(self, fast: Tried, slow: Tried, way: float, budget: Budget) -> Kept | None:
        """Return what lies so much of the way from one network to another; None where nothing does."""
        limit = fast.total + way * (slow.total - fast.total)
        found, least = fast.kept, (np.inf, fast.kept)
        for tried in self._towards(fast.kept, slow.kept):
            # The step is taken from what was found so far, not from where the list began.
            step = found | tried
            total, taken = self.model.ms(step), costs(self.model.trace, step, budget)
            if any(taken[name] > most for name, most in budget.bounds.items()):
                continue
            if total <= limit:
                found = step
            elif found is fast.kept and fast.total < total < least[0]:
                least = (total, step)
        found = least[1] if found is fast.kept else found
        return None if found is fast.kept else found

    def _towards(self, fast: Kept, slow: Kept) -> Iterator[Kept]:
        """Yield ``fast`` with one group wider, up to its width in ``slow``: what gains most first, widest first."""
        places = []
        for place, group in enumerate(self.model.trace.groups):
            new = group.units[slow[group.units] & ~fast[group.units]]
            if len(new):
                places.append((-float(self.scores[new].sum()), place))
        for _, place in sorted(places):
            units = self.model.trace.groups[place].units
            best = units[np.argsort(-self.scores[units], kind="stable")]
            least, most = int(fast[units].sum()), int(slow[units].sum())
            for width in sorted({*self.model.candidates(place), most}, reverse=True):
                if least < width <= most:
                    wider = fast.copy()
                    wider[best[:width]] = True
                    yield wider

    def _dense_sum(self, now: float) -> float:
        """Return the layers' sum of the whole network, of which an earlier round may have left ``now``."""
        whole = sum(self.model.entries[one.name].ms(*one.dense, one.dense) for one in self.model.layers)
        return max(whole, now)

    def _plan(self, kept: Kept, asked: Budget, steps: Steps) -> Plan:
        """Return the plan by the steps; where it would differ by a tie, by what stays."""
        values = torch.from_numpy(self.scores)
        least, most = self.limits.min_kept, self.limits.max_ratio
        found = prune.plan(self.model.trace, values, budget=asked, steps=steps, min_kept=least, max_ratio=most)
        again = plan_from_kept(self.model.trace, kept, asked=found.asked)
        return found if found.slots == again.slots else again

    def _timed_again(self, dense: Path, seen: Sequence[Tried], new: Sequence[Tried], share: float) -> list[Tried]:
        """Time new networks beside the dense one and those on both sides of the target, in turns; all, with their best.

        Each keeps the best of all its sittings.
        """
        faster = [one for one in seen if one.reading.share <= share]
        slower = [one for one in seen if one.reading.share > share]
        near = [max(faster, key=lambda one: one.reading.share)] if faster else []
        near += [min(slower, key=lambda one: one.reading.share)] if slower else []
        again = [*near, *new]
        jobs = [self._job(path) for path in (dense, *(one.path for one in again))]
        first, *others = self.shipping.timer(jobs, self._how(len(jobs)))
        dense_ms = min([first.ms, *(one.reading.dense_ms for one in seen)])
        now = {str(one.path): timing for one, timing in zip(again, others, strict=True)}
        found = []
        for one in (*seen, *new):
            timing = now.get(str(one.path))
            ms = one.reading.ms if timing is None else min(one.reading.ms, timing.ms)
            load = one.reading.load if timing is None else timing.load
            found.append(replace(one, reading=Reading(ms, dense_ms, load)))
        return found

    def _dense_alone(self, dense: Path) -> float:
        (timing,) = self.shipping.timer([self._job(dense)], self._how(1))
        return timing.ms

    def _job(self, path: Path) -> Job:
        return Job(path=str(path), shapes=dict(self.shipping.shapes), batch=self.shipping.batch)

    def _how(self, files: int) -> How:
        shipping = self.shipping
        return How(
            runtime=shipping.runtime,
            threads=shipping.threads,
            rounds=20,
            min_seconds=files * _SECONDS_EACH,
            agree=AGREE,
        )

    @staticmethod
    def _corrected(share: float, dense: float, seen: Sequence[tuple[float, float]]) -> float:
        """Return the sum of layers to aim at: on the line through the two networks measured nearest the share.

        The dense network, at a share of 1, is one of those to choose among; a line that falls is none.
        """
        known = {(dense, 1.0), *seen}
        # What disturbs a reading makes it slower: a network takes no longer than a wider one was seen to take.
        known = {(total, min(other for wider, other in known if wider >= total)) for total, _ in known}
        points = sorted(known, key=lambda point: abs(point[1] - share))
        (x1, y1) = points[0]
        # A reading that is off must not throw the next try far from where it should be.
        ends = sorted((x1, x1 * (share / y1) ** 2))
        for x2, y2 in points[1:]:
            if (x2 - x1) * (y2 - y1) > 0:
                return min(max(x1 + (share - y1) * (x2 - x1) / (y2 - y1), ends[0]), ends[1])
        return x1 * share / y1

    def _predicted(self, budget: Budget, target: Target, networks: Sequence[Network]) -> FittedCut:
        """Plan by a device's table alone: its networks say what the layers' sum leaves out."""
        setting = self.shipping.setting(self.shipping.precision)
        dense_sum = self._dense_sum(self.model.ms(np.ones(self.model.trace.units, dtype=bool)))
        known = []
        for one in networks:
            if one.setting == setting and set(one.widths) == {layer.name for layer in self.model.layers}:
                total = sum(self.model.entries[p.name].ms(*one.widths[p.name], p.dense) for p in self.model.layers)
                known.append((total, one.ms))
        known = sorted(known) or [(dense_sum, dense_sum)]
        dense_ms = known[-1][1]

        def at(total: float) -> float:
            (x1, y1), (x2, y2) = known[0], known[-1]
            if len(known) == 1 or total < x1:
                return total * y1 / x1
            return y1 + (total - x1) * (y2 - y1) / (x2 - x1)

        share = target.share_of(dense_ms)
        shares = [(total, ms / dense_ms) for total, ms in known]
        aim = share * dense_sum if len(known) == 1 else self._corrected(share, dense_sum, shares)
        kept, asked, steps = self.model.allocate(self.scores, budget, aim, self.limits)
        return FittedCut(self._plan(kept, asked, steps), Reading(at(self.model.ms(kept)), dense_ms), share, 0.0, 0, 0)

    def _unreached(self, target: Target, best: Tried, floor: float) -> str:
        """Say what can be reached, and how wide the network is there."""
        reading, groups = best.reading, best.plan.groups
        widths = ", ".join(f"{g.name} {g.after} of {g.before}" for g in groups[:3])
        widths += f" and {len(groups) - 3} groups more" if len(groups) > 3 else ""
        takes = f"takes {reading.share:.3f} of the dense one's {reading.dense_ms:.3g} ms, both in {self.shipping.said}"
        reach = target.said(reading.share, reading.dense_ms)
        if best.total <= floor * 1.001:
            return (
                f"A latency of {target} is impossible here: the fastest network that the bounds allow ({widths}) "
                f"{takes}; ask for latency: {reach} or more, or lower prune.min_kept."
            )
        return (
            f"A latency of {target} was not hit in {MOST_ROUNDS} rounds: the nearest network ({widths}) {takes}; "
            f"ask for latency: {reach}, or try again when the machine is less busy."
        )


def floor_of(fit: LatencyFit, target: Target) -> Reading:
    """Measure the narrowest network that the bounds allow, before anything is trained.

    Raises:
        PlanError: it takes longer than the target.
    """
    kept = fit.model.narrowest(fit.scores, fit.limits)
    plan = plan_from_kept(fit.model.trace, kept)
    with tempfile.TemporaryDirectory() as folder:
        dense = fit.shipping.write(fit.dense, Path(folder) / "dense.onnx")
        cut = fit.shipping.write(prune.apply(fit.network, plan), Path(folder) / "narrowest.onnx")
        (tried,) = fit._timed_again(dense, [], [Tried(kept, 0.0, plan, cut)], 1.0)
    reading = tried.reading
    if reading.share > target.share_of(reading.dense_ms) * (1 + WITHIN):
        raise PlanError(fit._unreached(target, tried, 0.0))
    return reading
