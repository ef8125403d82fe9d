"""The training loop: steps under a cosine schedule, the best validation checkpoint kept."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from lightning.fabric import Fabric
from torch import Tensor, nn

from compress.data.images import Batch, ImageData, Split
from compress.data.loader import Feed
from compress.data.seeds import hash_seed
from compress.errors import TrainingError
from compress.recipe.schema import TrainRecipe
from compress.train.fabric import agree
from compress.train.layout import spoiled_by_channels_last
from compress.train.norms import adapt_statistics, freeze_statistics
from compress.train.ranks import all_finite, measured_alone
from compress.train.schedule import cosine, is_head, make_optimizer
from compress.train.tasks import TASKS, Task

if TYPE_CHECKING:
    from compress.train.checkpoint import Checkpoints
    from compress.train.log import Log

Loss = Callable[[nn.Module, Batch], Tensor]
"""(network, batch) -> scalar."""

Progress = Callable[[int, int, str], None]
"""Called with steps done, steps in all and what to show beside them."""

EVALUATION_BATCH = 256


@dataclass(frozen=True)
class Trainable:
    """What is trained and on what.

    Args:
        model: the network; trained in place.
        data: its `train` and `val` splits.
        loss: what is minimised; None for the task's own with the recipe's label smoothing.
        flops_per_image: FLOPs that one image costs, forward, backward and teacher together.
        seed: of everything drawn.
        helpers: what learns beside the network and is not part of it, such as a projection of a distilling loss.
    """

    model: nn.Module
    data: ImageData
    flops_per_image: float
    seed: int
    loss: Loss | None = None
    helpers: nn.Module | None = None

    @property
    def task(self) -> Task:
        return TASKS[self.data.task]


@dataclass(frozen=True)
class Fit:
    """What came of it: the chosen metric and all others of the kept checkpoint on `val`, steps and FLOPs spent."""

    val_accuracy: float
    steps: int
    training_flops: float
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
    """Optimiser steps that the recipe's epochs, its FLOPs or an explicit budget of FLOPs allow; at least one."""
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
    """Trains `task.model` in place and leaves it with the weights that were best on `val`, in eval mode.

    Args:
        task: network, data, loss.
        recipe: optimiser, schedule, length.
        fabric: device, precision and processes; each rank takes its part of every batch.
        progress: told after every step.
        budget: training FLOPs, instead of the recipe's length.
        checkpoints: where training goes on from, and what it leaves in case it is killed.
        log: told what each step gave.

    Raises:
        TrainingError: the loss is not finite, a data worker died, or the batch does not fall into equal parts.
    """
    return _Training(task, recipe, fabric, progress, budget, checkpoints, log).run()


def evaluate(model: nn.Module, data: ImageData, split: str, fabric: Fabric) -> dict[str, float]:
    """The task's metrics on one split, shares of 1, by this process alone."""
    model.to(fabric.device)
    found = _measured(model, data, data.splits[split], fabric.device)
    model.cpu()
    return found


def _measured(
    model: nn.Module, data: ImageData, split: Split, device: torch.device, rank: int = 0, ranks: int = 1
) -> dict[str, float]:
    """Metrics of one split, a part on each rank; gives the network its mode back."""
    task, modes = TASKS[data.task], [(module, module.training) for module in model.modules()]
    metrics = task.metrics(data.classes).to(device)
    if ranks == 1:
        measured_alone(metrics)
    dtype = next((p.dtype for p in model.parameters()), torch.float32)
    model.eval()
    own = torch.arange(rank, len(split), ranks)
    with torch.inference_mode():
        for start in range(0, len(own), EVALUATION_BATCH):
            batch = split.batch(own[start : start + EVALUATION_BATCH]).to(device)
            metrics.update(task.predict(model, batch.images.to(dtype)), batch.targets)
    for module, training in modes:
        module.training = training
    return metrics.compute()


