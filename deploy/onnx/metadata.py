"""Define what an ONNX file states in its properties: network, classes, preprocessing, weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from deploy.errors import DeployError
from deploy.onnx.wire import scan
from deploy.processing.preprocess import Preprocessing
from deploy.validation import explain

_PREFIX = "niwaki."
_JSON = ("classes", "preprocessing")


class Metadata(BaseModel):
    """The properties of a file, kept by every precision made from it; None where the file states nothing.

    Attributes:
        model: the network's name.
        classes: their names, in the order of the network's outputs.
        preprocessing: how an image becomes its input.
        weights_sha256: of the file that the weights were read from, in hexadecimal.
        precision: of the arithmetic.
        kept_fp32: the names of the nodes left in fp32, separated by commas.
        source_sha256: of the ONNX file that this one was made from.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    model: str | None = None
    classes: tuple[str, ...] | None = None
    preprocessing: Preprocessing | None = None
    weights_sha256: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")
    precision: str | None = None
    kept_fp32: str | None = None
    source_sha256: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")

    def properties(self) -> dict[str, str]:
        """Return what ``export_onnx`` takes as ``metadata``; the same values always give the same text."""
        stated = self.model_dump(mode="json", exclude_none=True)
        return {_PREFIX + k: json.dumps(v, sort_keys=True) if k in _JSON else v for k, v in stated.items()}

    @classmethod
    def from_file(cls, path: Path) -> Self:
        """Read the properties of the ONNX file at ``path``, without the package onnx.

        Raises:
            DeployError: the file is missing, is not ONNX, or one of Niwaki's properties is invalid.
        """
        path = Path(path)
        stated = {k.removeprefix(_PREFIX): v for k, v in scan(path).properties.items() if k.startswith(_PREFIX)}
        try:
            return cls.model_validate({k: json.loads(v) if k in _JSON else v for k, v in stated.items()})
        except (
            ValueError,
            RecursionError,
        ) as error:  # pydantic's error is a ValueError; endless brackets or digits raise these too
            fault = explain(error) if isinstance(error, ValidationError) else str(error)
            raise DeployError(f"{path} has properties that cannot be read ({fault}); export it again.") from error
