"""Read an fp32 file and the images it is calibrated with, which every other precision is made from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np

from deploy.errors import DeployError
from deploy.files import sha256
from deploy.onnx.file import PRECISION, SOURCE, properties, read, write
from deploy.onnx.metadata import Metadata
from deploy.onnx.precision import LOW, QUANTISED
from deploy.quantization.converting import raised, without_defaults

if TYPE_CHECKING:
    import onnx

MAX_IMAGES = 300
_SLACK = 0.05  # of the range: resizing with a cubic kernel may overshoot
_INT8_OPSET = 13  # from here on quantisers have an axis, as int8 weights need
_NOTHING: Mapping[str, str] = MappingProxyType({})
KEPT = "niwaki.kept_fp32"
"""The property of a file that names the nodes left in fp32, separated by commas."""


@dataclass(frozen=True)
class Calibrated:
    """An fp32 file, the ``name`` of its only input, and at most ``MAX_IMAGES`` float32 images (1, C, H, W)."""

    path: Path
    model: onnx.ModelProto
    images: list[np.ndarray]
    name: str

    @classmethod
    def read(cls, src: Path, calibration: Sequence[np.ndarray], seed: int, precision: str) -> Calibrated:
        """Read ``src``, from which ``precision`` will be made, and check that the arrays fit it.

        Args:
            calibration: preprocessed float32 arrays (C, H, W) or (N, C, H, W).
            seed: of the draw where there are more than ``MAX_IMAGES`` images.

        Raises:
            DeployError: ``src`` is not an fp32 ONNX file with one input, or the calibration does not fit it.
        """
        src = Path(src)
        model = read_fp32(src, precision)
        weights = {tensor.name for tensor in model.graph.initializer}
        inputs = [value for value in model.graph.input if value.name not in weights]
        if len(inputs) != 1:
            raise DeployError(f"{src} has {len(inputs)} inputs; only a model with one can be calibrated.")
        if precision == "int8":
            model = raised(model, src, _INT8_OPSET)
        images = _images(calibration, inputs[0], seed)
        _check_range(src, images)
        return cls(src, model, images, inputs[0].name)

    def write(
        self,
        model: onnx.ModelProto,
        dst: Path,
        precision: str,
        kept: Sequence[str],
        stated: Mapping[str, str] = _NOTHING,
    ) -> Path:
        """Write ``model``, made from this file, with the file's own metadata, its hash and what is ``stated``."""
        props = {**properties(self.model), PRECISION: precision, SOURCE: sha256(self.path), **stated}
        if kept:
            props[KEPT] = ",".join(kept)
        return write(model, Path(dst), props)


def read_fp32(src: Path, precision: str) -> onnx.ModelProto:
    """Read the fp32 model at ``src``, from which ``precision`` will be made.

    Raises:
        DeployError: it is missing, is not ONNX, or is not fp32, whatever its name says: it holds quantised operators
            or constants of half precision.
    """
    model = read(Path(src))
    stated = properties(model).get(PRECISION, "fp32")
    if stated != "fp32":
        raise DeployError(f"{src} is {stated}; make the {precision} file from the fp32 one.")
    if many := sum(node.op_type in QUANTISED or node.op_type.startswith("QLinear") for node in model.graph.node):
        raise DeployError(
            f"{src} is quantised already ({many} of its {len(model.graph.node)} nodes quantise or compute in int8); "
            f"use it as it is, or make the {precision} file from the fp32 one."
        )
    if low := next((LOW[tensor.data_type] for tensor in model.graph.initializer if tensor.data_type in LOW), None):
        raise DeployError(f"{src} is {low}; make the {precision} file from the fp32 one.")
    return without_defaults(model)


def _check_range(src: Path, images: Sequence[np.ndarray]) -> None:
    """Refuse images that the preprocessing which the file states cannot have made, such as pixels of 0 to 255."""
    prepared = Metadata.from_file(src).preprocessing
    if prepared is None:
        return
    ends = [(end - mean) / std for mean, std in zip(prepared.mean, prepared.std, strict=True) for end in (0.0, 1.0)]
    low, high = min(float(one.min()) for one in images), max(float(one.max()) for one in images)
    slack = _SLACK * (max(ends) - min(ends))
    if low < min(ends) - slack or high > max(ends) + slack:
        raise DeployError(
            f"The calibration lies between {low:.3g} and {high:.3g}, but {src} states a preprocessing that gives "
            f"{min(ends):.3g} to {max(ends):.3g}; prepare its images so."
        )


def _images(calibration: Sequence[np.ndarray], value: onnx.ValueInfoProto, seed: int) -> list[np.ndarray]:
    """Return at most ``MAX_IMAGES`` single images (1, C, H, W), drawn with ``seed`` and kept in their order."""
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
    if len(images) <= MAX_IMAGES:
        return images
    drawn = np.random.default_rng(seed).choice(len(images), MAX_IMAGES, replace=False)
    return [images[i] for i in sorted(drawn.tolist())]
