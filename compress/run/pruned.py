"""One cut of a network at hand, from its trace to a saved network with the proof, and what it came to."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict
from torch import nn

from compress import artifact, cost, prune
from compress.errors import PlanError
from compress.prune import CRITERIA, Budget, Plan, Reconstruction, Sensitivity
from compress.prune.drop import Judges
from compress.recipe.schema import PruneRecipe
from compress.run.cutting import plan_for, within_drop
from compress.run.given import GivenImages, GivenNetwork, trace_of
from compress.run.given_latency import TimedBy, cut_to_latency
from compress.run.scoring import pairs


class PrunedFigures(BaseModel):
    """What a cut came to.

    Args:
        out: where the network lies.
        macs, params: before and after.
        groups: group -> channels before and after.
        proof: the largest relative error of cut against masked.
        metric: what accuracy is.
        accuracy: before and after on images that nothing was chosen by; None without labels.
        images: how many these were.
        reconstruction: what repairing was worth; None where it was not asked for.
        latency: what was measured of a latency that was asked for, in words.
    """

    model_config = ConfigDict(frozen=True)
    out: str
    macs: tuple[int, int]
    params: tuple[int, int]
    groups: dict[str, tuple[int, int]]
    proof: float
    metric: str = "accuracy"
    accuracy: tuple[float, float] | None = None
    images: int | None = None
    reconstruction: dict[str, Any] | None = None
    latency: str | None = None

    @property
    def share(self) -> float:
        """What is left of the MACs."""
        return self.macs[1] / self.macs[0]


@dataclass(frozen=True)
class CutJob:
    """A network, the images for it, and what is asked of the cut.

    Args:
        network: the whole one.
        images: None where nothing needs any.
        asked: criterion, budget and the rest.
        curves: its sensitivity, where it says how far each group is cut.
        seed: of everything random.
        advance: told of each try of a search.
        timing: how a latency is measured.
    """

    network: GivenNetwork
    images: GivenImages | None
    asked: PruneRecipe
    curves: Sensitivity | None
    seed: int
    advance: Callable[[int, int, str], None] = lambda done, total, text: None
    timing: TimedBy = field(default_factory=TimedBy)

    def run(self, out: Path) -> PrunedFigures:
        """Plan, cut, reconstruct, prove and save what ``check`` lets pass; raise PlanError where one of them fails."""
        model = self.network.model
        plan, small, report, latency = self._cut(model)
        self.advance(0, 1, "proving the cut")
        proof = prune.check(model, plan, self.network.example, seed=self.seed, forward=self.network.forward)
        about = self.network.about
        whole = plan if about.plan is None else about.plan.then(plan)
        self.advance(0, 1, "saving")
        artifact.save(small, out, about.model_copy(update={"plan": whole, "seed": self.seed}))
        measure = self.images.measure() if self.images is not None else None
        dense, cut = (None, None) if measure is None else (measure(model), measure(small))
        return PrunedFigures(
            out=str(out),
            macs=(cost.macs(model, self.network.example), cost.macs(small, self.network.example)),
            params=(cost.parameters(model), cost.parameters(small)),
            groups={group.name: (group.before, group.after) for group in plan.groups},
            proof=proof.worst,
            metric=self.network.task.title,
            accuracy=None if dense is None or cut is None else (dense[1] or 0.0, cut[1] or 0.0),
            images=None if dense is None else dense[2],
            reconstruction=None if report is None else report.model_dump(exclude={"layers"}),
            latency=latency,
        )

    def check(self) -> None:
        """Raise PlanError where images or labels are missing that the request needs."""
        asked = self.asked
        needs = CRITERIA[asked.criterion].needs
        if self.images is None and (needs != "weights" or asked.reconstruct or asked.budget.max_drop is not None):
            why = f"the criterion {asked.criterion} looks at {needs}" if needs != "weights" else "this looks at images"
            raise PlanError(f"There are no images, and {why}; add --data FOLDER or --data RECIPE.")
        if asked.budget.max_drop is not None and self.images is not None and self.images.task is None:
            raise PlanError("max_drop is measured on labels; give --data class folders or a recipe.")
        if self.timing != TimedBy() and asked.budget.latency is None:
            raise PlanError(
                "--runtime, --precision, --threads, --batch and --table say how a latency is timed; "
                "add --budget latency=0.5."
            )

    def _cut(self, model: nn.Module) -> tuple[Plan, nn.Module, Reconstruction | None, str | None]:
        """Return the plan, the network that it leaves, the report of its reconstruction, and of its latency."""
        asked, images = self.asked, self.images
        self.advance(0, 1, "finding which channels go together")
        trace = trace_of(self.network, asked.protect)
        self.advance(0, 1, f"scoring by {asked.criterion}")
        if images is None:
            scores = prune.score(trace, model, asked.criterion, seed=self.seed)
        else:
            scores = images.scores(trace, model, asked.criterion, self.seed)
        if asked.budget.max_drop is not None and asked.ratio is None:
            found = within_drop(
                (trace, model),
                lambda budget: plan_for(trace, scores, asked, budget, self.curves),
                lambda small, plan: self._repaired(small, plan)[0],
                self._judges(),
                asked,
                self.advance,
            )
            return found.plan, *self._repaired(prune.apply(model, found.plan), found.plan), None
        said = None
        if asked.budget.latency is not None:
            plan, said = cut_to_latency(self.network, trace, scores, asked, self.timing, self.advance)
        else:
            plan = plan_for(trace, scores, asked, curves=self.curves)
        small = prune.apply(model, plan)
        if not asked.reconstruct:
            return plan, small.eval(), None, said
        self.advance(0, 1, "reconstructing")
        return plan, *self._repaired(small, plan), said

    def _repaired(self, small: nn.Module, plan: Plan) -> tuple[nn.Module, Reconstruction]:
        assert self.images is not None
        given, forward = pairs(self.images.scoring), self.network.forward
        return prune.reconstruct(self.network.model, small, plan, given, seed=self.seed, forward=forward)

    def _judges(self) -> Judges:
        """Search on half of the images that judge, confirm on all."""
        assert self.images is not None
        half = GivenImages([], self.images.judging[::2], self.images.task, self.images.classes).measure()
        full = self.images.measure()
        assert half is not None and full is not None
        return Judges(lambda network: half(network)[1] or 0.0, lambda network: full(network)[1] or 0.0)


def several(job: CutJob, shares: Sequence[float], out: Path) -> list[PrunedFigures]:
    """Cut one network to several shares of its MACs, a folder each under ``out``.

    Args:
        job: what is asked beside the budget.
        shares: of the MACs.
        out: the folder; it appears when all of them are done, or none of them.
    """
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    found = []
    try:
        for share in shares:
            asked = job.asked.model_copy(update={"budget": Budget(macs=share), "table": ()})
            figures = replace(job, asked=asked).run(partial / f"macs-{share:g}")
            found.append(figures.model_copy(update={"out": str(out / f"macs-{share:g}")}))
        partial.replace(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return found