class _Training:
    """One call of `fit`: what it holds, and a method for each thing that happens."""

    def __init__(
        self,
        task: Trainable,
        recipe: TrainRecipe,
        fabric: Fabric,
        progress: Progress,
        budget: float | None,
        checkpoints: Checkpoints | None,
        log: Log | None,
    ) -> None:
        self.task, self.recipe, self.fabric, self.progress = task, recipe, fabric, progress
        self.checkpoints, self.log = checkpoints, log if fabric.is_global_zero else None
        self.feed = Feed(
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
        if self.feed.size % parts:
            raise TrainingError(
                f"A batch of {self.feed.size} images does not fall into {fabric.world_size} process(es) x "
                f"{recipe.accumulate} accumulated part(s); make batch_size a multiple of {parts}."
            )
        self.total = steps_for(recipe, len(self.feed.split), task.flops_per_image, budget)
        self.every = max(1, math.ceil(self.total / recipe.evaluations))
        # Other ranks draw other dropout; the first draws what one process would.
        torch.manual_seed(hash_seed(task.seed, 7, *([fabric.global_rank] if fabric.global_rank else [])))
        self.channels_last = recipe.channels_last and not spoiled_by_channels_last(task.model, fabric.device)
        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        self.network = task.model.to(memory_format=layout)
        if recipe.batchnorm == "adapted":
            adapt_statistics(self.network.to(fabric.device), self.feed.split, fabric.device)
        own = task.helpers.parameters() if task.helpers is not None else ()
        self.optimizer = make_optimizer(self.network, recipe, own)
        self.rates = [group["lr"] for group in self.optimizer.param_groups]
        step: nn.Module = Step(self.network, task.loss or self._supervised, task.helpers)
        if recipe.compile:
            step = torch.compile(step)  # type: ignore[assignment]
        self.wrapped, self.stepped = fabric.setup(step, self.optimizer)
        agree(self.network)
        self.average = Average(self.network, recipe.ema) if recipe.ema else None
        self.kept = Kept(_copy(self.network))
        self.metrics: dict[str, float] = {}
        self.done = 0

    def run(self) -> Fit:
        notes = self.checkpoints.restore(self) if self.checkpoints is not None else ()
        if self.log is not None:
            self.log.begin(self.done)
        try:
            self._train()
        finally:
            if self.log is not None:
                self.log.end()
        self.network.load_state_dict(self.kept.state)
        self.network.cpu().eval()
        flops = self.done * self.feed.size * self.task.flops_per_image
        return Fit(self.kept.value, self.done, flops, self.kept.metrics, notes)

    def _train(self) -> None:
        """Steps until it is over, each told, logged and, now and then, left in a checkpoint."""
        clock = _Clock()
        self._set_modes()
        batches = self.feed.batches(self.done, self.total) if not self._over() else iter(())
        for batch in batches:
            loss = self._learn(batch)
            self.done += 1
            self._set_modes()
            evaluated = self.done % self.every == 0 or self.done == self.total
            if evaluated:
                self._evaluate()
            speed = clock.speed(len(batch) * self.fabric.world_size)
            shown = self.metrics.get(self.task.task.selects, 0.0)
            text = f"loss {loss:.3f}  val {100 * shown:.1f} %  {speed:.0f} images/s"
            self.progress(self.done, self.total, text)
            if self.log is not None:
                self.log.step(self.done, loss, self.optimizer.param_groups[0]["lr"], speed, self.metrics, evaluated)
            over = self._over()
            if self.checkpoints is not None and self.checkpoints.due(over):
                if self.log is not None:
                    self.log.flush()
                self.checkpoints.save(self)
            if over:
                break

    def _over(self) -> bool:
        patience = self.recipe.patience
        return self.done >= self.total or (patience is not None and self.kept.since >= patience)

    def _set_modes(self) -> None:
        """Train mode, with BatchNorm as the recipe asks for; until it is unfrozen the backbone's does not move."""
        self.wrapped.train()
        if self.recipe.batchnorm != "live" or self._head_alone():
            freeze_statistics(self.network)

    def _head_alone(self) -> bool:
        return self.done < self.recipe.freeze_epochs * self.feed.steps_an_epoch

    def _supervised(self, model: nn.Module, batch: Batch) -> Tensor:
        return self.task.task.loss(model, batch, self.recipe.label_smoothing)

    def _learn(self, batch: Batch) -> float:
        """One optimiser step; returns the mean loss of the images that this rank saw."""
        recipe, rate = self.recipe, cosine(self.done, self.total, self.recipe.warmup)
        for group, base in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = base * rate
        self.optimizer.zero_grad(set_to_none=True)
        parts, seen = batch.to(self.fabric.device, channels_last=self.channels_last).parts(recipe.accumulate), 0.0
        for k, part in enumerate(parts):
            with self.fabric.no_backward_sync(self.wrapped, enabled=k + 1 < len(parts)):
                loss = self.wrapped(part.images, part.targets, part.index, part.variant, part.soft) / len(parts)
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
        if self.average is not None:
            self.average.update(self.network)
        return seen

    def _check(self, loss: Tensor) -> None:
        if all_finite(loss):
            return
        if self.done == 0:
            raise TrainingError(
                "The loss is not finite before any update: the weights that training starts from, or the teacher, "
                "give NaN or infinity; train the stage before longer, or with a lower lr."
            )
        raise TrainingError(
            f"The loss is {float(loss.detach()):g} at step {self.done + 1} of {self.total}; "
            f"lower lr ({self.recipe.lr:g})."
        )

    def _evaluate(self) -> None:
        """Measures on `val` what would be kept: the averaged weights where there are some."""
        agree(self.network)
        fabric, state = self.fabric, None
        if self.average is not None:
            state = _copy(self.network)
            self.network.load_state_dict(self.average.state)
            agree(self.network)
        val = self.task.data.splits["val"]
        self.metrics = _measured(
            self.network, self.task.data, val, fabric.device, fabric.global_rank, fabric.world_size
        )
        self.kept.offer(self.network, self.task.task.selects, self.metrics)
        if state is not None:
            self.network.load_state_dict(state)


class Kept:
    """The best weights so far, and what they measured on `val`."""

    def __init__(self, state: dict[str, Tensor]) -> None:
        self.state, self.metrics, self.since = state, dict[str, float](), 0
        self.rank = (-1.0, -math.inf)

    @property
    def value(self) -> float:
        return self.rank[0]

    def offer(self, network: nn.Module, selects: str, metrics: dict[str, float]) -> None:
        """Takes the network's weights if they are no worse: by the metric, then by the loss where there is one."""
        rank = (metrics[selects], -metrics.get("loss", 0.0))
        self.since = 0 if rank > self.rank else self.since + 1
        if rank >= self.rank:
            self.rank, self.state, self.metrics = rank, _copy(network), metrics


class Average:
    """An exponential moving average of the weights; buffers that are no floats are the latest.

    The decay rises with the steps, min(decay, (1 + t) / (10 + t)), so that the start weighs little.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay, self.steps, self.state = decay, 0, _copy(network)

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        self.steps += 1
        share = 1 - min(self.decay, (1 + self.steps) / (10 + self.steps))
        for name, tensor in network.state_dict().items():
            if tensor.is_floating_point():
                self.state[name].lerp_(tensor, share)
            else:
                self.state[name].copy_(tensor)


class _Clock:
    """Images a second, over the last steps."""

    def __init__(self) -> None:
        self.last, self.rate = time.perf_counter(), 0.0

    def speed(self, images: int) -> float:
        now = time.perf_counter()
        seen = images / max(now - self.last, 1e-9)
        self.last, self.rate = now, 0.9 * self.rate + 0.1 * seen if self.rate else seen
        return self.rate


def _copy(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
