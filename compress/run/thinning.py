"""What a recipe's ``sparse`` trains: one function for each method, from a whole network to masks that it obeys."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from compress import cost, sparse
from compress.data import ImageData
from compress.data.seeds import hash_seed
from compress.models.norms import norms
from compress.models.weights import classifier_name, read_weights
from compress.recipe.schema import TrainRecipe
from compress.recipe.sparse import LAST_WEIGHTS, SparseRecipe
from compress.run.order import PRETRAINED
from compress.run.progress import Advance
from compress.run.scoring import drawn
from compress.run.training import train
from compress.run.transfer import started, started_from
from compress.run.workspace import Workspace
from compress.sparse import Keep, Masks
from compress.sparse.gsm import parameters_by_name
from compress.train import Fit, Trainable, evaluate
from compress.train.loop import OptimizerOf, steps_for
from compress.train.norms import adapt_statistics
from compress.train.schedule import cosine, make_optimizer
from compress.train.tasks import TASKS


@dataclass
class Thinning:
    """One network that is made sparse.

    Args:
        work: the run.
        asked: how.
        network: trained and whole; changed in place.
        advance: told of every step.
        flops, notes, metrics: what it came to so far.
    """

    work: Workspace
    asked: SparseRecipe
    network: nn.Module
    advance: Advance
    flops: float = 0.0
    notes: list[str] = field(default_factory=list)
    metrics: dict[str, float] = field(default_factory=dict)
    _phases: int = 0

    def keep(self) -> int:
        """Return how many weights stay."""
        asked = self.asked
        if asked.bytes is not None:
            return sparse.keep_for_bytes(self.network, asked.bytes)
        if asked.milliseconds is not None:
            keep, found = sparse.keep_for_milliseconds(self.network, self.work.example[:1], asked.milliseconds)
            self.notes.append(
                f"{keep} weights stay: {found:.3g} ms for one image with only nonzero weights multiplied, of "
                f"{asked.milliseconds:g} ms asked for."
            )
            return keep
        assert asked.ratio is not None
        return max(1, round(self.total() / asked.ratio))

    def total(self) -> int:
        """Return how many weights there are to speak of."""
        return sum(weight.numel() for weight in sparse.weights_of(self.network, self.asked.layers).values())

    def train(self, network: nn.Module, keep: Keep | None, phase: str) -> None:
        """Train one phase, as the procedures of ``compress.sparse`` ask for it."""
        self.fit(network, phase, held_by(keep))

    def fit(
        self,
        network: nn.Module,
        phase: str,
        optimizer: OptimizerOf,
        *,
        helpers: nn.Module | None = None,
        data: ImageData | None = None,
        change: Mapping[str, object] | None = None,
    ) -> Fit:
        """Train one phase with an optimizer of the method's own.

        Args:
            network: trained in place.
            phase: its name in this run.
            optimizer: makes the optimizer, and hooks to it what is kept.
            helpers: what a resumed training needs of the method.
            data: other than the target's.
            change: keys of the recipe that this phase has otherwise.
        """
        self._phases += 1
        device, data = self.work.fabric.device, data or self.work.target
        # Masks are put where the network will be.
        placed: OptimizerOf = lambda model, recipe: optimizer(model.to(device), recipe)  # noqa: E731
        last = {"evaluations": 1} if self.asked.method in LAST_WEIGHTS else {}
        recipe = self.asked.model_copy(update={**last, **(change or {})})
        flops = cost.training_flops(network, data.example(2))
        seed = self.work.recipe.seed + 30 + self._phases
        task = Trainable(network.requires_grad_(True), data, flops, seed, helpers=helpers, optimizer=placed)
        found = train(self.work, self.advance, f"sparse-{phase.replace(' ', '-')}", task, recipe)
        self.flops += found.training_flops
        return found

    def steps(self) -> int:
        """Return the optimizer steps of one phase."""
        flops = cost.training_flops(self.network, self.work.example)
        return steps_for(self.asked, len(self.work.target.splits["train"]), flops)

    def accuracy(self, network: nn.Module) -> float:
        """Return the metric that chooses, on validation."""
        found = evaluate(network, self.work.target, "val", self.work.fabric)
        return found[TASKS[self.work.target.task].selects]


def held_by(keep: Keep | None) -> OptimizerOf:
    """Return what makes the recipe's optimizer and hooks to it what is to be kept."""

    def made(network: nn.Module, recipe: TrainRecipe) -> Optimizer:
        optimizer = make_optimizer(network, recipe)
        if keep is not None:
            keep(network, optimizer)
        return optimizer

    return made


