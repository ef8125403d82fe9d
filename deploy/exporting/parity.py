"""Prove that an engine computes what the torch module it was made from computes."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from deploy.engines.base import Engine
from deploy.errors import DeployError
from deploy.exporting.modes import evaluating

if TYPE_CHECKING:
    from torch import Tensor, nn

INPUTS: Mapping[str, Callable[[Tensor], Tensor]] = MappingProxyType(
    {
        "real": lambda rows: rows,
        "times 1000": lambda rows: rows * 1e3,
        "times 0.001": lambda rows: rows * 1e-3,
        "constant": lambda rows: rows.new_full(rows.shape, 0.5),
        "negated": lambda rows: -rows,
    }
)
"""What ``parity`` can make of real rows; all but the first are hard on an engine that rounds."""


def parity(
    model: nn.Module,
    engine: Engine,
    example: Tensor,
    batches: Sequence[int] = (1, 2, 7),
    seed: int = 0,
    inputs: Sequence[str] = ("real",),
) -> list[dict[str, Any]]:
    """Compare ``engine`` with ``model`` on rows of ``example`` with a little seeded noise.

    Args:
        model: the module that the engine was made from.
        engine: an open engine with one input.
        example: (N, ...), real rows to draw from.
        batches: the batch sizes to compare at.
        seed: of the rows drawn and of the noise.
        inputs: what is made of the rows first, keys of ``INPUTS``: as they are, or changed to be hard on an engine.

    Returns:
        For each of ``inputs`` and each batch size the keys ``inputs``, ``batch``, ``max_relative_error`` (the largest
        difference over the largest magnitude of the model's output) and ``snr_db`` (signal to noise in decibels, at
        most 200); where there are several outputs, those of the worst one.

    Raises:
        DeployError: the shapes differ, the model's output is zero everywhere, or either output is not finite.
    """
    import torch

    generator = torch.Generator().manual_seed(seed)
    source = example.detach().cpu()
    parameter = next(model.parameters(), None)
    device = example.device if parameter is None else parameter.device
    (name,) = engine.inputs
    found: list[dict[str, Any]] = []
    with evaluating(model), torch.inference_mode():
        for kind, batch in itertools.product(inputs, batches):
            rows = source[torch.randint(len(source), (batch,), generator=generator)]
            noise = torch.randn(rows.shape, generator=generator) * (0.1 * source.std(correction=0).item() or 1.0)
            feed = INPUTS[kind](rows + noise)
            expected = model(feed.to(device))
            values = engine.run({name: feed.numpy()})
            compared = [
                _compare(reference.cpu().double().numpy(), values[output].astype(np.float64), engine.name)
                for reference, output in zip(
                    expected if isinstance(expected, tuple) else (expected,), values, strict=False
                )
            ]
            error, snr = max(row["max_relative_error"] for row in compared), min(row["snr_db"] for row in compared)
            found.append({"inputs": kind, "batch": batch, "max_relative_error": error, "snr_db": snr})
    return found


def _compare(reference: np.ndarray, value: np.ndarray, name: str) -> dict[str, float]:
    if reference.shape != value.shape:
        raise DeployError(f"{name} gives {list(value.shape)} where the model gives {list(reference.shape)}.")
    peak = float(np.abs(reference).max(initial=0.0))
    if peak == 0 or not np.isfinite(peak):
        raise DeployError(
            f"The largest output of the model is {peak}, which no engine can be compared with; "
            "initialise or train its last layer first."
        )
    if not np.isfinite(value).all():
        raise DeployError(f"{name} gives NaN or infinity where the model gives numbers up to {peak:.3g}.")
    error = value - reference
    # 200 dB is beyond what float32 resolves, and keeps the figure finite when both are equal.
    noise = max(float((error**2).sum()), float((reference**2).sum()) * 1e-20)
    return {
        "max_relative_error": float(np.abs(error).max()) / peak,
        "snr_db": float(10 * np.log10(float((reference**2).sum()) / noise)),
    }
