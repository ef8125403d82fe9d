"""Summarise what an int8 model was calibrated with, briefly enough for a bundle's manifest."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat

_CODES = {np.dtype(np.uint8): (0, 255), np.dtype(np.int8): (-128, 127)}


class Calibration(BaseModel):
    """A summary of calibration data, enough to tell whether another run used the same.

    Attributes:
        count: the number of images.
        seed: that they were drawn with.
        sha256: of the preprocessed images, one after the other, as little-endian float32 (C, H, W).
        ranges: the smallest and the largest value that each quantised activation can take, by its tensor's name.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    count: int = Field(ge=1)
    seed: int
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    ranges: dict[str, tuple[FiniteFloat, FiniteFloat]] = Field(default_factory=dict)

    @classmethod
    def of(cls, images: Iterable[np.ndarray], seed: int, int8: Path | None = None) -> Self:
        """Summarise preprocessed ``images``, each (C, H, W); the ranges are those of the file ``int8``, where given.

        Raises:
            DeployError: ``int8`` is not an ONNX file.
            MissingDependency: the package onnx, which reads it, is not installed.
        """
        digest, count = hashlib.sha256(), 0
        for image in images:
            digest.update(np.ascontiguousarray(image, dtype="<f4").tobytes())
            count += 1
        ranges = {} if int8 is None else activation_ranges(int8)
        return cls(count=count, seed=seed, sha256=digest.hexdigest(), ranges=ranges)


def activation_ranges(path: Path) -> dict[str, tuple[float, float]]:
    """Return the range of each quantised activation of the QDQ file at ``path``, by its tensor's name.

    Raises:
        DeployError: the file is missing or is not ONNX.
        MissingDependency: the package onnx is not installed.
    """
    from deploy.onnx.file import read

    model = read(path)
    from onnx import numpy_helper

    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    found = {}
    for node in model.graph.node:
        # Weights are stored as integers, so only activations pass through a QuantizeLinear.
        known = node.op_type == "QuantizeLinear" and len(node.input) == 3 and node.input[0] not in constants
        if not known or not all(name in constants for name in node.input[1:]):
            continue
        scale, zero = (numpy_helper.to_array(constants[name]) for name in node.input[1:])
        if scale.size == 1 and zero.dtype in _CODES:
            low, high = _CODES[zero.dtype]
            offset = int(zero.reshape(-1)[0])
            step = float(scale.reshape(-1)[0])
            found[node.input[0]] = (step * (low - offset), step * (high - offset))
    return found