def _retrained(job: Thinning, masks: Masks, phase: str = "retrain") -> Masks:
    """Cut, say what that cost, and train what stays."""
    masks.apply_(job.network)
    job.metrics["val_accuracy_as_cut"] = job.accuracy(job.network)
    job.train(job.network, masks.hold, phase)
    return masks


def _gsm(job: Thinning) -> Masks:
    """Global sparse momentum; the cut is the end."""
    keep, asked = job.keep(), job.asked
    momentum = asked.momentum if "momentum" in asked.model_fields_set else 0.98

    steps = job.steps()
    travelled = asked.lr * sum(cosine(step, steps, asked.warmup) for step in range(steps))
    decay, weight_decay = asked.decay, asked.weight_decay
    if decay is None:
        decay = weight_decay * travelled / (1 - momentum)
    else:
        weight_decay = sparse.weight_decay_for(decay, travelled, momentum)

    def made(network: nn.Module, recipe: TrainRecipe) -> Optimizer:
        return sparse.GSM(network.named_parameters(), recipe.lr, keep, momentum, weight_decay)

    job.fit(job.network, "gsm", made, change={"evaluations": 1})
    before = job.metrics["val_accuracy_before_cut"] = job.accuracy(job.network)
    ready = sparse.readiness(parameters_by_name(job.network).values(), keep)
    masks = sparse.largest(job.network, keep)
    masks.apply_(job.network)
    job.metrics["survivors"], job.metrics["gap"] = float(ready.survivors), ready.gap
    after = job.accuracy(job.network)
    job.notes.append(
        f"GSM: {ready.survivors} weights were alive of {keep} that stay, the largest that went {ready.gap:.2g} of the "
        f"smallest that stayed; {100 * before:.1f} % before the cut, {100 * after:.1f} % after it, on validation. "
        f"Over the training a weight that learnt nothing shrank by e to the {decay:.2g} (sparse.decay)."
    )
    return masks


def _magnitude(job: Thinning) -> Masks:
    return _retrained(job, sparse.largest(job.network, job.keep(), job.asked.layers))


def _random(job: Thinning) -> Masks:
    """As many weights of each layer as by magnitude, at random places."""
    density = sparse.largest(job.network, job.keep(), job.asked.layers).density()
    return _retrained(job, sparse.at_random(job.network, density, job.work.recipe.seed, job.asked.layers))


def _scratch(job: Thinning) -> Masks:
    """The largest weights' places, under a network drawn anew."""
    masks = sparse.largest(job.network, job.keep(), job.asked.layers)
    sparse.redraw(job.network, masks, hash_seed(job.work.recipe.seed, 5))
    return _retrained(job, masks, "scratch")


def _iterative(job: Thinning) -> Masks:
    """The same share of what remains goes in each round, over the whole network, and what stays is trained."""
    keep, total, masks = job.keep(), job.total(), None
    for number in range(1, job.asked.rounds + 1):
        left = round(total * (keep / total) ** (number / job.asked.rounds))
        masks = _retrained(job, sparse.largest(job.network, left, job.asked.layers), f"round {number}")
    assert masks is not None
    return masks


