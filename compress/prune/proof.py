"""The proof: a network that is cut equals the same network that is masked."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from compress.errors import PlanError
from compress.prune.determinism import Repeatable, TooFewValuesError
from compress.prune.planning import Plan
from compress.prune.probe import Forward
from compress.prune.reference import KeptStatistics, kept_by_tensor
from compress.prune.rules import tensors
from compress.prune.surgery import apply, mask_

FORWARD_LIMIT = 1e-10
TRAIN_LIMIT = 1e-8

KeptIndices = Mapping[int, Mapping[int, Tensor]]
"""id of a tensor -> dimension -> the indices that stay."""


class Proof(BaseModel):
    """Largest relative errors of the cut network against the masked one, in float64.

    Args:
        eval_forward: of the outputs in eval mode.
        train_forward: of the outputs in train mode.
        train_gradient: of the gradients of all parameters in train mode.
        train_mode: False if batch statistics would have come from too few values to be compared; the train figures
            were then taken with BatchNorms in eval mode.
    """

    model_config = ConfigDict(frozen=True)
    eval_forward: float
    train_forward: float
    train_gradient: float
    train_mode: bool = True

    @property
    def worst(self) -> float:
        return max(self.eval_forward, self.train_forward, self.train_gradient)


def check(model: nn.Module, plan: Plan, *example_inputs: Any, seed: int = 0, forward: Forward | None = None) -> Proof:
    """Compare ``apply`` with ``mask`` in float64: outputs in eval, outputs and gradients in train.

    The masked network's layer, RMS and group norms take their statistics over the channels that stay; in both networks
    whatever is drawn at random is replaced by its mean.

    Args:
        model: the dense network; it is not changed. In a copy the statistics and each constant parameter (such as a
            head that starts at zero) are randomised, so that no equality holds by chance.
        plan: the plan to prove.
        example_inputs: a batch: tensors, or lists, tuples and dictionaries of them; noise is added to floating ones.
            If a BatchNorm gets fewer than 16 values per channel from it, BatchNorms stay in eval mode.
        seed: the seed of all that is random here.
        forward: called as ``forward(network, *inputs)`` instead of ``network(*inputs)``, to compare a part of the
            network such as a detector's backbone.

    Raises:
        PlanError: the plan is not legal, the cut network does not run, or an error is above 1e-10 (eval) or 1e-8
            (train).
    """
    generator = torch.Generator().manual_seed(seed)
    # Every gradient is compared, also those of parameters that the user has frozen.
    dense = copy.deepcopy(model).cpu().double().requires_grad_(True)
    _randomise(dense, generator)
    inputs = [_noisy(value, generator) for value in example_inputs]
    run = _Run(forward or (lambda network, *values: network(*values)), inputs, seed)
    # Masking in place: there are never two networks of full size beside the user's.
    cut = apply(dense, plan)
    expected = _expected(run, mask_(dense, plan), plan)
    del dense
    proof = _compared(run, cut, expected)
    if proof.eval_forward > FORWARD_LIMIT or max(proof.train_forward, proof.train_gradient) > TRAIN_LIMIT:
        raise PlanError(
            f"The cut network differs from the masked one (eval {proof.eval_forward:.1e}, "
            f"train {proof.train_forward:.1e}, gradient {proof.train_gradient:.1e}; "
            f"limits {FORWARD_LIMIT:g} and {TRAIN_LIMIT:g}); this is a fault of the trace, please report the model."
        )
    return proof


@dataclass(frozen=True)
class _Trained:
    """What one training step computes: its outputs, and each gradient by its parameter's name."""

    outputs: list[Tensor]
    gradients: dict[str, Tensor]


@dataclass(frozen=True)
class _Run:
    """How each of the networks is run: the same way, on the same inputs."""

    forward: Forward
    inputs: list[Any]
    seed: int

    def evaluated(
        self, network: nn.Module, reference: KeptStatistics | None = None, *, batch_statistics: bool
    ) -> list[Tensor]:
        """Outputs in eval mode."""
        with torch.no_grad(), reference or nullcontext(), Repeatable(batch_statistics):
            return self._outputs(network.eval())

    def trained(
        self,
        network: nn.Module,
        kept: KeptIndices | None = None,
        reference: KeptStatistics | None = None,
        *,
        batch_statistics: bool,
    ) -> _Trained:
        """Outputs in train mode and the gradients of a random weighting of them, cut down to ``kept``."""
        # Recomputed activations (checkpointing) need the modes in the backward pass too.
        with reference or nullcontext(), Repeatable(batch_statistics):
            outputs = self._outputs(network.train())
            generator = torch.Generator().manual_seed(self.seed + 1)
            loss = torch.zeros((), dtype=torch.float64)
            for out in outputs:
                weights = torch.randn(out.shape, dtype=torch.float64, generator=generator)
                if out.requires_grad:
                    loss = loss + (out * weights).sum()
            if loss.requires_grad:
                loss.backward()
        gradients: dict[str, Tensor] = {}
        for name, parameter in network.named_parameters():
            gradient, parameter.grad = parameter.grad, None
            if gradient is not None:
                for d, index in (kept or {}).get(id(parameter), {}).items():
                    gradient = gradient.index_select(d, index)
                gradients[name] = gradient
        return _Trained([out.detach() for out in outputs], gradients)

    def _outputs(self, network: nn.Module) -> list[Tensor]:
        # What is drawn in a way unknown to Repeatable is at least drawn alike.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            # A network may write into its inputs.
            return tensors(self.forward(network, *copy.deepcopy(self.inputs)))


