"""Say whether a network's outputs are logits or probabilities already, so that nothing is decoded twice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import numpy as np

from deploy.bundle.inputs import ImageInput, TensorInput, trial_feeds
from deploy.bundle.manifest import Manifest, Outputs, Task
from deploy.engines import load_engine
from deploy.errors import DeployError
from deploy.onnx.activation import final_activation
from deploy.processing.postprocess import DetectionDecoder, SegmentationDecoder
from deploy.processing.preprocess import Preprocessing

_SLACK = 1e-3  # of a distribution's sum, as fp16 and int8 round it


def stated_outputs(
    files: Sequence[Path],
    task: Task,
    decoder: DetectionDecoder | SegmentationDecoder | None,
    stated: Outputs | None,
    preprocessing: Preprocessing,
    inputs: Mapping[str, ImageInput | TensorInput] = MappingProxyType({}),
) -> Outputs | None:
    """Return what the files of a classifier give; None for other tasks.

    A file that does not end in an operator that tells it is run on a few images of noise: it gives probabilities where
    those of each sum to 1.

    Raises:
        DeployError: the files contradict each other or ``stated``, or a detector's logits are probabilities already.
    """
    if isinstance(decoder, DetectionDecoder) and "logits" in decoder.OUTPUTS:
        for file in files:
            if (last := _activation(file, "logits")) is not None:
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
        raise DeployError(f"{file} ends in {last}, so its outputs are no logits; state outputs: probabilities.")
    if kinds == {"logits"} and stated != "probabilities" and _gives_distributions(files[0], preprocessing, inputs):
        if stated == "logits":
            raise DeployError(
                f"{files[0]} gives numbers from 0 to 1 whose sum is 1 for every image, so its outputs are no logits; "
                "state outputs: probabilities."
            )
        return "probabilities"
    return stated or kinds.pop()


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
            f"{name} gives numbers from 0 to 1 whose sum is 1, which are probabilities and no logits; make the bundle "
            "again and state outputs."
        )
    shifted = np.exp(exact - exact.max())
    return np.asarray(shifted / shifted.sum())


def _gives_distributions(
    file: Path, preprocessing: Preprocessing, inputs: Mapping[str, ImageInput | TensorInput]
) -> bool:
    """Return whether every answer of a file to noise and to a blank image is a distribution over several classes.

    False where it cannot be run here: what loads it says why.
    """
    try:
        with load_engine(file, runtime="onnxruntime") as engine:
            first = next(iter(engine.outputs))
            read = inputs or {next(iter(engine.inputs)): ImageInput()}
            feeds = [
                trial_feeds(read, preprocessing, high, seed) for seed, high in enumerate((1, 64, 128, 192, 256, 256))
            ]
            rows = np.concatenate([engine.run(feed)[first] for feed in feeds]).astype(np.float64)
    except (DeployError, ValueError, StopIteration):
        return False
    return (
        rows.ndim == 2
        and rows.shape[1] > 1
        and bool((rows >= -_SLACK).all() and (np.abs(rows.sum(1) - 1) < _SLACK).all())
    )


def _activation(file: Path, output: str | None = None) -> str | None:
    try:
        return final_activation(file, output)
    except (OSError, ValueError, IndexError, TypeError):
        return None  # what is no ONNX file is refused, with its fault, by what loads it
