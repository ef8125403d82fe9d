"""What each row of a table does with a trained network: one function a method, told in the order it happens."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from scipy.stats import spearmanr
from torch import nn

from benchmarks.papers.architectures import RETHINKING
from benchmarks.papers.cifar import published
from benchmarks.papers.desk import Desk, Schedule
from compress import prune
from compress.cost import macs
from compress.prune.sparsify import Sparsifier, gone_units
from compress.prune.structures import StructureScales
from compress.prune.widths import carried
from compress.sparse.dns import DynamicSurgery
from compress.sparse.dsd import dense_sparse_dense
from compress.sparse.gsm import GSM, active, parameters_by_name, weight_decay_for
from compress.sparse.lobs import prune_layers
from compress.sparse.magnitude import at_random, gradual_density, largest, prune_and_retrain
from compress.sparse.masks import Handle, Keep, Masks, weights_of
from compress.sparse.measures import Reactivation, approximation, layers_alone, readiness
from compress.sparse.storage import keep_for_bytes
from compress.sparse.tickets import find_ticket, redraw, rewind
from compress.sparse.unit_gsm import UnitGSM


@dataclass
class Outcome:
    """A network and what was seen on the way.

    Attributes:
        model: obeys ``masks``, unless the method ends dense.
        masks: what stayed; None where whole channels went.
        before: accuracy before the cut, where the cut is the last thing that happens, or before a light retraining.
        details: more figures, plain data.
        dense: the method ends with a dense network.
    """

    model: nn.Module
    masks: Masks | None
    before: float | None
    details: dict[str, Any]
    dense: bool = False


@dataclass
class Job:
    """What a procedure works with.

    Attributes:
        desk: trains and measures.
        base: the trained dense network; copied before it is changed.
        initial: the network as it was drawn, before any training.
        schedule: of the method, its epochs already scaled.
        options: the method's numbers.
        other: another row's outcome, of the same seed.
        whole: how a whole network is trained by a row that trains one itself.
        factor: on numbers of epochs that the options name.
    """

    desk: Desk
    base: nn.Module
    initial: nn.Module
    schedule: Schedule
    options: dict[str, Any]
    other: Callable[[str], Outcome]
    whole: Schedule
    factor: float

    def keep(self) -> int:
        """Q of a ratio, or of a limit on the bytes of the sparse file."""
        if "bytes" in self.options:
            return keep_for_bytes(self.base, int(self.options["bytes"]))
        return round(sum(p.numel() for p in weights_of(self.base).values()) / float(self.options["ratio"]))

    def train(self, model: nn.Module, keep: Keep | None, phase: str) -> None:
        """Train by the schedule of the method, as procedures of ``compress.sparse`` ask for it."""
        self.desk.train(model, self.schedule, keep=keep)


def gsm(job: Job) -> Outcome:
    """Global sparse momentum from the trained network; the cut is the end, nothing is trained after it."""
    model, keep, back = copy.deepcopy(job.base), job.keep(), Reactivation()
    schedule, weight_decay = job.schedule, _weight_decay(job)
    optimizer = GSM(model.named_parameters(), schedule.steps[0][0], keep, schedule.momentum, weight_decay)

    def look(_: int) -> None:
        back.look(active(optimizer))

    job.desk.train(model, schedule, optimizer=optimizer, follower=back, after_epoch=look)
    before = job.desk.accuracy(model)
    ready = readiness(parameters_by_name(model).values(), keep)
    masks = largest(model, keep)
    costs = approximation(model, masks, lambda network: _train_loss(job, network))
    masks.apply_(model)
    details: dict[str, Any] = {
        "weight_decay": weight_decay,
        "survivors": ready.survivors,
        "gap": ready.gap,
        "energy": ready.energy,
        "reactivated": back.shares,
        "approximation": {name: vars(cost) for name, cost in costs.items()},
    }
    if job.options.get("sensitivity"):
        details["sensitivity"] = _sensitivity(job, masks)
    return Outcome(model, masks, before, details)


def _weight_decay(job: Job) -> float:
    """The schedule's, or what shrinks a passive weight by e to the ``decay`` over the schedule, however short it is."""
    if "decay" not in job.options:
        return job.schedule.weight_decay
    steps = -(-len(job.desk.data.train_labels) // job.schedule.batch_size)
    travelled = steps * sum(rate * epochs for rate, epochs in job.schedule.steps)
    return weight_decay_for(float(job.options["decay"]), travelled, job.schedule.momentum)


def _sensitivity(job: Job, masks: Masks) -> dict[str, Any]:
    """What GSM left of each layer beside what cutting it alone costs: of its weights, and of its channels by half.

    A correlation is Spearman's, between the share that stays and the rise of the loss; 1 if GSM leaves most where a cut
    costs most. Channels are those that ``niwaki sensitivity`` cuts, under the convolution that makes them.
    """
    kept, pairs = masks.density(), _scoring(job)
    alone = layers_alone(job.base, 1 / masks.ratio, lambda network: _train_loss(job, network))
    trace = prune.trace(job.base.eval(), job.desk.data.train_images[:2])
    curves = prune.measure_sensitivity(trace, job.base, prune.score(trace, job.base, "l1"), pairs, ratios=(0.5,))
    made = {f"{curve.group}.weight": curve.cells[0].loss - curves.loss for curve in curves.curves}
    both = {name: rise for name, rise in made.items() if name in kept}
    return {
        "alone": alone,
        "channels": both,
        "of_alone": float(spearmanr([kept[n] for n in alone], list(alone.values())).statistic),
        "of_channels": float(spearmanr([kept[n] for n in both], list(both.values())).statistic),
    }


def han(job: Job) -> Outcome:
    """Cut by deviation, retrain, cut again."""
    model = copy.deepcopy(job.base)
    masks = prune_and_retrain(model, job.train, job.options["rounds"])
    return Outcome(model, masks, None, {})


def one_shot(job: Job) -> Outcome:
    """The largest weights of the network, at once, then retrained."""
    model = copy.deepcopy(job.base)
    return _retrained(job, model, largest(model, job.keep(), job.options.get("layers", "all")))


def random(job: Job) -> Outcome:
    """As many weights of each layer as ``one_shot`` keeps, or of all the same share, at random places; retrained."""
    model = copy.deepcopy(job.base)
    masks = largest(model, job.keep())
    density = 1 / masks.ratio if job.options.get("uniform") else masks.density()
    return _retrained(job, model, at_random(model, density, job.desk.seed))


def redrawn(job: Job) -> Outcome:
    """The places of the largest weights, under a network drawn anew by how many of them an output has."""
    model, masks = copy.deepcopy(job.initial), largest(job.base, job.keep())
    redraw(model, masks, job.desk.seed)
    return _retrained(job, model, masks)


def gradual(job: Job) -> Outcome:
    """Cut a little more after every epoch of the first two thirds, by the size of weights over the network."""
    model = copy.deepcopy(job.base)
    total = sum(p.numel() for p in weights_of(model).values())
    final, end = job.keep() / total, max(1, 2 * job.schedule.epochs // 3)
    thinning = Thinning(model, lambda epoch: round(total * gradual_density(epoch, 0, end, final)))
    job.desk.train(model, job.schedule, keep=thinning.register, follower=thinning, after_epoch=thinning.thin)
    masks = largest(model, job.keep())
    masks.apply_(model)
    return Outcome(model, masks, None, {})


class Thinning:
    """Masks that become thinner, held after every step; what went may not come back, for it is zero."""

    def __init__(self, model: nn.Module, keep: Callable[[int], int]) -> None:
        self.model, self.keep = model, keep
        self.masks = largest(model, keep(0))

    def register(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> Handle:
        def after(*_: Any) -> None:
            self.masks.apply_(model)

        return optimizer.register_step_post_hook(after)

    def thin(self, epoch: int) -> None:
        self.masks = largest(self.model, self.keep(epoch))
        self.masks.apply_(self.model)

    def state_dict(self) -> dict[str, torch.Tensor]:
        return dict(self.masks.kept)

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        self.masks = Masks(state)


def surgeon(job: Job) -> Outcome:
    """Layer by layer, mended by a second-order correction, then a light retraining."""
    model = copy.deepcopy(job.base)
    images = job.desk.data.train_images[: int(job.options["images"])]
    masks = prune_layers(model, images.split(1000), job.options["density"], damping=float(job.options["damping"]))
    job.desk.flops += 2 * len(images) * macs(model, images[:1])
    return _retrained(job, model, masks)


def surgery(job: Job) -> Outcome:
    """Dynamic network surgery: masks follow the weights while the network trains."""
    model, options = copy.deepcopy(job.base), job.options
    optimizer = job.schedule.optimizer(model)
    steps = job.schedule.epochs * -(-len(job.desk.data.train_labels) // job.schedule.batch_size)
    following = DynamicSurgery(
        model,
        optimizer,
        options["c"],
        gamma=float(options["gamma"]),
        power=float(options["power"]),
        stop=round(float(options["stop"]) * steps),
        seed=job.desk.seed,
    )
    job.desk.train(model, job.schedule, optimizer=optimizer, follower=following)
    return Outcome(model, following.finish(), None, {"thresholds": following.thresholds})


def dsd(job: Job) -> Outcome:
    """Dense, sparse, dense; ends dense, at the accuracy that matters."""
    model = copy.deepcopy(job.base)

    def train(network: nn.Module, keep: Keep | None, phase: str) -> None:
        rates = tuple((rate * (1 if phase == "sparse" else 0.1), n) for rate, n in job.schedule.steps)
        job.desk.train(network, _with(job.schedule, rates), keep=keep)

    masks = dense_sparse_dense(model, train, float(job.options["sparsity"]))
    return Outcome(model, masks, None, {}, dense=True)


def ticket(job: Job) -> Outcome:
    """The masks of a row, or those of the trained network's largest weights, trained from the weights as drawn.

    ``redraw`` draws other weights in their place, which "Rethinking" found as good at the best learning rate.
    """
    model, of = copy.deepcopy(job.initial), job.options.get("of")
    masks = job.other(of).masks if of is not None else largest(job.base, job.keep())
    assert masks is not None
    if job.options.get("redraw"):
        torch.manual_seed(job.desk.seed + 1000)
        _draw(model)
    rewind(model, {name: tensor.clone() for name, tensor in model.state_dict().items()}, masks)
    return _retrained(job, model, masks)


def rounds_of_tickets(job: Job) -> Outcome:
    """Train, cut a share of each layer, go back; the last ticket is trained to the end."""
    model = copy.deepcopy(job.initial)
    masks = find_ticket(model, job.initial.state_dict(), job.train, job.options["rates"], int(job.options["rounds"]))
    return _retrained(job, model, masks)


def channels(job: Job) -> Outcome:
    """Channels go by a criterion, of the given weights or of a network that the row trains, and the rest is tuned."""
    options = job.options
    network = copy.deepcopy(job.base)
    if options.get("own"):
        network = copy.deepcopy(job.initial)
        job.desk.train(network, job.whole)
    details: dict[str, Any] = {"whole": job.desk.accuracy(network)}
    if "sparsify" in options:
        gone = _pressed(job, network)
        details["pressed"] = job.desk.accuracy(network)
        if gone is not None:
            network = prune.apply(network, gone)
            details["blocks"] = list(gone.blocks)
    plan = _plan(job, network)
    small = prune.apply(network.eval(), plan)
    details["widths"] = [group.after for group in plan.groups]
    if options.get("reconstruct"):
        small, _ = prune.reconstruct(network, small, plan, [x for x, _ in _scoring(job)], seed=job.desk.seed)
    before = job.desk.accuracy(small)
    job.desk.train(small, job.schedule)
    return Outcome(small, None, before, details)


def scratch(job: Job) -> Outcome:
    """The network that a row's cut leaves, drawn anew: as many epochs as the row's, or as many FLOPs as the whole."""
    network, options = copy.deepcopy(job.base), job.options
    small = prune.apply(network.eval(), _plan(job, network))
    share = macs(small, job.desk.data.train_images[:2]) / macs(network, job.desk.data.train_images[:2])
    torch.manual_seed(job.desk.seed)
    _draw(small)
    schedule = job.whole if options["epochs"] == "whole" else job.schedule
    if options.get("computation"):
        schedule = _with(schedule, tuple((rate, max(1, round(n / share))) for rate, n in schedule.steps))
    job.desk.train(small, schedule)
    return Outcome(small, None, None, {"epochs": schedule.epochs})


def _draw(network: nn.Module) -> None:
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear | nn.BatchNorm2d):
            module.reset_parameters()


def _scoring(job: Job) -> list[tuple[torch.Tensor, torch.Tensor]]:
    data, count = job.desk.data, 256
    chosen = torch.randperm(len(data.train_labels), generator=torch.Generator().manual_seed(job.desk.seed))[:count]
    return [(data.train_images[part], data.train_labels[part]) for part in chosen.split(64)]


def _plan(job: Job, network: nn.Module) -> prune.Plan:
    """By criterion and share of the MACs, by the widths of "Rethinking", or by those found in another ResNet."""
    options = job.options
    trace = prune.trace(network.eval(), job.desk.data.train_images[:2])
    criterion = str(options.get("criterion", "l1"))
    data = None if prune.CRITERIA[criterion].needs == "weights" else _scoring(job)
    scores = prune.score(trace, network, criterion, data=data, seed=job.desk.seed)
    if "carried_from" in options:
        other = published(int(options["carried_from"]))
        like = prune.trace(other, job.desk.data.train_images[:2])
        small = prune.plan(like, prune.score(like, other, criterion), budget=prune.Budget(macs=float(options["macs"])))
        return prune.plan_of_widths(trace, scores, carried(small, trace))
    if "widths" in options:
        return prune.plan_of_widths(trace, scores, RETHINKING[options["widths"]].widths())
    # Blocks may have gone before.
    example = job.desk.data.train_images[:1]
    budget = prune.Budget(macs=min(1.0, float(options["macs"]) * macs(job.base, example) / macs(network, example)))
    if options.get("search"):
        images = [x for x, _ in _scoring(job)]

        def fitness(small: nn.Module) -> float:
            fresh = prune.recalibrated(small, images)
            pairs = _scoring(job)
            right = sum(int((fresh(x).argmax(1) == y).sum()) for x, y in pairs)
            return right / sum(len(y) for _, y in pairs)

        search = prune.Evolution(population=12, generations=4, seed=job.desk.seed)
        with torch.no_grad():
            found = prune.evolve(trace, scores, network, fitness, budget=budget, search=search)
        # Every candidate is recalibrated and judged.
        share = 2 * float(options["macs"]) * macs(network, images[0][:1])
        job.desk.flops += round(2 * found.tried * sum(map(len, images)) * share)
        return found.plan
    return prune.plan(trace, scores, budget=budget, scope=options.get("scope", "global"))


def _pressed(job: Job, network: nn.Module) -> prune.Plan | None:
    """Train the whole network while what is to go is driven towards zero, as a recipe's ``sparsify`` does.

    Returns:
        The plan of the blocks that go, where the row asks for them.
    """
    asked = job.options["sparsify"]
    schedule = _with(job.whole, tuple((rate, max(1, round(n * job.factor))) for rate, n in asked["steps"]))
    steps = -(-len(job.desk.data.train_labels) // schedule.batch_size)
    trace = prune.trace(network.eval(), job.desk.data.train_images[:2])
    budget, strength = prune.Budget(macs=float(job.options["macs"])), float(asked["strength"])
    if asked["kind"] == "structures":
        found = prune.blocks(network, job.desk.data.train_images[:2]) if asked.get("blocks") else None
        scales = StructureScales(found or trace, strength=strength, rate=lambda step: schedule.rate(step // steps))
        scales.attach(network)
        job.desk.train(network, schedule, follower=scales)
        scales.fold(network)
        if found is None:
            return None
        return prune.plan_of_blocks(found, scales.at_zero(found))
    if asked["kind"] == "unit_gsm":
        plan = prune.plan(trace, prune.score(trace, network, "l2"), budget=budget)
        keep = sum(len(group.units) for group in trace.groups) - int(gone_units(trace, plan).sum())
        optimizer = UnitGSM(network, trace, schedule.steps[0][0], keep, float(asked["momentum"]), strength)
        job.desk.train(network, schedule, optimizer=optimizer)
        return None
    penalty = Sparsifier(
        trace,
        asked["kind"],
        lambda scores: prune.plan(trace, scores, budget=budget),
        strength=strength,
        calls=steps * schedule.epochs,
        epoch=steps,
    )
    job.desk.train(network, schedule, follower=penalty)
    return None


def _retrained(job: Job, model: nn.Module, masks: Masks) -> Outcome:
    masks.apply_(model)
    before = job.desk.accuracy(model)
    job.desk.train(model, job.schedule, keep=masks.hold)
    return Outcome(model, masks, before, {})


def _with(schedule: Schedule, steps: tuple[tuple[float, int], ...]) -> Schedule:
    return Schedule(steps, schedule.momentum, schedule.weight_decay, schedule.nesterov, schedule.batch_size)


def _train_loss(job: Job, model: nn.Module) -> torch.Tensor:
    data = job.desk.data
    return F.cross_entropy(model(data.train_images[:2048]), data.train_labels[:2048])


PROCEDURES: dict[str, Callable[[Job], Outcome]] = {
    "gsm": gsm,
    "han": han,
    "one_shot": one_shot,
    "random": random,
    "redrawn": redrawn,
    "gradual": gradual,
    "surgeon": surgeon,
    "surgery": surgery,
    "dsd": dsd,
    "ticket": ticket,
    "rounds_of_tickets": rounds_of_tickets,
    "channels": channels,
    "scratch": scratch,
}
"""Name in the YAML -> function."""
