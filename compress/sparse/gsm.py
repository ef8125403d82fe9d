"""Global Sparse Momentum SGD (Ding et al., NeurIPS 2019): a network learns to live on Q weights while it trains.

    T(w) = |dL/dw * w|         of this step's gradient
    B    = 1 where T(w) is among the Q largest of the whole network, else 0
    Z   <- beta Z + eta W + B * dL/dW
    W   <- W - alpha Z

What is not among the Q only decays, by about alpha eta / (1 - beta) a step, and may come back at any step. In the end
the Q largest weights stay and the rest, which is next to nothing by then, goes without fine-tuning.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from compress.errors import ModelError, TrainingError
from cpp_ext import keep_largest_products

RANKS = (2, 4)
"""Dimensions of the tensors that are thinned: linear layers and convolutions, as in the paper."""


class GSM(Optimizer):
    """SGD whose loss gradient reaches the Q weights of the whole network that it says most of.

    Biases and norms (any tensor that has not 2 or 4 dimensions) learn from every gradient and do not decay. Weights of
    all groups compete with each other; ``lr``, ``momentum`` and ``weight_decay`` are the group's.

    Several processes: data parallelism has summed the gradients when ``step`` runs, so every rank ranks the same
    numbers and finds the same Q. The ranking comes after the sum, therefore it saves no traffic; a communication hook
    that compresses gradients works, for what it hands out is again the same on all ranks. Sharded parameters are
    refused.

    ``step`` works in place on the gradients: afterwards ``.grad`` is B * dL/dW, from which ``active`` tells what
    learned.

    Args:
        params: tensors, named tensors or groups, as for any optimizer; ``model.named_parameters()`` gives names.
        lr: alpha.
        keep: Q, how many weights learn at each step.
        momentum: beta.
        weight_decay: eta; the pull to zero of what does not learn.

    Raises:
        ValueError: a number out of its range.
        ModelError: no tensor to thin, tensors on several devices or sharded, ``keep`` beyond the number of weights.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        keep: int,
        momentum: float = 0.98,
        weight_decay: float = 5e-4,
    ) -> None:
        for name, value, good in (
            ("lr", lr, lr >= 0),
            ("momentum", momentum, 0 <= momentum < 1),
            ("weight_decay", weight_decay, weight_decay >= 0),
        ):
            if not good:
                raise ValueError(f"GSM was given {name}={value}; momentum lies in [0, 1), the others at 0 or above.")
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "keep": keep})
        thin = [p for group in self.param_groups for p in group["params"] if thinned(p)]
        total = sum(p.numel() for p in thin)
        if not thin or not 0 < keep <= total:
            raise ModelError(
                f"GSM was to keep {keep} of the network's {total} weights; keep at least one and at most all."
            )
        if any(_sharded(p) for p in thin) or len({p.device for p in thin}) > 1:
            raise ModelError("GSM ranks all weights of a network at once; give it whole tensors of one device.")
        if len({group["keep"] for group in self.param_groups}) > 1:
            raise ModelError("GSM keeps one number of weights in all its groups; give `keep` once.")

    @property
    def keep(self) -> int:
        """Q."""
        return int(self.param_groups[0]["keep"])

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step; returns the closure's loss.

        Raises:
            TrainingError: a sparse gradient.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        with_gradient = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        thin = [p for p in with_gradient if thinned(p)]
        gradients = [_as_laid_out(p) for p in thin]
        keep_largest_products(gradients, [p.detach() for p in thin], min(self.keep, sum(p.numel() for p in thin)))
        for group in self.param_groups:
            members = [p for p in group["params"] if p.grad is not None]
            self._update([p for p in members if thinned(p)], group, group["weight_decay"])
            self._update([p for p in members if not thinned(p)], group, 0.0)
        return loss

    def _update(self, parameters: list[Tensor], group: dict[str, Any], decay: float) -> None:
        if not parameters:
            return
        for p in parameters:
            if "momentum_buffer" not in self.state[p]:
                self.state[p]["momentum_buffer"] = torch.zeros_like(p)
        buffers = [self.state[p]["momentum_buffer"] for p in parameters]
        torch._foreach_mul_(buffers, group["momentum"])
        torch._foreach_add_(buffers, [p.grad for p in parameters if p.grad is not None])
        if decay:
            torch._foreach_add_(buffers, parameters, alpha=decay)
        torch._foreach_add_(parameters, buffers, alpha=-group["lr"])


def _sharded(parameter: Tensor) -> bool:
    """Whether a tensor is spread over ranks; whoever has one has loaded that part of torch, which takes long."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(parameter, module.DTensor)


def thinned(parameter: Tensor) -> bool:
    """Whether GSM thins a tensor: it has 2 or 4 dimensions."""
    return parameter.dim() in RANKS


def active(optimizer: GSM) -> list[Tensor]:
    """Where the last step let the loss speak: a boolean tensor for each thinned parameter, in the groups' order.

    A weight whose gradient is exactly zero counts as passive, which changes nothing for it.
    """
    members = [p for group in optimizer.param_groups for p in group["params"] if thinned(p)]
    return [torch.zeros_like(p, dtype=torch.bool) if p.grad is None else p.grad != 0 for p in members]


def weight_decay_for(decay: float, travelled: float, momentum: float) -> float:
    """Return the weight decay at which a weight that learns nothing shrinks by e to the ``decay`` over a training.

    A step of rate r shrinks it, in the long run, by r eta / (1 - beta) of itself. So a schedule that is shortened, or
    runs at a lower rate, leaves weights alive that the long one would not, unless its weight decay is raised as much.
    The paper's schedules have 57.9 (LeNets on MNIST) and 8.0 (ResNet-56 on CIFAR-10).

    Args:
        decay: 8 leaves a three-thousandth of a weight.
        travelled: the sum of the learning rates of all steps.
        momentum: beta.
    """
    return decay * (1 - momentum) / travelled


def gsm_reference(
    weights: Sequence[Tensor],
    gradients: Sequence[Tensor],
    buffers: Sequence[Tensor],
    keep: int,
    settings: tuple[float, float, float],
) -> tuple[list[Tensor], list[Tensor]]:
    """One step said with a sort: new weights and new buffers. For tests.

    Args:
        weights: what is thinned; nothing else.
        gradients: of the loss.
        buffers: Z.
        keep: Q.
        settings: learning rate, momentum, weight decay.
    """
    lr, momentum, decay = settings
    products = torch.cat([(w * g).abs().flatten() for w, g in zip(weights, gradients, strict=True)])
    least = products.sort(descending=True).values[keep - 1]
    new_weights, new_buffers = [], []
    for w, g, z in zip(weights, gradients, buffers, strict=True):
        chosen = ((w * g).abs() >= least).to(g.dtype)
        new = momentum * z + decay * w + chosen * g
        new_buffers.append(new)
        new_weights.append(w - lr * new)
    return new_weights, new_buffers


def _as_laid_out(parameter: Tensor) -> Tensor:
    """The gradient of a parameter in the parameter's own layout and dtype, put in its place where it was another."""
    gradient = parameter.grad
    assert gradient is not None
    if gradient.layout != torch.strided:
        raise TrainingError("GSM ranks dense gradients; make the layer's gradient dense (sparse=False).")
    if gradient.stride() != parameter.stride() or gradient.dtype != parameter.dtype:
        gradient = torch.empty_like(parameter).copy_(gradient)
        parameter.grad = gradient
    return gradient.detach()


def parameters_by_name(model: nn.Module) -> dict[str, nn.Parameter]:
    """What GSM thins of a network."""
    return {name: p for name, p in model.named_parameters() if thinned(p)}
