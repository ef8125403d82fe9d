"""Say whether a network's outputs are logits or probabilities already, so that nothing is decoded twice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Literal

import numpy as np

from deploy.bundle.inputs import ImageInput, TensorInput, trial_feeds
from deploy.bundle.manifest import Manifest, Outputs, Task
from deploy.engines import load_engine
from deploy.errors import DeployError
from deploy.onnx.activation import final_activation
from deploy.onnx.precision import precision_in
from deploy.processing.postprocess import DetectionDecoder, SegmentationDecoder
from deploy.processing.preprocess import Preprocessing

_SLACK = 1e-3  # of a distribution's sum, as fp16 and int8 round it
_FAR = (-10.0, 100.0, -1000.0, 1000.0)  # times the inputs of an image


def stated_outputs(
    files: Sequence[Path],
    task: Task,
    decoder: DetectionDecoder | SegmentationDecoder | None,
    stated: Outputs | None,
    preprocessing: Preprocessing,
    inputs: Mapping[str, ImageInput | TensorInput] = MappingProxyType({}),
) -> Outputs | None:
    """Return what the files of a classifier give; None for other tasks.

    A file that does not end in an operator that tells it is run on a few images of noise, and on what no image can be:
    it gives probabilities where those of each sum to 1, or where all lie between 0 and 1 whatever it reads.

    Raises:
        DeployError: the files contradict each other or ``stated``, a detector's logits are probabilities already, or a
            classifier gives percentages.
    """
    if isinstance(decoder, DetectionDecoder) and "logits" in decoder.OUTPUTS:
        for file in files:
            last = _activation(file, "logits")
            if last is None and _kind(file, preprocessing, inputs, "logits") == "bounded":
                last = "numbers from 0 to 1, whatever it reads"
            if last is not None:
                raise DeployError(
                    f"{file} ends 'logits' in {last}, and {type(decoder).__name__} decodes raw logits; export the "
                    "network without its last activation."
                )
    if task != "classification":
        return None
    found = {file: _activation(file) for file in files}
    kinds: set[Outputs] = {"logits" if last is None else "probabilities" for last in found.values()}
    if len(kinds) > 1:
        raise DeployError(
            f"Some files of the bundle give probabilities and some give logits ({found}); make them of one network."
        )
    if stated == "logits" and kinds == {"probabilities"}:
        file, last = next(iter(found.items()))
        raise DeployError(f"{file} ends in {last}, so its outputs are not logits; state outputs: probabilities.")
    if kinds == {"probabilities"} or stated == "probabilities":
        return stated or "probabilities"
    # Of a file in int8 every number lies in the range that it was calibrated to.
    file = next((one for one in files if precision_in(one) == "fp32"), files[0])
    kind = _kind(file, preprocessing, inputs)
    if stated == "logits":
        if kind == "distributions":
            raise DeployError(
                f"{file} gives numbers from 0 to 1 whose sum is 1 for every image, so its outputs are not logits; "
                "state outputs: probabilities."
            )
        return stated
    if kind == "percentages":
        raise DeployError(
            f"{file} gives percentages, from 0 to 100 whatever it reads, which are neither logits nor probabilities; "
            "leave out the factor at its end, or state outputs: logits."
        )
    return "logits" if kind is None else "probabilities"


def outputs_of(folder: Path, manifest: Manifest) -> Outputs:
    """Return what the networks of the bundle at ``folder`` give: what its manifest says, else what the file shows."""
    if manifest.outputs is not None:
        return manifest.outputs
    last = _activation(folder / manifest.models[manifest.default].file)
    return "logits" if last is None else "probabilities"


def probabilities(values: np.ndarray, outputs: Outputs, stated: bool, name: str) -> np.ndarray:
    """Return the probabilities (classes,) of one image.

    Args:
        values: what the network gives for it, (classes,), finite where they are probabilities.
        outputs: what that is; ``stated`` where the manifest says it.
        name: of the bundle.

    Raises:
        DeployError: they are no probabilities, or logits that nobody stated and that look like probabilities.
    """
    exact = values.astype(np.float64)
    lies = bool((exact >= -_SLACK).all() and (exact <= 1 + _SLACK).all())
    if outputs == "probabilities":
        if not lies:
            raise DeployError(
                f"{name} gives {exact.min():.3g} to {exact.max():.3g} and states probabilities; state outputs: logits."
            )
        return exact.clip(0, 1)
    if not stated and len(exact) > 1 and lies and abs(exact.sum() - 1) < _SLACK:
        raise DeployError(
            f"{name} gives numbers from 0 to 1 whose sum is 1, which are probabilities and not logits; make the bundle "
            "again and state outputs."
        )
    shifted = np.exp(exact - exact.max())
    return np.asarray(shifted / shifted.sum())


def _kind(
    file: Path,
    preprocessing: Preprocessing,
    inputs: Mapping[str, ImageInput | TensorInput],
    output: str | None = None,
) -> Literal["distributions", "bounded", "percentages"] | None:
    """Tell what the numbers of an output are, by default the first, from a few images of noise and what none can be.

    Distributions have a sum of 1 for every image. Bounded ones stay between 0 and 1 whatever is read, as sigmoids do
    and logits do not, and percentages between 0 and 100. None for all others, and where the file cannot be run here:
    what loads it says why.
    """
    try:
        with load_engine(file, runtime="onnxruntime") as engine:
            name = output or next(iter(engine.outputs))
            read = inputs or {next(iter(engine.inputs)): ImageInput()}
            feeds = [
                trial_feeds(read, preprocessing, high, seed) for seed, high in enumerate((1, 64, 128, 192, 256, 256))
            ]
            rows = np.concatenate([engine.run(feed)[name] for feed in feeds]).astype(np.float64)
            far = [{key: _scaled(value, scale) for key, value in feeds[-1].items()} for scale in _FAR]
            beyond = np.concatenate([engine.run(feed)[name] for feed in far]).astype(np.float64)
    except (DeployError, ValueError, StopIteration, KeyError):
        return None
    if rows.ndim < 2 or rows.shape[1] < 1 or not np.isfinite(rows).all() or rows.min() < -_SLACK:
        return None
    sums = rows.sum(1) if rows.ndim == 2 and rows.shape[1] > 1 else np.zeros(1)
    if rows.max() <= 1 + _SLACK and (np.abs(sums - 1) < _SLACK).all():
        return "distributions"
    if (np.abs(sums - 100) < 100 * _SLACK).all():
        return "percentages"
    finite = beyond[np.isfinite(beyond).reshape(len(beyond), -1).all(1)]
    every = np.concatenate([rows, finite])
    # One answer for all says nothing, such as that of a layer of zeros.
    if len(finite) < 2 or every.min() < -_SLACK or np.ptp(every, axis=0).max() < 10 * _SLACK:
        return None
    if every.max() <= 1 + _SLACK:
        return "bounded"
    return "percentages" if 99 < every.max() <= 100 * (1 + _SLACK) else None


def _scaled(values: np.ndarray, scale: float) -> np.ndarray:
    """Return numbers far beyond those of any image; whole numbers stay, for they may be indices."""
    return (values * scale).astype(values.dtype) if values.dtype.kind == "f" else values


def _activation(file: Path, output: str | None = None) -> str | None:
    try:
        return final_activation(file, output)
    except (OSError, ValueError, IndexError, TypeError):
        return None  # what is no ONNX file is refused, with its fault, by what loads it
