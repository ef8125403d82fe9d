"""Take what a file is calibrated with, for one input or several, by name or by place, apart into single rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from deploy.engines.base import TensorSpec
from deploy.errors import DeployError
from deploy.processing.arrays import KEYS, array_in, batches_of, is_array

if TYPE_CHECKING:
    import onnx

MAX_IMAGES = 300
Feed = dict[str, np.ndarray]
"""What one run of a file reads: an array for each input."""


def inputs_of(model: onnx.ModelProto) -> dict[str, TensorSpec]:
    """Return the inputs of ``model`` that are no weights, by name and in order."""
    from onnx import helper

    weights = {tensor.name for tensor in model.graph.initializer}
    found = {}
    for value in model.graph.input:
        if value.name not in weights:
            kind = value.type.tensor_type
            dtype = np.dtype(helper.tensor_dtype_to_np_dtype(kind.elem_type)).name
            found[value.name] = TensorSpec(dtype, tuple(dim.dim_value or None for dim in kind.shape.dim))
    return found


def with_batch(inputs: Mapping[str, TensorSpec]) -> set[str]:
    """Return the names of the inputs whose first dimension is the batch: free, or 1 where none is free."""
    firsts = {name: spec.shape[0] for name, spec in inputs.items() if spec.shape}
    batch = None if None in firsts.values() else 1
    return {name for name, first in firsts.items() if first == batch}


def feeds_of(
    calibration: Iterable[Any], inputs: Mapping[str, TensorSpec], seed: int = 0, *, convert: bool = False
) -> list[Feed]:
    """Return at most ``MAX_IMAGES`` feeds of one row each, in their order.

    Args:
        calibration: arrays or tensors, single (C, H, W) or batches (N, C, H, W), of the only input; or mappings from
            the names of the inputs to such, whose other keys are left aside; or tuples of them in the order of
            ``inputs``; or pairs that begin with one of these, whose rest, such as labels, is left aside. An array or
            a sequence is drawn from; of anything else, such as a loader, the first rows are taken.
        inputs: what the file takes.
        seed: of the draw.
        convert: whether floating-point arrays of another width become what the file takes; else they are refused.

    Raises:
        DeployError: names, number, types, shapes or lengths do not fit the file, a value is not finite, or there is no
            row.
    """
    drawn = is_array(calibration) or isinstance(calibration, Sequence | Mapping)
    feeds: list[Feed] = []
    for batch in batches_of(calibration):
        feeds.extend(_rows(_named(batch, inputs), inputs, convert))
        if not drawn and len(feeds) >= MAX_IMAGES:
            return feeds[:MAX_IMAGES]
    if not feeds:
        raise DeployError("The calibration holds 0 images; give at least one, better a hundred.")
    if len(feeds) <= MAX_IMAGES:
        return feeds
    chosen = np.random.default_rng(seed).choice(len(feeds), MAX_IMAGES, replace=False)
    return [feeds[i] for i in sorted(chosen.tolist())]


def _named(batch: Any, inputs: Mapping[str, TensorSpec]) -> dict[str, Any]:
    """Return what ``batch`` holds for each input."""
    names = list(inputs)
    if len(names) == 1:
        if isinstance(batch, Mapping) and (names[0] in batch or not any(key in batch for key in KEYS)):
            return _by_name(batch, names)
        return {names[0]: batch if is_array(batch) else array_in(batch)}
    # What follows a mapping or a tuple, such as labels, is no input.
    while isinstance(batch, tuple | list) and batch and isinstance(batch[0], Mapping | tuple | list):
        batch = batch[0]
    if isinstance(batch, Mapping):
        return _by_name(batch, names)
    if not isinstance(batch, tuple | list) or len(batch) != len(names):
        count = f" of {len(batch)}" if isinstance(batch, tuple | list) else ""
        raise DeployError(
            f"A calibration batch is a {type(batch).__name__}{count}, but the model takes {len(names)} inputs "
            f"({', '.join(names)}); give mappings by these names, or tuples of exactly these in this order."
        )
    return dict(zip(names, batch, strict=True))


def _by_name(batch: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    if any(name not in batch for name in names):
        raise DeployError(
            f"A calibration batch has the keys {', '.join(map(str, batch))[:120]}, but the model takes "
            f"{', '.join(names)}; name an array for each."
        )
    return {name: batch[name] for name in names}


def _rows(batch: Mapping[str, Any], inputs: Mapping[str, TensorSpec], convert: bool) -> list[Feed]:
    """Cut a batch into feeds of one row; an input without a batch goes whole into each, or row by row if stacked."""
    cut = with_batch(inputs)
    arrays = {name: _checked(name, batch[name], spec, name in cut, convert) for name, spec in inputs.items()}
    lengths = {name: len(array) for name, array in arrays.items() if name in cut or len(array) != 1}
    if len(set(lengths.values())) > 1:
        said = ", ".join(f"{count} of {name}" for name, count in lengths.items())
        raise DeployError(f"A calibration batch holds rows in different numbers ({said}); give as many of each.")
    return [
        {name: _row(array, i if len(array) > 1 else 0, name in cut) for name, array in arrays.items()}
        for i in range(next(iter(lengths.values()), 1))
    ]


def _row(array: np.ndarray, i: int, with_first: bool) -> np.ndarray:
    return np.asarray(array[i : i + 1] if with_first else array[i], order="C")


def _checked(name: str, given: Any, spec: TensorSpec, batched: bool, convert: bool) -> np.ndarray:
    """Return an input as (N, ...), or raise DeployError where it does not fit ``spec``."""
    if isinstance(given, int | float | np.generic):
        array = np.asarray(given, spec.dtype)
    elif is_array(given):
        array = given if isinstance(given, np.ndarray) else given.detach().cpu().numpy()
    else:
        raise DeployError(f"The calibration of input {name!r} is a {type(given).__name__}; give arrays or tensors.")
    if convert and array.dtype.kind == "f" and np.dtype(spec.dtype).kind == "f":
        array = array.astype(spec.dtype, copy=False)
    want = spec.shape[1:] if batched else spec.shape
    rows = array[None] if array.ndim == len(want) else array
    fits = rows.ndim == 1 + len(want) and all(w in (None, b) for w, b in zip(want, rows.shape[1:], strict=True))
    if not fits or rows.dtype != np.dtype(spec.dtype):
        shape = [*(["N"] if batched else []), *(str(w or "any") for w in want)]
        raise DeployError(
            f"A calibration array is {array.dtype}{list(array.shape)}; "
            f"the model's input {name!r} takes {spec.dtype}[{', '.join(shape)}]."
        )
    if rows.dtype.kind == "f" and not np.isfinite(rows).all():
        raise DeployError("A calibration array holds NaN or infinity; check the preprocessing.")
    return rows
