"""Draw what an engine is timed on: seeded noise for each of its inputs, in a batch where they have one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from deploy.engines.base import TensorSpec
from deploy.errors import DeployError

MOST_NUMBERS = 2_000_000_000
"""Of an input that is timed: 8 GB in float32."""
_COLOURS = (1, 3, 4)


def has_batch(spec: TensorSpec) -> bool:
    """Tell whether the first dimension of an input is a batch.

    It is none of a scalar or a vector of fixed length, and none of one image: three dimensions of which the first or
    the last are its colours, as in ``float32[48, 64, 3]``, also where its height and width are free. Two dimensions are
    one image where they hold bytes, else rows.
    """
    shape, bytes_ = spec.shape, spec.dtype == "uint8"
    if len(shape) == 3:
        first, middle, last = shape
        # Rows of (any, 3) are as many; but any x any x 3 are the pixels of an image, and 48 of them no batch.
        own = last in (_COLOURS if first is not None or bytes_ else _COLOURS[1:])
        return not (first == 3 or (own and (first is not None or middle is None or bytes_)))
    if len(shape) == 2 and None not in shape:
        return not bytes_  # of a grey image
    return bool(shape) and (shape[0] is None or len(shape) > 1)


def takes_size(spec: TensorSpec, size: tuple[int, int]) -> bool:
    """Tell whether height and width of an input are free, or fixed to just these."""
    batch = has_batch(spec)
    return len(spec.shape) > 2 and _placed([1, *spec.shape[1:]] if batch else spec.shape, size, int(batch)) is not None


def noise(
    inputs: Mapping[str, TensorSpec],
    what: str,
    batch: int | None,
    *,
    size: tuple[int, int] | None = None,
    stated: Sequence[int] | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
    seed: int = 0,
) -> tuple[dict[str, np.ndarray], int]:
    """Return seeded noise for ``inputs``, and how many images or rows one run of it takes.

    Args:
        inputs: what an engine takes.
        what: the engine's name, for errors.
        batch: rows of a run; None takes what the engine's fixed batch is, else 1.
        size: height and width where the engine leaves them open.
        stated: the sizes of one image that its file states, (C, H, W); where neither is given, an open size is refused.
        shapes: whole shapes of inputs, batch included, by name; they come before ``size`` and ``stated``.
        seed: of the noise.

    Raises:
        DeployError: an input takes no such batch or shape, leaves a size open that nobody gave, or is too large to be
            timed.
    """
    feeds, rows = {}, {}
    if not inputs:
        raise DeployError(f"{what} takes nothing, which is not a batch of {batch or 1}; export it with an input.")
    batched = any(map(has_batch, inputs.values()))
    for name, spec in inputs.items():
        shape = list(spec.shape)
        if not batched and batch not in (None, 1):
            raise DeployError(f"{what} takes '{name}' as {spec}: one per run, and no batch; leave --batch out.")
        if shapes and name in shapes:
            shape = _given(name, spec, what, batch, shapes[name])
            if has_batch(spec):
                rows[name] = shapes[name][0]
        elif has_batch(spec):
            rows[name] = shape[0] = _rows(name, spec, what, batch)
        sizes = _sizes(shape, (name, what), size, stated, batched=has_batch(spec))
        feeds[name] = _drawn(sizes, spec, name, what, seed)
    if len(set(rows.values())) > 1:
        raise DeployError(f"{what} takes batches of {rows} rows in one run; give --batch where they are free.")
    return feeds, next(iter(rows.values()), 1)


def _given(name: str, spec: TensorSpec, what: str, batch: int | None, given: Sequence[int]) -> list[int | None]:
    """Return a shape that was given whole; refuse one that the input does not take."""
    said = "x".join(map(str, given))
    if len(given) != len(spec.shape) or any(own not in (None, one) for own, one in zip(spec.shape, given, strict=True)):
        raise DeployError(f"{what} takes '{name}' as {spec}, which --shape {said} does not fit.")
    if has_batch(spec) and batch not in (None, given[0]):
        raise DeployError(f"--batch {batch} and --shape {said} name two batches of '{name}'; leave --batch out.")
    return list(given)


def _rows(name: str, spec: TensorSpec, what: str, batch: int | None) -> int:
    fixed = spec.shape[0]
    if fixed is not None and batch not in (None, fixed):
        raise DeployError(f"{what} takes '{name}' as {spec}, which is not a batch of {batch}; give --batch {fixed}.")
    return fixed or batch or 1


def _sizes(
    shape: list[int | None],
    called: tuple[str, str],
    size: tuple[int, int] | None,
    stated: Sequence[int] | None,
    *,
    batched: bool,
) -> list[int]:
    """Fill in the free sizes: height and width are the last two, or the two before the colours."""
    name, what = called
    said = ", ".join("any" if one is None else str(one) for one in shape)
    if None in shape and size is not None and len(shape) > 2:
        if (filled := _placed(shape, size, int(batched))) is None:
            raise DeployError(
                f"{what} takes '{name}' as [{said}], which --size {size[0]}x{size[1]} does not fit or fill; give its "
                f"whole shape: --shape {name}=1x3x224x224."
            )
        return filled
    if stated is not None and len(stated) == len(shape) - 1:
        shape = [one if one is not None else own for one, own in zip(shape, (None, *stated), strict=True)]
    if None in shape:
        way = "--size HEIGHTxWIDTH" if len(shape) > 2 else f"--shape {name}=1x128"
        raise DeployError(f"{what} leaves the size of '{name}' open ([{said}]) and names no preprocessing; give {way}.")
    return [one for one in shape if one is not None]


def _placed(shape: Sequence[int | None], size: tuple[int, int], first: int) -> list[int] | None:
    """Return ``shape`` with height and width filled in, from its dimension ``first`` on.

    None where they do not fit, or leave another dimension free.
    """
    last = len(shape) - 1
    for place in (last - 1, last) if shape[-1] in _COLOURS else (last, last - 1):
        filled = [*shape[: place - 1], *size, *shape[place + 1 :]]
        found = [one for one in filled if one is not None]
        fits = all(own in (None, one) for own, one in zip(shape, filled, strict=True))
        if place > first and fits and len(found) == len(shape):
            return found
    return None


def _drawn(shape: list[int], spec: TensorSpec, name: str, what: str, seed: int) -> np.ndarray:
    """Return noise of the input's type; whole numbers are ones that an index or a mask may be: 0 and 1, bytes any."""
    if math.prod(shape) > MOST_NUMBERS:
        raise DeployError(f"{what} takes '{name}' as {spec}: {shape} is too large to be timed.")
    rng, dtype = np.random.default_rng(seed), np.dtype(spec.dtype)
    if dtype.kind in "iu":
        return np.asarray(rng.integers(0, 256 if dtype == np.uint8 else 2, shape)).astype(dtype)
    if dtype.kind == "b":
        return np.asarray(rng.integers(0, 2, shape)).astype(dtype)
    return np.asarray(rng.standard_normal(shape) if shape else 0.5).astype(dtype)
