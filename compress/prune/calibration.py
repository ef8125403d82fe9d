"""Calibration: how batches of the user's run through a network that is only looked at, and what loss they have."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from compress.errors import PlanError
from compress.prune.architecture import architecture_hash, named_tensors
from compress.prune.attention import substitute
from compress.prune.probe import clone
from compress.prune.rules import tensors
from compress.prune.units import Trace

Forward = Callable[..., Any]
Loss = Callable[[Any, Any], Tensor]
"""From a network's outputs and a batch's targets (None where it has none) to the mean loss of its images."""


@dataclass(frozen=True)
class CalibrationBatch:
    """What a network is fed, what it should answer, and how many images there are."""

    inputs: Any
    targets: Any
    images: int


def batches(data: Iterable[Any] | None) -> Iterator[CalibrationBatch]:
    """Batches as they come: inputs alone, or pairs of inputs and targets; a tensor of images is one batch.

    Raises:
        PlanError: there is none, or one without a tensor.
    """
    found = False
    for given in [data] if isinstance(data, Tensor) else data or ():
        inputs, targets = given if isinstance(given, tuple | list) and len(given) == 2 else (given, None)
        first = next((t for t in tensors(inputs) if t.dim()), None)
        if first is None or not len(first):
            raise PlanError(f"A batch is {type(inputs).__name__} without images; give tensors of images, images first.")
        found = True
        # A list of images, as detectors take, is as many images as it is long.
        yield CalibrationBatch(inputs, targets, len(inputs) if isinstance(inputs, list) else len(first))
    if not found:
        raise PlanError("There is no batch in the data; give at least one batch of images.")


def run(network: nn.Module, batch: CalibrationBatch, forward: Forward | None = None) -> Any:
    """The network's outputs for one batch. Attention takes the way that can be derived twice."""
    with sdpa_kernel(SDPBackend.MATH):
        return network(batch.inputs) if forward is None else forward(network, batch.inputs)


def answers(outputs: Any) -> Tensor:
    """The one tensor of class scores, classes second, that a network gives.

    Raises:
        PlanError: it gives something else.
    """
    if isinstance(outputs, Mapping):
        outputs = outputs.get("out", outputs.get("logits", outputs))
    found = [t for t in tensors(outputs) if t.is_floating_point()]
    if len(found) != 1 or found[0].dim() < 2 or found[0].shape[1] < 2:
        shapes = ", ".join(str(tuple(t.shape)) for t in found[:3]) or "no numbers"
        raise PlanError(
            f"The network gives {shapes}, not the scores of classes; give loss=, a function of its outputs."
        )
    return found[0]


def default_loss(outputs: Any, targets: Any, generator: torch.Generator) -> Tensor:
    """Mean cross entropy of class scores [images, classes, ...] against whatever targets there are.

    Whole numbers are labels (255 and negative ones are left out); numbers of the scores' shape are a teacher's scores.
    Without targets it is the sum of an image's scores times numbers drawn from a normal distribution: against its own
    answers a network has no slope, but the mean square of the slopes of such sums is the curvature of the squared
    change of its scores. (Labels drawn from its answers would give that of the divergence, but of a network that is
    sure of itself hardly any image has a slope then.)
    """
    scores = answers(outputs)
    if targets is None:
        drawn = torch.randn(scores.shape, generator=generator).to(scores)
        return (scores * drawn).sum(1).mean()
    if not isinstance(targets, Tensor):
        raise PlanError(
            f"The targets are {type(targets).__name__}, not a tensor; give loss=, a function that takes them."
        )
    if targets.is_floating_point():
        if targets.shape != scores.shape:
            raise PlanError(
                f"The targets have shape {tuple(targets.shape)}, the network's scores {tuple(scores.shape)}; "
                "give labels, a teacher's scores or loss=."
            )
        return F.cross_entropy(scores, targets.softmax(1))
    labels = targets.long()
    left_out = (labels < 0) | (labels == IGNORED)
    highest = int(labels.masked_fill(left_out, 0).max()) if labels.numel() else 0
    if labels.shape != (scores.shape[0], *scores.shape[2:]) or highest >= scores.shape[1]:
        raise PlanError(
            f"The labels have shape {tuple(labels.shape)} and go up to {highest}, the network's scores have shape "
            f"{tuple(scores.shape)}; give one label below {scores.shape[1]} for each of its answers."
        )
    return F.cross_entropy(scores, labels.masked_fill(left_out, IGNORED), ignore_index=IGNORED)


IGNORED = 255
"""The label of what is not to be learnt, in masks."""


def part(value: Any, index: Sequence[int], images: int) -> Any:
    """Some of a batch's images: of everything in a nest that is as long as there are images."""
    if isinstance(value, Tensor):
        return value[torch.tensor(index, device=value.device)] if value.dim() and len(value) == images else value
    if isinstance(value, list) and len(value) == images:
        return [value[i] for i in index]
    if isinstance(value, list | tuple):
        return type(value)(part(entry, index, images) for entry in value)
    if isinstance(value, Mapping):
        return {key: part(entry, index, images) for key, entry in value.items()}
    return value


@dataclass(frozen=True)
class Copy:
    """A network to run that shares the weights of the user's: its modes, hooks and gradients are its own.

    Args:
        network: in eval mode, attention substituted as a cut would; nothing asks for a gradient.
        parameters: its parameters by each of their names.
    """

    network: nn.Module
    parameters: Mapping[str, nn.Parameter]

    @classmethod
    def of(cls, trace: Trace, model: nn.Module) -> Copy:
        """Raises PlanError where the trace is another network's."""
        if architecture_hash(model) != trace.architecture:
            raise PlanError("The trace is another network's; trace the network that is to be scored.")
        memo: dict[int, Any] = {}
        for parameter in model.parameters():
            memo[id(parameter)] = nn.Parameter(parameter.detach(), requires_grad=False)
        network = clone(model, memo)
        modules = dict(network.named_modules(remove_duplicate=False))
        for path, name in trace.substitutions.items():
            substitute(modules[path], name)
        own = named_tensors(network.eval())
        return cls(network, {name: tensor for name, tensor in own.items() if isinstance(tensor, nn.Parameter)})


def finite(loss: Any, number: int) -> Tensor:
    """`loss`; raises PlanError unless it is one finite number."""
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        shown = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
        raise PlanError(f"The loss is {shown}; give a function that returns one number, the mean over the images.")
    if not bool(torch.isfinite(loss)):
        raise PlanError(
            f"The loss of batch {number} is {float(loss):g}; check its images, its targets and the weights."
        )
    return loss.reshape(())
