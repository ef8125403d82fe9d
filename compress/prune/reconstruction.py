"""Reconstruction: after a cut what is left is solved again, so that each layer gives what it gave before.

Layer by layer, in the order of the forward pass, the weights that read the repaired network's activations are fitted
to the dense network's outputs on calibration images (least squares, as He et al., Channel Pruning for Accelerating
Very Deep Neural Networks, 2017, and ThiNet do for what reads the cut channels; here every layer behind a cut, and the
offset too). No label, no training step, no parameter more than before.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from compress.errors import PlanError
from compress.models.norms import statistics_anew, tracking
from compress.prune.architecture import named_tensors
from compress.prune.attention import substitute
from compress.prune.calibration import CalibrationBatch, Forward, batches, part, run
from compress.prune.judging import Judge, surely_lower
from compress.prune.least_squares import RidgeFit, solve
from compress.prune.lockstep import Walker, Way, walkers
from compress.prune.moments import POSITIONS, Moments, as_matrix, as_weight, rows
from compress.prune.planning import Plan
from compress.prune.probe import clone
from compress.prune.reads import ReadCall
from compress.prune.survey import survey

CLOSED = 100
"""Times the median by which a norm may shrink a channel before the channel no longer makes up for others."""


class LayerRepair(BaseModel):
    """What became of one layer.

    Args:
        name: its weight.
        kept: whether the network now has the repaired weight.
        error_before, error_after: squared error of its outputs against the dense network's on held-out images, as a
            share of the dense outputs' variance, as cut and as solved.
        without: the measure of the finished network on held-out images without this repair.
        ridge: the penalty that was chosen, as a share of the inputs' mean square; infinite: the offset alone.
        why: why nothing was solved, where nothing was.
    """

    model_config = ConfigDict(frozen=True)
    name: str
    kept: bool
    error_before: float | None = None
    error_after: float | None = None
    without: float | None = None
    ridge: float | None = None
    why: str = ""


class Reconstruction(BaseModel):
    """What was repaired, and what it was worth on held-out images.

    Args:
        measure: `kl`: mean divergence of the class probabilities from the dense network's, in nats; `error`: relative
            squared error of all outputs.
        before, after: the measure as cut, and as repaired; never larger.
        layers: layer by layer, in order.
        statistics: whether BatchNorm statistics were taken anew.
        images, held_out: how many it was fitted to, and how many it was judged by.
    """

    model_config = ConfigDict(frozen=True)
    measure: str
    before: float
    after: float
    layers: tuple[LayerRepair, ...]
    statistics: bool
    images: int
    held_out: int


def reconstruct(
    model: nn.Module,
    small: nn.Module,
    plan: Plan,
    data: Iterable[Any],
    *,
    held_out: float = 0.25,
    positions: int = POSITIONS,
    seed: int = 0,
    forward: Forward | None = None,
) -> tuple[nn.Module, Reconstruction]:
    """Solves the layers of a cut network again, without labels.

    Every layer is solved for its own outputs. A repair is then taken back where held-out images are nearer to the
    dense network without it by more than twice the error of that mean, and all are where they do not help together;
    new BatchNorm statistics are kept by the same measure. Memory is that of one pass of both networks over all images
    at once.

    Args:
        model: the dense network; it is not changed.
        small: what `apply` made of it; it is not changed.
        plan: the plan that it was made by.
        data: batches of images, or of pairs whose targets are not looked at.
        held_out: the share of each batch's images that repairs are judged by.
        positions: positions of an image that a layer is fitted to, at most.
        seed: for the draw of these.
        forward: `forward(network, inputs)` instead of `network(inputs)`.

    Returns:
        a new network and the report.

    Raises:
        PlanError: `small` is not the plan's, there are too few images, or the two networks run differently.
    """
    if not 0 < held_out < 1:
        raise PlanError(f"held_out={held_out:g} is impossible; give the share that is held out, above 0 and below 1.")
    _check(small, plan)
    parts = _Parts.of(batches(data), held_out)
    repaired = clone(small, {})
    modes = {module: module.training for module in repaired.modules()}
    job = _Job(_dense(model, plan), repaired.eval(), plan, forward, positions, torch.Generator().manual_seed(seed))
    try:
        with torch.no_grad():
            report = job.repair(parts)
    finally:
        for module, training in modes.items():
            module.training = training
    return repaired, report


def _check(small: nn.Module, plan: Plan) -> None:
    own = named_tensors(small)
    for key, slot in plan.slots.items():
        name, _, dim = key.rpartition(":")
        if name not in own or own[name].shape[int(dim)] != len(slot.kept):
            raise PlanError(f"The cut network is not what this plan makes ('{key}' differs); give what apply() made.")


def _dense(model: nn.Module, plan: Plan) -> nn.Module:
    """A copy in eval mode that shares the weights and goes the way that the cut network goes."""
    dense = clone(model, {id(p): p for p in model.parameters()})
    modules = dict(dense.named_modules(remove_duplicate=False))
    for path, name in plan.substitutions.items():
        substitute(modules[path], name)
    return dense.eval()


@dataclass(frozen=True)
class _Parts:
    """Calibration images: what is fitted, and what judges."""

    fit: list[CalibrationBatch]
    held: list[CalibrationBatch]

    @classmethod
    def of(cls, given: Iterable[CalibrationBatch], share: float) -> _Parts:
        fit: list[CalibrationBatch] = []
        held: list[CalibrationBatch] = []
        seen = 0
        for batch in given:
            # Spread over the whole of the data, whatever the size of a batch.
            places = range(seen, seen + batch.images)
            judges = [k for k, at in enumerate(places) if int((at + 1) * share) > int(at * share)]
            fits = [k for k in range(batch.images) if k not in set(judges)]
            seen += batch.images
            for chosen, into in ((fits, fit), (judges, held)):
                if chosen:
                    into.append(CalibrationBatch(part(batch.inputs, chosen, batch.images), None, len(chosen)))
        if not fit or not held:
            raise PlanError(f"{seen} images are too few to hold {share:g} of them out; give more.")
        return cls(fit, held)


@dataclass
class _Job:
    """Both networks, and how they are run."""

    dense: nn.Module
    repaired: nn.Module
    plan: Plan
    forward: Forward | None
    positions: int
    generator: torch.Generator

    def repair(self, parts: _Parts) -> Reconstruction:
        self.tensors = named_tensors(self.repaired)
        self.weights = {n: t for n, t in self.tensors.items() if isinstance(t, nn.Parameter) and t.dim() > 1}
        theirs = named_tensors(self.dense)
        self.judge = Judge(self.dense, parts.held, self.forward)
        self.survey = survey(self.repaired, self.weights, parts.held[0], self.forward)
        before = self.judge(self.repaired)
        layers: list[LayerRepair] = []
        self.changed: dict[str, list[tuple[Tensor, Tensor]]] = {}
        everything = [*parts.fit, *parts.held]
        dense_weights = {name: theirs[name] for name in self.weights}
        joins = self.survey.joins
        with (
            walkers(Way(self.dense, dense_weights, self.forward, joins), everything) as dense,
            walkers(Way(self.repaired, self.weights, self.forward, joins), everything) as cut,
        ):
            while True:
                names = {walker.step() for walker in (*dense, *cut)}
                if len(names) > 1:
                    raise PlanError("The cut network runs its layers in another order than the dense one.")
                if names == {None}:
                    break
                layer = self._layer(dense, cut, len(parts.fit))
                if layer is not None:
                    layers.append(layer)
        layers, after = self._weighed(layers, before)
        statistics, after = self._statistics(parts.fit, after)
        return Reconstruction(
            measure=self.judge.measure,
            before=float(before.mean()),
            after=float(after.mean()),
            layers=tuple(layers),
            statistics=statistics,
            images=sum(batch.images for batch in parts.fit),
            held_out=sum(batch.images for batch in parts.held),
        )

    # One layer -------------------------------------------------------------------------------------------

    def _layer(self, dense: Sequence[Walker], cut: Sequence[Walker], fits: int) -> LayerRepair | None:
        """Solves the weight that all passes stand at; None where there is nothing to solve, or not yet."""
        name = cut[0].name
        assert name is not None
        if self.survey.calls[name] > 1:
            return LayerRepair(name=name, kept=False, why="it is used several times in one pass")
        if cut[0].call is not None and name in cut[0].waiting:
            # What it gives is added to something that is not known yet.
            for theirs in dense:
                theirs.product()
            return None
        found: list[Moments] = []
        for theirs, ours in zip(dense, cut, strict=True):
            call = ours.call or ours.waiting[name].call
            seen = rows(call, self._wanted(call, theirs, ours), self.positions, self.generator)
            if seen is None:
                return LayerRepair(name=name, kept=False, why="a transposed convolution is not solved")
            found.append(Moments.of(*seen))
        fit, judge = sum(found[1:fits], found[0]), sum(found[fits + 1 :], found[fits])
        layer = self._solved(call, fit, judge)
        if layer is not None and cut[0].call is None:
            for ours in cut:
                ours.again()
        return layer

    def _wanted(self, call: ReadCall, theirs: Walker, ours: Walker) -> Tensor:
        """What the cut network should give: what the dense one does, and what is missing of what is added to it."""
        whole = theirs.product() if theirs.call is not None else theirs.waiting[call.name].output
        assert whole is not None
        indices = torch.from_numpy(self.plan.kept_indices((call.name, call.makes), whole.shape[call.along]))
        kept = indices.to(whole.device)
        wanted = whole.index_select(call.along, kept)
        if theirs.other is None or ours.other is None:
            return wanted
        missing = theirs.other.index_select(call.along, kept) - ours.other
        norm = self.survey.norms.get(call.name)
        if norm is not None:
            scale = torch.ones_like(norm.variance) if norm.scale is None else norm.scale
            factor = (norm.variance + norm.eps).sqrt() / scale
            # A channel that its norm all but closes cannot make up for anything.
            factor = torch.where(factor.abs() < CLOSED * factor.abs().median(), factor, 0)
            missing = missing * factor.reshape(-1, *[1] * (-call.along - 1))
        return wanted + missing

    def _solved(self, call: ReadCall, fit: Moments, judge: Moments) -> LayerRepair | None:
        bias = call.bias if isinstance(call.bias, nn.Parameter) else None
        norm = self.survey.norms.get(call.name)
        mean = norm.mean if norm is not None and call.bias is None else None
        now = as_matrix(call, call.weight.detach()).double()
        offset = None if call.bias is None else call.bias.detach().double().reshape(now.shape[:2])
        spread = float(judge.centred().yy.sum()) or 1.0
        before = judge.error(now, offset) / spread
        # Rounding is nothing to repair: of the network's numbers, and of sums of squares far from their means.
        sums = 1024 * torch.finfo(torch.float64).eps * float(judge.yy.sum()) / spread
        if before < max(32 * torch.finfo(call.weight.dtype).eps, sums):
            return None
        solved = solve(fit, judge, RidgeFit(now, offset, 0.0), offsets=bias is not None or mean is not None)
        if solved.matrix is now:
            return LayerRepair(name=call.name, kept=False, error_before=before, why="nothing else fits better")
        after = judge.error(solved.matrix, solved.offset) / spread
        self.changed[call.name] = [(t, t.detach().clone()) for t in (call.weight, bias, mean) if t is not None]
        with torch.no_grad():
            call.weight.copy_(as_weight(call, solved.matrix))
            if bias is not None and solved.offset is not None:
                bias.copy_(solved.offset.reshape(-1))
            elif mean is not None and solved.offset is not None:
                mean.sub_(solved.offset.reshape(-1))
        return LayerRepair(name=call.name, kept=True, error_before=before, error_after=after, ridge=solved.ridge)

    def _weighed(self, layers: list[LayerRepair], before: Tensor) -> tuple[list[LayerRepair], Tensor]:
        """Takes back each repair without which the finished network is surely nearer to the dense one; all of them
        where it is no nearer than as it was cut. Gives what held-out images say of what is left.

        One repair is judged with the others in place: while what follows is still broken the outputs say little.
        """
        now = self.judge(self.repaired)
        found: list[LayerRepair] = []
        for layer in reversed(layers):
            kept, without = layer.kept, None
            if kept:
                solved = [t.detach().clone() for t, _ in self.changed[layer.name]]
                self._put(layer.name, [old for _, old in self.changed[layer.name]])
                without = self.judge(self.repaired)
                kept = not surely_lower(without, now)
                if kept:
                    self._put(layer.name, solved)
                else:
                    now = without
            measure = None if without is None else float(without.mean())
            found.append(layer.model_copy(update={"kept": kept, "without": measure}))
        if not float(now.mean()) <= float(before.mean()):
            for name, changed in self.changed.items():
                self._put(name, [old for _, old in changed])
            found, now = [layer.model_copy(update={"kept": False}) for layer in found], before
        return found[::-1], now

    def _put(self, name: str, values: Sequence[Tensor]) -> None:
        with torch.no_grad():
            for (tensor, _), value in zip(self.changed[name], values, strict=True):
                tensor.copy_(value)

    # Statistics ------------------------------------------------------------------------------------------

    def _statistics(self, fit: Sequence[CalibrationBatch], now: Tensor) -> tuple[bool, Tensor]:
        """Takes BatchNorm statistics anew, and keeps them where that lowers the measure."""
        tracked = tracking(self.repaired)
        if not tracked:
            return False, now
        old = [{name: b.clone() for name, b in m.named_buffers(recurse=False)} for m in tracked]
        with statistics_anew(self.repaired), torch.no_grad():
            for batch in fit:
                run(self.repaired, batch, self.forward)
        anew = self.judge(self.repaired)
        if surely_lower(anew, now):
            return True, anew
        for m, buffers in zip(tracked, old, strict=True):
            for name, value in buffers.items():
                getattr(m, name).copy_(value)
        return False, now
