"""The baseline that reviewers name: an evolutionary search over the groups' ratios, with a cheap proxy of accuracy.

Candidates are vectors of ratios, one a group, as AMC's agent proposes them (He et al., AMC: AutoML for Model
Compression, 2018); each is judged without training after its BatchNorm statistics are taken anew (Li et al., EagleEye:
Fast Sub-net Evaluation for Efficient Neural Network Pruning, 2020); the best are crossed and mutated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from compress.errors import PlanError
from compress.models.norms import statistics_anew
from compress.prune.allocation import Limits, costs, ranked
from compress.prune.budget import Budget
from compress.prune.calibration import Forward, batches, run
from compress.prune.planning import Plan, plan_from_kept
from compress.prune.surgery import apply
from compress.prune.units import Trace

Ratios = npt.NDArray[np.float64]
"""The share of each group that goes, float64 (groups,)."""

SCALINGS = 40
"""Bisections of the factor that brings a candidate to its budget."""


@dataclass(frozen=True)
class Evolved:
    """What a search found.

    Args:
        plan: the best candidate's.
        fitness: of it, by the proxy.
        history: the best fitness after each generation.
        tried: how many candidates were judged.
    """

    plan: Plan
    fitness: float
    history: tuple[float, ...]
    tried: int


@dataclass(frozen=True)
class Evolution:
    """How long and how widely to search.

    Args:
        population: candidates of a generation.
        generations: after the first one.
        parents: of each generation, those that the next one descends from.
        mutation: the chance that a ratio of a child is drawn anew around its parent's.
        spread: the standard deviation of such a draw.
        seed: of everything random.
    """

    population: int = 16
    generations: int = 8
    parents: int = 4
    mutation: float = 0.2
    spread: float = 0.15
    seed: int = 0

    def __post_init__(self) -> None:
        if not 2 <= self.parents < self.population or self.generations < 0 or not 0 < self.mutation <= 1:
            raise PlanError(
                f"A search with {self.population} candidates, {self.parents} parents, {self.generations} generations "
                f"and mutation {self.mutation:g} is impossible; give at least 2 parents and more candidates than these."
            )


def evolve(
    trace: Trace,
    scores: Tensor,
    model: nn.Module,
    fitness: Callable[[nn.Module], float],
    *,
    budget: Budget,
    search: Evolution | None = None,
    limits: Limits | None = None,
    advance: Callable[[int, int, str], None] | None = None,
) -> Evolved:
    """Search the groups' ratios for the fittest network within a budget; nothing is trained.

    Every candidate is scaled as a whole until it just fits, so that none is larger than allowed or smaller than needed.

    Args:
        trace, model: the network, which is not changed.
        scores: what goes first within a group, shape (units,).
        fitness: from a cut network to how good it is, such as its accuracy after ``recalibrated``.
        budget: bounds that can be computed.
        search: how long; the defaults judge 112 candidates.
        limits: of every group.
        advance: told after each candidate how many are judged, how many there will be, and the best fitness.

    Raises:
        PlanError: nothing is free, or the budget cannot be met.
    """
    asked, job = search or Evolution(), _Candidates(trace, ranked(trace, scores), budget, limits or Limits())
    if not budget.bounds:
        raise PlanError("A search needs a budget that can be computed, such as macs; give one.")
    job.check()
    random = np.random.default_rng(asked.seed)
    # The same ratio for all comes first: what is found is no worse than that.
    first = [np.full(len(trace.groups), 0.5), *random.uniform(0, 1, (asked.population - 1, len(trace.groups)))]
    total = asked.population + asked.generations * (asked.population - asked.parents)
    known: list[tuple[float, int, Ratios]] = []
    history: list[float] = []

    def judge(candidates: Sequence[Ratios]) -> None:
        for ratios in candidates:
            small = apply(model, plan_from_kept(trace, job.kept(ratios))).eval()
            # Of equals the one that was found first stays first.
            known.append((float(fitness(small)), -len(known), ratios))
            if advance is not None:
                advance(len(known), total, f"best {max(known)[0]:.4g}")

    judge(first)
    for _ in range(asked.generations):
        best = sorted(known, reverse=True, key=lambda found: found[:2])[: asked.parents]
        history.append(best[0][0])
        parents = [ratios for _, _, ratios in best]
        judge([_child(parents, asked, random) for _ in range(asked.population - asked.parents)])
    fittest = max(known, key=lambda found: found[:2])
    request = {"scope": "evolution", "seed": asked.seed, "budget": budget.model_dump(exclude_defaults=True)}
    plan = plan_from_kept(trace, job.kept(fittest[2]), asked=request)
    return Evolved(plan, fittest[0], (*history, fittest[0]), len(known))


def _child(parents: Sequence[Ratios], asked: Evolution, random: np.random.Generator) -> Ratios:
    """Take each ratio from one of two parents, and change some of them."""
    one, other = random.choice(len(parents), 2, replace=False)
    crossed = np.where(random.random(len(parents[0])) < 0.5, parents[one], parents[other])
    changed = random.random(len(crossed)) < asked.mutation
    return np.clip(np.where(changed, crossed + random.normal(0, asked.spread, len(crossed)), crossed), 0, 1)


@dataclass(frozen=True)
class _Candidates:
    """From ratios to what is kept, within the budget."""

    trace: Trace
    scores: npt.NDArray[np.float64]
    budget: Budget
    limits: Limits

    def cut(self, ratios: Ratios) -> npt.NDArray[np.bool_]:
        kept = np.ones(self.trace.units, dtype=bool)
        for group, ratio in zip(self.trace.groups, ratios, strict=True):
            order = group.units[np.argsort(self.scores[group.units], kind="stable")]
            kept[order[: len(order) - self.limits.stays(group, round(float(ratio) * len(order)))]] = False
        return kept

    def fits(self, kept: npt.NDArray[np.bool_]) -> bool:
        found = costs(self.trace, kept, self.budget)
        return all(found[name] <= bound for name, bound in self.budget.bounds.items())

    def check(self) -> None:
        if not self.trace.groups:
            raise PlanError("No channel of this network is free to go, so there is nothing to search.")
        if not self.fits(self.cut(np.ones(len(self.trace.groups)))):
            raise PlanError("The budget cannot be met by cutting every group as far as it goes; ask for more.")

    def kept(self, ratios: Ratios) -> npt.NDArray[np.bool_]:
        """Bisect between nothing, the ratios, and everything for the least that fits."""

        def scaled(place: float) -> Ratios:
            return ratios * place if place <= 1 else ratios + (1 - ratios) * (place - 1)

        low, high = 0.0, 2.0
        for _ in range(SCALINGS):
            middle = (low + high) / 2
            low, high = (low, middle) if self.fits(self.cut(scaled(middle))) else (middle, high)
        return self.cut(scaled(high))


def recalibrated(network: nn.Module, data: Iterable[Any], *, forward: Forward | None = None) -> nn.Module:
    """Take a network's BatchNorm statistics anew, in place, as plain means over batches, and return it in eval mode.

    Raises:
        PlanError: there is no batch.
    """
    with statistics_anew(network), torch.no_grad():
        for batch in batches(data):
            run(network, batch, forward)
    return network.eval()
