"""Prove that an engine computes what the torch module it was made from computes."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from deploy.engines.base import Engine
from deploy.engines.signature import Example, batched, call, named_inputs, named_outputs
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
        "zeros": lambda rows: rows * 0.0,
        "black borders": lambda rows: _inside(rows) * rows,
        "saturated": lambda rows: rows.where(rows == rows.amax(), rows.amin()).where(rows < 0, rows.amax()),
    }
)
"""What ``parity`` can make of real rows; all but the first are hard on an engine that rounds, or whose guards against
a division by zero are gone."""


_TINY = 1e-300  # a blank input to a network without biases: both outputs are zero


class NotFiniteError(DeployError):
    """The engine gives NaN or infinity where the model gives numbers, or numbers where the model gives none."""


def parity(
    model: nn.Module,
    engine: Engine,
    example: Example,
    batches: Sequence[int] = (1, 2, 7),
    seed: int = 0,
    inputs: Sequence[str] = ("real",),
) -> list[dict[str, Any]]:
    """Compare ``engine`` with ``model`` on rows of ``example`` with a little seeded noise.

    Args:
        model: the module that the engine was made from.
        engine: an open engine.
        example: (N, ...), real rows to draw from; or several inputs, as ``export_onnx`` takes them, of which those
            without N, and those of whole numbers, are taken as they are.
        batches: the batch sizes to compare at.
        seed: of the rows drawn and of the noise.
        inputs: what is made of the rows first, keys of ``INPUTS``: as they are, or changed to be hard on an engine.

    Returns:
        For each of ``inputs`` and each batch size the keys ``inputs``, ``batch``, ``max_relative_error`` (the largest
        difference over the largest magnitude of the model's output) and ``snr_db`` (signal to noise in decibels, at
        most 200); where there are several outputs, those of the worst one. Outputs are matched by name where the
        engine has those of a dict, else by their order.

    Raises:
        NotFiniteError: one of the two outputs is finite where the other is not.
        DeployError: the shapes differ, or the model's output is nowhere finite or, for real rows, zero everywhere.
    """
    import torch

    generator = torch.Generator().manual_seed(seed)
    sources = {name: tensor.detach().cpu() for name, tensor in named_inputs(model, example).items()}
    if len(sources) != len(engine.inputs):
        raise DeployError(f"{engine.name} takes {list(engine.inputs)} and the example holds {list(sources)}.")
    named = set(sources) == set(engine.inputs)
    has_batch = batched(sources)
    parameter = next(model.parameters(), None)
    device = next(iter(sources.values())).device if parameter is None else parameter.device
    found: list[dict[str, Any]] = []
    with evaluating(model), torch.no_grad():
        for kind, batch in itertools.product(inputs, batches):
            length = next((len(sources[name]) for name, has in has_batch.items() if has), 1)
            drawn = torch.randint(length, (batch,), generator=generator)
            feeds = {
                name: _feed(source, drawn, kind, generator) if has_batch[name] else source
                for name, source in sources.items()
            }
            result = call(model, example, [feed.to(device) for feed in feeds.values()])
            own = feeds if named else dict(zip(engine.inputs, feeds.values(), strict=True))
            values = engine.run({name: np.asarray(feed.numpy()) for name, feed in own.items()})
            compared = [
                _compare(reference.cpu().double().numpy(), value.astype(np.float64), engine.name, kind)
                for reference, value in _paired(named_outputs(model, result), values, engine.name)
            ]
            error, snr = max(row["max_relative_error"] for row in compared), min(row["snr_db"] for row in compared)
            found.append({"inputs": kind, "batch": batch, "max_relative_error": error, "snr_db": snr})
    return found


def _feed(source: Tensor, drawn: Tensor, kind: str, generator: Any) -> Tensor:
    """Return the rows ``drawn`` with a little noise, changed as ``kind`` says; whole numbers as they are."""
    import torch

    rows = source[drawn]
    if not rows.is_floating_point():
        return rows
    noise = torch.randn(rows.shape, generator=generator) * (0.1 * source.std(correction=0).item() or 1.0)
    return INPUTS[kind](rows + noise)


def _paired(
    expected: Mapping[str, Tensor], values: Mapping[str, np.ndarray], name: str
) -> list[tuple[Tensor, np.ndarray]]:
    """Return each output of the model with the engine's."""
    if set(expected) == set(values):
        return [(tensor, values[key]) for key, tensor in expected.items()]
    if len(expected) != len(values):
        raise DeployError(f"{name} gives {list(values)} where the model gives {list(expected)}.")
    return list(zip(expected.values(), values.values(), strict=True))


def _inside(rows: Tensor) -> Tensor:
    """Return 1 in the middle half of the last two dimensions of ``rows``, 0 around it, as letter-boxing leaves them."""
    mask = rows.new_zeros(rows.shape)
    middle = tuple(slice(size // 4, max(size - size // 4, 1)) for size in rows.shape[max(1, rows.ndim - 2) :])
    mask[(slice(None),) * (rows.ndim - len(middle)) + middle] = 1
    return mask


def _compare(reference: np.ndarray, value: np.ndarray, name: str, kind: str) -> dict[str, float]:
    if reference.shape != value.shape:
        raise DeployError(f"{name} gives {list(value.shape)} where the model gives {list(reference.shape)}.")
    finite = np.isfinite(reference)
    wrong = finite != np.isfinite(value)
    if wrong.any():
        here, there = ("NaN or infinity", "numbers") if finite[wrong].any() else ("numbers", "NaN or infinity")
        raise NotFiniteError(
            f"For inputs {kind!r} {name} gives {here} where the model gives {there}; guard its divisions, logarithms "
            "and roots by a larger constant, or take another precision."
        )
    reference, value = reference[finite], value[finite]
    peak = float(np.abs(reference).max(initial=0.0))
    if not finite.any() or (peak == 0 and kind == "real"):
        raise DeployError(
            f"The largest output of the model is {peak if finite.any() else np.nan}, which no engine can be compared "
            "with; initialise or train its last layer first."
        )
    error = value - reference
    # 200 dB is beyond what float32 resolves, and keeps the figure finite when both are equal.
    noise = max(float((error**2).sum()), float((reference**2).sum()) * 1e-20, _TINY)
    return {
        "max_relative_error": float(np.abs(error).max(initial=0.0)) / (peak or 1.0),
        "snr_db": float(10 * np.log10(max(float((reference**2).sum()) / noise, 1e-20))),
    }
