"""An fp32 file and the images it is calibrated with: what every other precision is made from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from deploy.errors import DeployError
from deploy.files import sha256
from deploy.onnx.file import PRECISION, SOURCE, metadata, read, write

if TYPE_CHECKING:
    import onnx

SAMPLES = 300
KEPT = "niwaki.kept_fp32"
"""The property of a file that names, with commas, what was left in fp32."""


@dataclass(frozen=True)
class Calibrated:
    """An fp32 file, its one input's name, and single images (1, C, H, W) float32, at most ``SAMPLES``."""

    path: Path
    model: onnx.ModelProto
    images: list[np.ndarray]
    name: str

    @classmethod
    def read(cls, src: Path, calibration: Sequence[np.ndarray], seed: int, precision: str) -> Calibrated:
        """Read ``src``, from which ``precision`` will be made, and fit the arrays to it.

        Args:
            calibration: preprocessed float32 arrays (C, H, W) or (N, C, H, W).
            seed: which images are drawn where there are more than ``SAMPLES``.

        Raises:
            DeployError: ``src`` is not an fp32 ONNX file with one input, or the calibration does not fit it.
        """
        src = Path(src)
        model = read_fp32(src, precision)
        weights = {tensor.name for tensor in model.graph.initializer}
        inputs = [value for value in model.graph.input if value.name not in weights]
        if len(inputs) != 1:
            raise DeployError(f"{src} has {len(inputs)} inputs; only a model with one can be calibrated.")
        return cls(src, model, _images(calibration, inputs[0], seed), inputs[0].name)

    def write(self, model: onnx.ModelProto, dst: Path, precision: str, kept: Sequence[str]) -> Path:
        """Write what was made from the file, with the file's own metadata and where it comes from."""
        props = {**metadata(self.model), PRECISION: precision, SOURCE: sha256(self.path)}
        if kept:
            props[KEPT] = ",".join(kept)
        return write(model, Path(dst), props)


def read_fp32(src: Path, precision: str) -> onnx.ModelProto:
    """The model at ``src``; DeployError when it is anything but fp32, which ``precision`` is made from."""
    model = read(Path(src))
    stated = metadata(model).get(PRECISION, "fp32")
    if stated != "fp32":
        raise DeployError(f"{src} is {stated}; make the {precision} file from the fp32 one.")
    return model


def _images(calibration: Sequence[np.ndarray], value: onnx.ValueInfoProto, seed: int) -> list[np.ndarray]:
    """Single images (1, C, H, W), at most ``SAMPLES``, drawn with ``seed`` and in their first order."""
    want = tuple(d.dim_value for d in value.type.tensor_type.shape.dim)[1:]
    images: list[np.ndarray] = []
    for array in calibration:
        batch = array[None] if array.ndim == len(want) else array
        # A dimension without a value is free.
        fits = batch.ndim == 1 + len(want) and all(w in (0, b) for w, b in zip(want, batch.shape[1:], strict=True))
        if not fits or batch.dtype != np.float32:
            raise DeployError(
                f"A calibration array is {array.dtype}{list(array.shape)}; "
                f"the model's input {value.name!r} takes float32[N, {', '.join(str(w or 'any') for w in want)}]."
            )
        if not np.isfinite(batch).all():
            raise DeployError("A calibration array holds NaN or infinity; check the preprocessing.")
        images.extend(np.ascontiguousarray(batch[i : i + 1]) for i in range(len(batch)))
    if not images:
        raise DeployError("The calibration holds 0 images; give at least one, better a hundred.")
    if len(images) <= SAMPLES:
        return images
    drawn = np.random.default_rng(seed).choice(len(images), SAMPLES, replace=False)
    return [images[i] for i in sorted(drawn.tolist())]
