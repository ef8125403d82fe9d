"""The training loop: steps under a cosine schedule, the best validation checkpoint kept."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from lightning.fabric import Fabric
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy

from compress.data.images import Batch, ImageData, Split, hash_seed
from compress.errors import MissingError, TrainingError
from compress.models import classifier_name
from compress.recipe import TrainRecipe

Loss = Callable[[nn.Module, Tensor, Tensor], Tensor]
"""(network, inputs (N, C, H, W), labels (N,)) -> scalar."""

Progress = Callable[[int, int, str], None]
"""Called with steps done, steps in all and what to show beside them."""

EVALUATIONS = 12


@dataclass(frozen=True)
class Trainable:
    """What is trained and on what.

    Args:
        model: the network; trained in place.
        data: its `train` and `val` splits.
        loss: what is minimised; None for cross-entropy with the recipe's label smoothing.
        flops_per_image: FLOPs that one image costs, forward, backward and teacher together.
        seed: of everything drawn.
    """

    model: nn.Module
    data: ImageData
    flops_per_image: float
    seed: int
    loss: Loss | None = None


@dataclass(frozen=True)
class Fit:
    """What came of it: the accuracy of the kept checkpoint on `val`, steps and FLOPs spent."""

    val_accuracy: float
    steps: int
    training_flops: float


def make_fabric(device: str = "auto", precision: str = "32-true") -> Fabric:
    """One process on one device. Raises MissingError when that device is not there."""
    if device == "cuda" and not torch.cuda.is_available():
        raise MissingError("device: cuda, but torch sees no GPU here; set device: auto or cpu.")
    return Fabric(accelerator=device, devices=1, precision=precision)  # type: ignore[arg-type]


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
) -> Fit:
    """Trains `task.model` in place and leaves it with the weights that were best on `val`, in eval mode.

    Args:
        task: network, data, loss.
        recipe: optimiser, schedule, length.
        fabric: device and precision.
        progress: told after every step.
        budget: training FLOPs, instead of the recipe's length.

    Raises:
        TrainingError: the loss is not finite.
    """
    split, batch = task.data.splits["train"], min(recipe.batch_size, len(task.data.splits["train"]))
    total = steps_for(recipe, len(split), task.flops_per_image, budget)
    torch.manual_seed(hash_seed(task.seed, 7))
    network = task.model.to(memory_format=torch.channels_last)
    optimizer = _optimizer(network, recipe)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: _cosine(s, total, recipe.warmup))
    wrapped, optimizer = fabric.setup(network, optimizer)
    loss_of = task.loss or _cross_entropy(recipe.label_smoothing)
    every = max(1, math.ceil(total / EVALUATIONS))
    best, state = (-1.0, -math.inf), _copy(network)
    network.train()
    accuracy = 0.0
    for step, (inputs, labels) in enumerate(_batches(split, recipe, task.seed, total), start=1):
        images = inputs.to(fabric.device, memory_format=torch.channels_last)
        loss = loss_of(wrapped, images, labels.to(fabric.device))
        if not bool(torch.isfinite(loss)):
            if step == 1:
                raise TrainingError(
                    "The loss is not finite before any update: the weights that training starts from, or the teacher, "
                    "give NaN or infinity; train the stage before longer, or with a lower lr."
                )
            raise TrainingError(
                f"The loss is {float(loss.detach()):g} at step {step} of {total}; lower lr ({recipe.lr:g})."
            )
        optimizer.zero_grad(set_to_none=True)
        fabric.backward(loss)
        optimizer.step()
        with warnings.catch_warnings():
            # Fabric wraps step(), which the scheduler takes for a missing call.
            warnings.simplefilter("ignore", UserWarning)
            schedule.step()
        if step % every == 0 or step == total:
            accuracy, validation_loss = _validate(network, task.data.splits["val"], fabric)
            if (accuracy, -validation_loss) >= best:
                best, state = (accuracy, -validation_loss), _copy(network)
        progress(step, total, f"loss {float(loss.detach()):.3f}  val {100 * accuracy:.1f} %")
    network.load_state_dict(state)
    network.cpu().eval()
    return Fit(best[0], total, total * batch * task.flops_per_image)


def evaluate(model: nn.Module, split: Split, fabric: Fabric) -> tuple[int, int]:
    """Right answers and images of one split."""
    model.to(fabric.device)
    accuracy, _ = _validate(model, split, fabric)
    model.cpu()
    return round(accuracy * len(split)), len(split)


def _validate(model: nn.Module, split: Split, fabric: Fabric) -> tuple[float, float]:
    """Top-1 accuracy and mean cross-entropy; gives the network its mode back."""
    was_training = model.training
    model.eval()
    metric, total = None, 0.0
    with torch.inference_mode():
        for inputs, labels in split.batches(256):
            logits = model(inputs.to(fabric.device, memory_format=torch.channels_last)).float()
            truth = labels.to(fabric.device)
            if metric is None:
                metric = MulticlassAccuracy(logits.shape[1], average="micro").to(fabric.device)
            metric.update(logits, truth)
            total += float(F.cross_entropy(logits, truth, reduction="sum"))
    model.train(was_training)
    assert metric is not None
    # The metric is float32; the count of right answers is exact.
    return round(float(metric.compute()) * len(split)) / len(split), total / len(split)


def _batches(split: Split, recipe: TrainRecipe, seed: int, total: int) -> Iterator[Batch]:
    step = epoch = 0
    while step < total:
        for batch in split.training_batches(recipe.batch_size, recipe.augment, seed, epoch):
            yield batch
            step += 1
            if step == total:
                return
        epoch += 1


def _cross_entropy(smoothing: float) -> Loss:
    def loss(model: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(model(inputs), labels, label_smoothing=smoothing)

    return loss


def _optimizer(model: nn.Module, recipe: TrainRecipe) -> torch.optim.Optimizer:
    """Weight decay for matrices only; `backbone_lr` scales the rate of everything but the classifier."""
    head = classifier_name(model) + "."
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups.setdefault((name.startswith(head), parameter.dim() > 1), []).append(parameter)
    settings: Sequence[dict[str, object]] = [
        {
            "params": parameters,
            "lr": recipe.lr * (1.0 if in_head else recipe.backbone_lr),
            "weight_decay": recipe.weight_decay if decays else 0.0,
        }
        for (in_head, decays), parameters in groups.items()
    ]
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(settings, lr=recipe.lr)
    return torch.optim.SGD(settings, lr=recipe.lr, momentum=recipe.momentum, nesterov=recipe.momentum > 0)


def _cosine(step: int, total: int, warmup: float) -> float:
    """Linear warm-up over a share of the steps, then half a cosine down to zero."""
    rising = max(1, round(warmup * total))
    if step < rising:
        return (step + 1) / rising
    return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, total - rising)))


def _copy(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
