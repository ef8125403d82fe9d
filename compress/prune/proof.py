"""The proof: a network that is cut equals the same network that is masked."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from compress.errors import PlanError
from compress.prune.determinism import Repeatable, TooFewValuesError
from compress.prune.places import Places, places
from compress.prune.planning import Plan
from compress.prune.precision import DoublePrecision, doubled
from compress.prune.probe import Forward, clone
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
        unproved: what could not be compared, since the network fails there before a cut too, and how; else empty. The
            figures of it are None.
        train_mode: False if batch statistics would have come from too few values to be compared; the train figures
            were then taken with BatchNorms in eval mode.
    """

    model_config = ConfigDict(frozen=True)
    eval_forward: float
    train_forward: float | None
    train_gradient: float | None
    train_mode: bool = True
    unproved: str = ""

    @property
    def trained(self) -> float:
        """The larger one of the train figures that there are."""
        return max(self.train_forward or 0.0, self.train_gradient or 0.0)

    @property
    def worst(self) -> float:
        return max(self.eval_forward, self.trained)


def check(model: nn.Module, plan: Plan, *example_inputs: Any, seed: int = 0, forward: Forward | None = None) -> Proof:
    """Compare ``apply`` with ``mask`` in float64: outputs in eval, outputs and gradients in train.

    The masked network's layer, RMS and group norms take their statistics over the channels that stay, and what reads a
    masked channel where it is a constant reads nothing; in both networks whatever is drawn at random is replaced by its
    mean.

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
    dense = doubled(clone(model, {}).cpu()).requires_grad_(True)
    _randomise(dense, generator)
    inputs = [_noisy(value, generator) for value in example_inputs]
    run = _Run(forward or (lambda network, *values: network(*values)), inputs, seed)
    # Masking in place: there are never two networks of full size beside the user's.
    cut = apply(dense, plan)
    expected = _expected(run, mask_(dense, plan, readers=True), plan)
    del dense
    proof = _compared(run, cut, expected)
    if proof.eval_forward > FORWARD_LIMIT or proof.trained > TRAIN_LIMIT:
        raise PlanError(
            f"The cut network differs from the masked one (eval {proof.eval_forward:.1e}, "
            f"train {proof.train_forward or 0.0:.1e}, gradient {proof.train_gradient or 0.0:.1e}; "
            f"limits {FORWARD_LIMIT:g} and {TRAIN_LIMIT:g}); this is a fault of the trace; please report the model."
        )
    return proof


@dataclass(frozen=True)
class _Trained:
    """What one training step computes: its outputs, each gradient by its parameter's name, and where it fails."""

    outputs: list[Tensor]
    gradients: dict[str, Tensor]
    fails: str = ""


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
        with torch.no_grad(), reference or nullcontext(), Repeatable(batch_statistics), DoublePrecision():
            return self.outputs(network.eval())

    def trained(
        self,
        network: nn.Module,
        kept: KeptIndices | None = None,
        reference: KeptStatistics | None = None,
        *,
        batch_statistics: bool,
        lenient: bool = False,
    ) -> _Trained:
        """Outputs in train mode and the gradients of a random weighting of them, cut down to ``kept``.

        A backward pass that fails is said so of the masked network, and if ``lenient``.
        """
        # Recomputed activations (checkpointing) need the modes in the backward pass too.
        fails = ""
        with reference or nullcontext(), Repeatable(batch_statistics), DoublePrecision():
            outputs = self.outputs(network.train())
            # Not torch's numbers: those are all one here.
            rng = np.random.default_rng(self.seed + 1)
            loss = torch.zeros((), dtype=torch.float64)
            for out in outputs:
                weights = torch.from_numpy(rng.standard_normal(tuple(out.shape)))
                if out.requires_grad:
                    loss = loss + (out * weights).sum()
            try:
                if loss.requires_grad:
                    loss.backward()
            except (RuntimeError, NotImplementedError) as error:
                # The masked network is the whole one with other numbers: what fails in it fails before a cut.
                if kept is None and not lenient:
                    raise
                fails = _first_line(error)
        gradients: dict[str, Tensor] = {}
        for name, parameter in network.named_parameters():
            gradient, parameter.grad = parameter.grad, None
            if gradient is not None:
                for d, index in (kept or {}).get(id(parameter), {}).items():
                    gradient = gradient.index_select(d, index)
                gradients[name] = gradient
        return _Trained([out.detach() for out in outputs], {} if fails else gradients, fails)

    def outputs(self, network: nn.Module) -> list[Tensor]:
        """What the network returns; it keeps its mode."""
        # What is drawn in a way unknown to Repeatable is at least drawn alike.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            # A network may write into its inputs.
            return tensors(self.forward(network, *copy.deepcopy(self.inputs)))


