"""The proof: a network that is cut equals the same network that is masked."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from compress.errors import PlanError
from compress.prune.planning import Plan
from compress.prune.rules import tensors
from compress.prune.surgery import apply, mask

FORWARD_LIMIT = 1e-10
TRAIN_LIMIT = 1e-8


class Proof(BaseModel):
    """Largest relative errors of the cut network against the masked one, in float64."""

    model_config = ConfigDict(frozen=True)
    eval_forward: float
    train_forward: float
    train_gradient: float

    @property
    def worst(self) -> float:
        return max(self.eval_forward, self.train_forward, self.train_gradient)


def check(model: nn.Module, plan: Plan, *example_inputs: Tensor, seed: int = 0) -> Proof:
    """Compares `apply` with `mask` in float64: outputs in eval, outputs and gradients in train.

    Args:
        model: the dense network; it is not changed. Its BatchNorm statistics are randomised in a copy, so
            that no equality holds by chance.
        plan: the plan to prove.
        example_inputs: a batch; at least 8 images keep BatchNorm's batch statistics well conditioned.
        seed: of the statistics and of the input noise.

    Raises:
        PlanError: the plan is not legal, or an error is above 1e-10 (eval) or 1e-8 (train).
    """
    generator = torch.Generator().manual_seed(seed)
    # Every gradient is compared, also those of parameters that the user has frozen.
    dense = _without_noise(copy.deepcopy(model).double().cpu()).requires_grad_(True)
    _randomise_norms(dense, generator)
    cut, masked = apply(dense, plan), mask(dense, plan)
    inputs = [t.detach().cpu().double() for t in example_inputs]
    inputs = [t + 0.1 * torch.randn(t.shape, dtype=t.dtype, generator=generator) for t in inputs]
    with torch.no_grad():
        eval_forward = _error(_run(cut.eval(), inputs), _run(masked.eval(), inputs))
    train_forward, train_gradient = _training_errors(cut, masked, plan, inputs, generator)
    proof = Proof(eval_forward=eval_forward, train_forward=train_forward, train_gradient=train_gradient)
    if eval_forward > FORWARD_LIMIT or max(train_forward, train_gradient) > TRAIN_LIMIT:
        raise PlanError(
            f"The cut network differs from the masked one (eval {eval_forward:.1e}, train {train_forward:.1e}, "
            f"gradient {train_gradient:.1e}; limits {FORWARD_LIMIT:g} and {TRAIN_LIMIT:g}); "
            "this is a fault of the trace, please report the model."
        )
    return proof


def _training_errors(
    cut: nn.Module, masked: nn.Module, plan: Plan, inputs: list[Tensor], generator: torch.Generator
) -> tuple[float, float]:
    """Train mode, or eval mode where a norm would see a single value a channel."""
    train = all(len(t) > 1 for t in inputs)
    outputs = [_run(net.train(train), inputs) for net in (cut, masked)]
    weights = [torch.randn(t.shape, dtype=t.dtype, generator=generator) for t in outputs[1]]
    for out in outputs:
        torch.stack([(o * w).sum() for o, w in zip(out, weights, strict=True)]).sum().backward()
    forward = _error(*outputs)
    expected: dict[str, Tensor] = {}
    for name, parameter in masked.named_parameters():
        if parameter.grad is not None:
            grad = parameter.grad
            for d in range(grad.dim()):
                grad = grad.index_select(d, torch.from_numpy(plan.kept_indices((name, d), grad.shape[d])))
            expected[name] = grad
    got = {name: p.grad for name, p in cut.named_parameters() if p.grad is not None}
    if set(got) != set(expected):
        raise PlanError("The cut network trains other parameters than the masked one; please report the model.")
    scale = max((float(g.abs().max()) for g in expected.values() if g.numel()), default=0.0)
    # A gradient that is zero but for rounding is measured against the network's largest one.
    gradient = max((_difference(got[n], g, 1e-3 * scale) for n, g in expected.items()), default=0.0)
    return forward, gradient


def _run(model: Callable[..., object], inputs: list[Tensor]) -> list[Tensor]:
    return tensors(model(*inputs))


def _error(left: list[Tensor], right: list[Tensor]) -> float:
    return max(_difference(a, b, 0.0) for a, b in zip(left, right, strict=True))


def _difference(value: Tensor, reference: Tensor, floor: float) -> float:
    value, reference = value.detach(), reference.detach()
    if not bool(torch.isfinite(reference).all()) or not bool(torch.isfinite(value).all()):
        return float("inf")
    scale = max(float(reference.abs().max()) if reference.numel() else 0.0, floor, 1e-30)
    return float((value - reference).abs().max()) / scale if reference.numel() else 0.0


def _without_noise(model: nn.Module) -> nn.Module:
    """Turns off dropout and stochastic depth, which no two networks draw alike."""
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd) or type(module).__name__ == "StochasticDepth":
            setattr(module, "p", 0.0)  # noqa: B010  (typed as a submodule by torch)
        if isinstance(module, nn.MultiheadAttention):
            module.dropout = 0.0
    return model


def _randomise_norms(model: nn.Module, generator: torch.Generator) -> None:
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._NormBase) and module.running_mean is not None:
            mean, var = module.running_mean, module.running_var
            assert var is not None
            mean.add_(0.1 * torch.randn(mean.shape, dtype=mean.dtype, generator=generator))
            var.mul_(0.5 + torch.rand(var.shape, dtype=var.dtype, generator=generator))