@dataclass(frozen=True)
class _Expected:
    """What the masked network computes, and whether its BatchNorms could train."""

    evaluated: list[Tensor]
    trained: _Trained
    train_mode: bool


def _expected(run: _Run, masked: nn.Module, plan: Plan) -> _Expected:
    """Run the masked network; raise PlanError where it does not run in double precision."""
    reference, kept = KeptStatistics(masked, plan), kept_by_tensor(masked, plan)

    def computed(train_mode: bool) -> _Expected:
        evaluated = run.evaluated(masked, reference, batch_statistics=train_mode)
        return _Expected(evaluated, run.trained(masked, kept, reference, batch_statistics=train_mode), train_mode)

    try:
        try:
            return computed(True)
        except TooFewValuesError:
            return computed(False)
    except (RuntimeError, ValueError, TypeError, IndexError, NotImplementedError) as error:
        raise PlanError(
            f"{type(masked).__name__} does not run in double precision on this example ({_first_line(error)}); "
            "give the example that was traced, and compute in one precision."
        ) from error


def _compared(run: _Run, cut: nn.Module, expected: _Expected) -> Proof:
    """Run the cut network and compare it; raise PlanError where it does not run."""
    try:
        evaluated = run.evaluated(cut, batch_statistics=expected.train_mode)
        trained = run.trained(cut, batch_statistics=expected.train_mode)
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        raise PlanError(
            f"The cut network does not run ({_first_line(error)}); this is a fault of the trace, please report the "
            "model."
        ) from error
    return Proof(
        eval_forward=_error(evaluated, expected.evaluated),
        train_forward=_error(trained.outputs, expected.trained.outputs),
        train_gradient=_gradient_error(trained.gradients, expected.trained.gradients),
        train_mode=expected.train_mode,
    )


def _error(values: list[Tensor], references: list[Tensor]) -> float:
    if len(values) != len(references):
        return float("inf")
    return max((_difference(a, b, 0.0) for a, b in zip(values, references, strict=True)), default=0.0)


def _gradient_error(values: dict[str, Tensor], references: dict[str, Tensor]) -> float:
    if set(values) != set(references):
        raise PlanError("The cut network trains other parameters than the masked one; please report the model.")
    scale = max(map(_largest, references.values()), default=0.0)
    # A gradient that is zero except for rounding is measured against the network's largest one.
    return max((_difference(values[n], g, 1e-3 * scale) for n, g in references.items()), default=0.0)


def _difference(value: Tensor, reference: Tensor, floor: float) -> float:
    if value.shape != reference.shape:
        return float("inf")
    scale = _largest(reference)
    error = _largest(value.double() - reference.double())
    return error / max(scale, floor, 1e-30) if math.isfinite(scale) and math.isfinite(error) else float("inf")


def _largest(tensor: Tensor) -> float:
    """Largest absolute value, 0 for an empty tensor, NaN if there is one; in one pass."""
    return float(torch.linalg.vector_norm(tensor.detach().double(), float("inf"))) if tensor.numel() else 0.0


def _noisy(value: Any, generator: torch.Generator) -> Any:
    """Move ``value`` to the CPU; turn floating tensors into float64 and add noise to them."""
    if isinstance(value, Tensor):
        value = value.detach().cpu()
        if not value.is_floating_point():
            return value
        return value.double() + 0.1 * torch.randn(value.shape, dtype=torch.float64, generator=generator)
    if isinstance(value, Mapping):
        return {key: _noisy(entry, generator) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        entries = [_noisy(entry, generator) for entry in value]
        return entries if isinstance(value, list) else tuple(entries)
    return value


@torch.no_grad()
def _randomise(model: nn.Module, generator: torch.Generator) -> None:
    """Change the norms' statistics and add noise to constants: a layer that starts at zero would hide every error."""
    constants: list[Tensor] = list(model.parameters())
    for module in model.modules():
        own = dict(module.named_buffers(recurse=False))
        mean, var = own.get("running_mean"), own.get("running_var")
        if mean is not None and var is not None:
            mean.add_(0.1 * torch.randn(mean.shape, dtype=mean.dtype, generator=generator))
            var.mul_(0.5 + torch.rand(var.shape, dtype=var.dtype, generator=generator))
        # torchvision's FrozenBatchNorm2d.
        constants += [own[name] for name in ("weight", "bias") if name in own]
    for tensor in constants:
        if tensor.is_floating_point() and _is_constant(tensor):
            tensor.add_(0.1 * torch.randn(tensor.shape, dtype=tensor.dtype, generator=generator))


def _is_constant(tensor: Tensor) -> bool:
    """One value throughout, or a lone zero."""
    if tensor.numel() < 2:
        return not bool(tensor.any())
    return bool((tensor == tensor.reshape(-1)[0]).all())


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