@dataclass(frozen=True)
class _Expected:
    """What the masked network computes, whether its BatchNorms could train, and what fails in it too."""

    evaluated: list[Tensor]
    trained: _Trained | None
    train_mode: bool
    unproved: str = ""


_FAULTS = (RuntimeError, ValueError, TypeError, IndexError, AttributeError, NotImplementedError, AssertionError)


def _expected(run: _Run, masked: nn.Module, plan: Plan) -> _Expected:
    """Run the masked network; raise PlanError where it does not run in double precision."""
    kept = kept_by_tensor(masked, plan)
    buffers = [(buffer, buffer.clone()) for buffer in masked.buffers()]

    def reference(train_mode: bool, training: bool) -> KeptStatistics:
        found: list[Places] = []
        if plan.costs.get("units_not_preserving", 1):
            with Repeatable(train_mode), DoublePrecision():
                found = places(masked.train(training), plan, lambda: run.outputs(masked), run.inputs)
        # A pass in train mode may have changed what norms of all kinds remember.
        for buffer, before in buffers:
            buffer.copy_(before)
        return KeptStatistics(masked, plan, found)

    def trained(train_mode: bool) -> _Trained:
        found = run.trained(masked, kept, reference(train_mode, True), batch_statistics=train_mode)
        left = {name: gradient for name, gradient in found.gradients.items() if not plan.removed_with(name)}
        return replace(found, gradients=left)

    try:
        evaluated = run.evaluated(masked, reference(True, False), batch_statistics=True)
    except TooFewValuesError:
        evaluated = run.evaluated(masked, reference(False, False), batch_statistics=False)
    except _FAULTS as error:
        raise PlanError(
            f"{type(masked).__name__} does not run in double precision on this example, uncut ({_first_line(error)}); "
            "give the example that was traced, and compute in one precision."
        ) from error
    train_mode = True
    try:
        try:
            found = trained(True)
        except TooFewValuesError:
            train_mode = False
            evaluated = run.evaluated(masked, reference(False, False), batch_statistics=False)
            found = trained(False)
    except _FAULTS as error:
        said = f"the network's training pass fails before a cut too ({_first_line(error)})"
        return _Expected(evaluated, None, train_mode, said)
    said = f"the network's backward pass fails before a cut too ({found.fails})" if found.fails else ""
    return _Expected(evaluated, found, train_mode, said)


def _compared(run: _Run, cut: nn.Module, expected: _Expected) -> Proof:
    """Run the cut network and compare it; raise PlanError where it does not run."""
    whole, forward, gradient = expected.trained, None, None
    try:
        evaluated = run.evaluated(cut, batch_statistics=expected.train_mode)
        if whole is not None:
            trained = run.trained(cut, batch_statistics=expected.train_mode, lenient=bool(whole.fails))
    except _FAULTS as error:
        raise PlanError(
            f"The cut network does not run ({_first_line(error)}); this is a fault of the trace, please report the "
            "model."
        ) from error
    if whole is not None:
        forward = _error(trained.outputs, whole.outputs)
        gradient = None if whole.fails else _gradient_error(trained.gradients, whole.gradients)
    return Proof(
        eval_forward=_error(evaluated, expected.evaluated),
        train_forward=forward,
        train_gradient=gradient,
        train_mode=expected.train_mode,
        unproved=expected.unproved,
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
