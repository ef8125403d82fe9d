"""The training loop: steps under a cosine schedule, keeping the weights that are best on the validation split."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from lightning.fabric import Fabric
from torch import Tensor, nn
from torchmetrics import KLDivergence

from compress.data.images import Batch, ImageData, Split
from compress.data.loader import Feed
from compress.data.seeds import hash_seed
from compress.errors import TrainingError
from compress.recipe.schema import TrainRecipe
from compress.train.checkpoint import Checkpoints
from compress.train.fabric import agree
from compress.train.frozen import FrozenTrunk, frozen_trunk
from compress.train.layout import spoiled_by_channels_last
from compress.train.log import Log
from compress.train.norms import adapt_statistics, freeze_statistics
from compress.train.ranks import all_finite, measured_alone
from compress.train.schedule import cosine, is_head, make_optimizer
from compress.train.state import DIVERGENCE, BestWeights, MovingAverage, TrainingState, weights_of
from compress.train.tasks import TASKS, Task

Loss = Callable[[nn.Module, Batch], Tensor]
"""(network, batch) -> scalar."""

OptimizerOf = Callable[[nn.Module, TrainRecipe], torch.optim.Optimizer]
"""From a network and how it is trained to its optimizer, hooks included."""

Progress = Callable[[int, int, str], None]
"""Called with steps done, steps in all, and a text to show beside them."""

Seen = Callable[[Any, Batch], None]
"""Told what a network predicts for a batch, as its task has it."""

EVALUATION_BATCH = 256


@dataclass(frozen=True)
class Trainable:
    """What is trained, and on what.

    Args:
        model: the network, trained in place.
        data: the ``train`` and ``val`` splits are used.
        flops_per_image: FLOPs that one image costs, forward, backward and teacher together.
        seed: the seed of everything drawn.
        loss: what is minimised; None for the task's own, with the recipe's label smoothing.
        helpers: what learns beside the network and is not part of it, such as the projection of a distillation loss.
        optimizer: makes the optimizer, and hooks to it what the network is to keep; None for the recipe's own.
        from_start: whether the weights that it begins with are measured too, and kept where nothing later is better.
        answers: a teacher's logits for the images of ``val``, (N, classes), in their order; where they are given, the
            weights nearest to them are the best: the task's metric on few images is mostly chance.
    """

    model: nn.Module
    data: ImageData
    flops_per_image: float
    seed: int
    loss: Loss | None = None
    helpers: nn.Module | None = None
    optimizer: OptimizerOf | None = None
    from_start: bool = False
    answers: Tensor | None = None

    @property
    def task(self) -> Task:
        return TASKS[self.data.task]


@dataclass(frozen=True)
class Fit:
    """The result: the selecting metric and all others of the best weights on ``val``, steps and FLOPs spent.

    ``best_step`` says after how many steps these weights were measured; 0 for those that training began with.
    """

    val_accuracy: float
    steps: int
    training_flops: float
    best_step: int
    metrics: dict[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


class Step(nn.Module):
    """Network and loss as one module, so that what learns beside the network is wrapped with it."""

    def __init__(self, network: nn.Module, loss: Loss, helpers: nn.Module | None) -> None:
        super().__init__()
        self.network, self.loss, self.helpers = network, loss, helpers

    def forward(self, images: Tensor, targets: object, index: Tensor, variant: int, soft: Tensor | None) -> Tensor:
        return self.loss(self.network, Batch(images, targets, index, variant, soft))


def steps_for(recipe: TrainRecipe, images: int, flops_per_image: float, budget: float | None = None) -> int:
    """Optimizer steps that the recipe's epochs, its FLOPs or an explicit budget of FLOPs allow; at least one."""
    batch = min(recipe.batch_size, images)
    flops = budget if budget is not None else recipe.training_flops
    if flops is not None:
        return max(1, round(flops / (flops_per_image * batch)))
    assert recipe.epochs is not None
    return recipe.epochs * (images // batch)


def fit(
    task: Trainable,
    recipe: TrainRecipe,
    fabric: Fabric,
    progress: Progress,
    *,
    budget: float | None = None,
    checkpoints: Checkpoints | None = None,
    log: Log | None = None,
) -> Fit:
    """Train ``task.model`` in place and leave it with the weights that were best on ``val``, in eval mode.

    Args:
        task: network, data, loss.
        recipe: optimizer, schedule, length.
        fabric: device, precision and processes; each rank takes its part of every batch.
        progress: called after every step.
        budget: training FLOPs, instead of the recipe's length.
        checkpoints: where training resumes from, and what it saves in case it is killed.
        log: where the curves are written.

    Raises:
        TrainingError: the loss is not finite, a data worker died, or the batch cannot be split over equal parts.
    """
    return _Training(task, recipe, fabric, _Observers(progress, checkpoints, log), budget).run()


def evaluate(
    model: nn.Module, data: ImageData, split: str, fabric: Fabric, *, every: int = 1, seen: Seen | None = None
) -> dict[str, float]:
    """Measure the task's metrics on one split, as shares of 1, in this process alone.

    Args:
        model: the network.
        data: what holds the split.
        split: its name.
        fabric: the device.
        every: of so many images one is looked at.
        seen: told the predictions of each batch, with the batch.
    """
    model.to(fabric.device)
    images = data.splits[split]
    found = _measured(model, data, images, fabric.device, torch.arange(0, len(images), every), seen=seen)
    model.cpu()
    return found


def _measured(
    model: nn.Module,
    data: ImageData,
    split: Split,
    device: torch.device,
    own: Tensor,
    alone: bool = True,
    seen: Seen | None = None,
) -> dict[str, float]:
    """Measure the images ``own`` of one split, alone or with the other ranks; leave the network in its mode."""
    task, modes = TASKS[data.task], [(module, module.training) for module in model.modules()]
    metrics = task.metrics(data.classes).to(device)
    if alone:
        measured_alone(metrics)
    dtype = next((p.dtype for p in model.parameters()), torch.float32)
    model.eval()
    with torch.no_grad():
        for start in range(0, len(own), EVALUATION_BATCH):
            batch = split.batch(own[start : start + EVALUATION_BATCH]).to(device)
            predictions = task.predict(model, batch.images.to(dtype))
            metrics.update(predictions, batch.targets)
            if seen is not None:
                seen(predictions, batch)
    for module, training in modes:
        module.training = training
    return metrics.compute()


@dataclass(frozen=True)
class _Observers:
    """Who is told about every step."""

    progress: Progress
    checkpoints: Checkpoints | None
    log: Log | None


class _Training:
    """One call of ``fit``: its state, what a step needs, and a method for each thing that happens."""

    def __init__(
        self, task: Trainable, recipe: TrainRecipe, fabric: Fabric, observers: _Observers, budget: float | None
    ) -> None:
        self.task, self.recipe, self.fabric, self.observers = task, recipe, fabric, observers
        self.log = observers.log if fabric.is_global_zero else None
        self.feed = _feed(task, recipe, fabric)
        total = steps_for(recipe, len(self.feed.split), task.flops_per_image, budget)
        self.every = max(1, math.ceil(total / recipe.evaluations))
        # Each rank draws other dropout; rank 0 draws what a single process would.
        torch.manual_seed(hash_seed(task.seed, 7, *([fabric.global_rank] if fabric.global_rank else [])))
        self.channels_last = recipe.channels_last and not spoiled_by_channels_last(task.model, fabric.device)
        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        self.network = task.model.to(memory_format=layout)
        if recipe.batchnorm == "adapted":
            adapt_statistics(self.network.to(fabric.device), self.feed.split, fabric.device)
        helpers = task.helpers.parameters() if task.helpers is not None else ()
        own = task.optimizer
        optimizer = make_optimizer(self.network, recipe, helpers) if own is None else own(self.network, recipe)
        self.rates = [group["lr"] for group in optimizer.param_groups]
        step: nn.Module = Step(self.network, task.loss or self._supervised, task.helpers)
        if recipe.compile:
            step = torch.compile(step)  # type: ignore[assignment]
        self.wrapped, self.stepped = fabric.setup(step, optimizer)
        self.frozen: FrozenTrunk | None = None
        agree(self.network)
        self.state = TrainingState(
            network=self.network,
            helpers=task.helpers,
            optimizer=optimizer,
            best=BestWeights(self.network, task.task.selects),
            average=MovingAverage(self.network, recipe.ema) if recipe.ema else None,
            total=total,
            seed=task.seed,
            device=fabric.device,
            rank=fabric.global_rank,
        )

    def run(self) -> Fit:
        state, checkpoints = self.state, self.observers.checkpoints
        notes = checkpoints.restore(state) if checkpoints is not None else ()
        if self.log is not None:
            self.log.begin(state.done)
        try:
            self._train()
        finally:
            if self.log is not None:
                self.log.end()
        self.network.load_state_dict(state.best.weights)
        self.network.cpu().eval()
        flops = state.done * self.feed.size * self.task.flops_per_image
        return Fit(state.best.value, state.done, flops, state.best.step, state.best.metrics, notes)

    def _train(self) -> None:
        """Step until it is over; report and log each step, and leave a checkpoint now and then."""
        state, checkpoints, clock = self.state, self.observers.checkpoints, _Clock()
        if self._head_alone() and self._reads_once():
            self.frozen = frozen_trunk(self.network, self.feed.split, self.fabric.device)
        if self.task.from_start and not state.done:
            self._evaluate()
            if self.log is not None:
                self.log.start(state.metrics)
        self._set_modes()
        batches = self.feed.batches(state.done, state.total) if not self._over() else iter(())
        for batch in batches:
            loss = self._learn(batch)
            state.done += 1
            if not self._head_alone():
                self.frozen = None
            self._set_modes()
            evaluated = state.done % self.every == 0 or state.done == state.total
            if evaluated:
                self._evaluate()
            speed = clock.speed(len(batch) * self.fabric.world_size)
            shown = state.metrics.get(self.task.task.selects, 0.0)
            text = f"loss {loss:.3f}  val {100 * shown:.1f} %  {speed:.0f} images/s"
            self.observers.progress(state.done, state.total, text)
            if self.log is not None:
                lr = state.optimizer.param_groups[0]["lr"]
                self.log.step(state.done, loss, lr, speed, state.metrics, evaluated)
            over = self._over()
            if checkpoints is not None and checkpoints.due(over):
                if self.log is not None:
                    self.log.flush()
                checkpoints.save(state)
            if over:
                break

    def _over(self) -> bool:
        patience = self.recipe.patience
        return self.state.done >= self.state.total or (patience is not None and self.state.best.since >= patience)

    def _set_modes(self) -> None:
        """Set train mode, with BatchNorm as the recipe asks; a frozen backbone's statistics do not move."""
        self.wrapped.train()
        if self.recipe.batchnorm != "live" or self._head_alone():
            freeze_statistics(self.network)

    def _head_alone(self) -> bool:
        return self.state.done < self.recipe.freeze_epochs * self.feed.steps_an_epoch

    def _reads_once(self) -> bool:
        """Tell whether the trunk would read the same images in every epoch, for labels alone, in this process alone."""
        task, recipe = self.task, self.recipe
        plain = recipe.augment == "none" and not (recipe.mixup or recipe.cutmix)
        # An optimizer of one's own may move the trunk by more than gradients, as dynamic surgery does.
        alone = task.loss is None and task.helpers is None and task.optimizer is None and self.fabric.world_size == 1
        return plain and alone and task.task.name == "classification" and not hasattr(self.network, "backbone")

    def _supervised(self, model: nn.Module, batch: Batch) -> Tensor:
        return self.task.task.loss(model, batch, self.recipe.label_smoothing)

    def _learn(self, batch: Batch) -> float:
        """Do one optimizer step; return the mean loss of this rank's images."""
        recipe, rate = self.recipe, cosine(self.state.done, self.state.total, self.recipe.warmup)
        for group, base in zip(self.state.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = base * rate
        self.state.optimizer.zero_grad(set_to_none=True)
        parts, seen = batch.to(self.fabric.device, channels_last=self.channels_last).parts(recipe.accumulate), 0.0
        for k, part in enumerate(parts):
            with self.fabric.no_backward_sync(self.wrapped, enabled=k + 1 < len(parts)):
                loss = self._loss_of(part) / len(parts)
                self._check(loss)
                self.fabric.backward(loss)
            seen += float(loss.detach())
        if self._head_alone():
            for name, parameter in self.network.named_parameters():
                if not is_head(self.network, name):
                    parameter.grad = None
        if recipe.clip:
            self.fabric.clip_gradients(self.wrapped, self.stepped, max_norm=recipe.clip, error_if_nonfinite=False)
        self.stepped.step()
        if self.state.average is not None:
            self.state.average.update(self.network)
        return seen

    def _loss_of(self, part: Batch) -> Tensor:
        if self.frozen is not None:
            with self.fabric.autocast():
                return self._supervised(self.frozen.head, self.frozen.read(part))
        found: Tensor = self.wrapped(part.images, part.targets, part.index, part.variant, part.soft)
        return found

    def _check(self, loss: Tensor) -> None:
        if all_finite(loss):
            return
        if self.state.done == 0:
            raise TrainingError(
                "The loss is not finite before any update: the weights that training starts from, or the teacher, "
                "give NaN or infinity; train the stage before longer, or with a lower lr."
            )
        raise TrainingError(
            f"The loss is {float(loss.detach()):g} at step {self.state.done + 1} of {self.state.total}; "
            f"lower lr ({self.recipe.lr:g})."
        )

    def _evaluate(self) -> None:
        """Measure on ``val`` what would be kept: the averaged weights where there are some."""
        agree(self.network)
        fabric, state, trained = self.fabric, self.state, None
        if state.average is not None:
            trained = weights_of(self.network)
            self.network.load_state_dict(state.average.weights)
            agree(self.network)
        val = self.task.data.splits["val"]
        own = torch.arange(fabric.global_rank, len(val), fabric.world_size)
        state.metrics = self._measure(val, own)
        state.best.offer(self.network, state.metrics, state.done)
        if trained is not None:
            self.network.load_state_dict(trained)

    def _measure(self, val: Split, own: Tensor) -> dict[str, float]:
        """Measure the images ``own`` with the other ranks: the task's metrics, and how near to the answers given."""
        device, alone, answers = self.fabric.device, self.fabric.world_size == 1, self.task.answers
        if answers is None:
            return _measured(self.network, self.task.data, val, device, own, alone)
        expected, divergence = answers.to(device).log_softmax(1), KLDivergence(log_prob=True).to(device)
        if alone:
            measured_alone(divergence)

        def compare(predictions: Tensor, batch: Batch) -> None:
            divergence.update(expected[batch.index], predictions.float().log_softmax(1))

        found = _measured(self.network, self.task.data, val, device, own, alone, compare)
        return {**found, DIVERGENCE: float(divergence.compute())}


def _feed(task: Trainable, recipe: TrainRecipe, fabric: Fabric) -> Feed:
    """The batches of this rank; raise TrainingError unless a batch falls into equal parts."""
    feed = Feed(
        task.data.splits["train"],
        recipe.batch_size,
        recipe.augment,
        task.seed,
        workers=recipe.workers,
        variants=recipe.augment_variants,
        mixup=recipe.mixup,
        cutmix=recipe.cutmix,
        classes=len(task.data.classes),
        rank=fabric.global_rank,
        ranks=fabric.world_size,
        pin=fabric.device.type == "cuda",
    )
    parts = fabric.world_size * recipe.accumulate
    if feed.size % parts:
        raise TrainingError(
            f"A batch of {feed.size} images cannot be split over {fabric.world_size} process(es) x "
            f"{recipe.accumulate} accumulated part(s); make batch_size a multiple of {parts}."
        )
    return feed


class _Clock:
    """Images per second, averaged over the last steps."""

    def __init__(self) -> None:
        self.last, self.rate = time.perf_counter(), 0.0

    def speed(self, images: int) -> float:
        now = time.perf_counter()
        seen = images / max(now - self.last, 1e-9)
        self.last, self.rate = now, 0.9 * self.rate + 0.1 * seen if self.rate else seen
        return self.rate