def _gradual(job: Thinning) -> Masks:
    keep, asked = job.keep(), job.asked
    gradual = sparse.Gradual(keep, max(1, 2 * job.steps() // 3), asked.layers)

    def made(network: nn.Module, recipe: TrainRecipe) -> Optimizer:
        optimizer = make_optimizer(network, recipe)
        gradual.follow(network, optimizer)
        return optimizer

    job.fit(job.network, "gradual", made, helpers=gradual)
    masks = sparse.largest(job.network, keep, asked.layers)
    masks.apply_(job.network)
    return masks


def _two_of_four(job: Thinning) -> Masks:
    return _retrained(job, sparse.two_of_four(job.network))


def _han(job: Thinning) -> Masks:
    return sparse.prune_and_retrain(job.network, job.train, job.asked.quality, job.asked.layers)


class _Surgery(nn.Module):
    """Dynamic surgery as what accompanies a training, so that a checkpoint holds its state."""

    surgery: sparse.DynamicSurgery

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:  # type: ignore[override]
        return self.surgery.state_dict()

    def load_state_dict(self, state_dict: Mapping[str, Tensor], *args: Any, **kwargs: Any) -> Any:
        self.surgery.load_state_dict(state_dict)


def _dns(job: Thinning) -> Masks:
    asked, following = job.asked, _Surgery()
    stop = round(asked.stop * job.steps())

    def made(network: nn.Module, recipe: TrainRecipe) -> Optimizer:
        optimizer = make_optimizer(network, recipe)
        following.surgery = sparse.DynamicSurgery(
            network, optimizer, asked.c, gamma=asked.gamma, power=asked.power, stop=stop,
            seed=job.work.recipe.seed, layers=asked.layers,
        )  # fmt: skip
        return optimizer

    job.fit(job.network, "dns", made, helpers=following)
    masks = following.surgery.finish()
    cpu = Masks({name: mask.cpu() for name, mask in masks.kept.items()})
    cpu.apply_(job.network)
    return cpu


def _lobs(job: Thinning) -> Masks:
    """As many weights of each layer as by magnitude, chosen and mended by the layer's own second order.

    The statistics of norms are taken anew before the rest learns.
    """
    density = sparse.largest(job.network, job.keep(), job.asked.layers).density()
    split = job.work.target.splits["train"]
    images = drawn(split, job.asked.images, job.work.recipe.seed)
    masks = sparse.prune_layers(job.network, [b.images for b in images], density, layers=job.asked.layers)
    if norms(job.network):
        adapt_statistics(job.network, split, torch.device("cpu"))
    return _retrained(job, masks)


def _dsd(job: Thinning) -> Masks:
    def train_phase(network: nn.Module, keep: Keep | None, phase: str) -> None:
        rate = job.asked.lr * (1.0 if phase == "sparse" else 0.1)
        job.fit(network, phase, held_by(keep), change={"lr": rate})

    sparsity = 1 - job.keep() / job.total()
    return sparse.dense_sparse_dense(job.network, train_phase, sparsity, job.asked.layers)


def _ticket(job: Thinning) -> Masks:
    """Masks found by training, in rounds, and then trained from the weights that transfer began with."""
    recipe, work = job.work.recipe, job.work
    if recipe.source is not None:
        state = read_weights(work.out / PRETRAINED)
        began = started_from(recipe.model, work.target, recipe.seed, state, PRETRAINED)
    else:
        began = started(recipe.model, work.target, recipe.seed)
    asked, keep = job.asked, job.keep()
    if asked.rewind_epochs:
        job.fit(began, "rewind", held_by(None), change={"epochs": asked.rewind_epochs, "training_flops": None})
    if asked.found_by == "gsm":
        masks = _gsm(job)
        sparse.rewind(job.network, began.state_dict(), masks)
    else:
        rate = 1 - (keep / job.total()) ** (1 / asked.rounds)
        masks = sparse.find_ticket(job.network, began.state_dict(), job.train, rate, asked.rounds, asked.layers)
    job.train(job.network, masks.hold, "ticket")
    return masks


def _pacnet(job: Thinning) -> Masks:
    """Prune and allocate on the source, calibrate on the target what is free; the network ends dense."""
    recipe, work, asked = job.work.recipe, job.work, job.asked
    state = read_weights(work.out / PRETRAINED)
    source = started_from(recipe.model, work.source, recipe.seed, state, PRETRAINED)
    head = f"{classifier_name(source)}.*"
    names = [name for name in sparse.weights_of(source, asked.layers) if not name.startswith(head[:-1])]
    total = sum(weight.numel() for name, weight in sparse.weights_of(source).items() if name in names)
    masks = sparse.largest(source, round(total * job.keep() / job.total()), asked.layers, names)
    start = {name: p.detach().clone() for name, p, _ in masks.parameters(source)}
    masks.apply_(source)
    keep = sparse.together(masks.hold, sparse.pull_to(start, asked.pull))
    job.fit(source, "allocate", held_by(keep), data=work.source)
    target = started_from(recipe.model, work.target, recipe.seed, source.state_dict(), "after allocating")
    calibrate = sparse.calibrating(target, masks, (head,))
    job.fit(target, "calibrate", held_by(calibrate), change={"batchnorm": "frozen"})
    job.network.load_state_dict(target.state_dict())
    return masks


METHODS: dict[str, Callable[[Thinning], Masks]] = {
    "gsm": _gsm,
    "magnitude": _magnitude,
    "random": _random,
    "scratch": _scratch,
    "iterative": _iterative,
    "gradual": _gradual,
    "two_of_four": _two_of_four,
    "han": _han,
    "dns": _dns,
    "lobs": _lobs,
    "dsd": _dsd,
    "ticket": _ticket,
    "pacnet": _pacnet,
}
"""Name in a recipe -> method."""


def thinned(job: Thinning) -> Masks:
    """Carry out a recipe's method; the job's network obeys the masks afterwards, unless the method ends dense."""
    job.network = copy.deepcopy(job.network)
    masks = METHODS[job.asked.method](job)
    job.network.cpu().eval()
    with torch.no_grad():
        return Masks({name: mask.cpu() for name, mask in masks.kept.items()})
