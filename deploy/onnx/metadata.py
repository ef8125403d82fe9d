"""What an ONNX file says of itself in its properties: network, classes, preprocessing, weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from deploy.bench.records import explain
from deploy.errors import DeployError
from deploy.onnx.wire import scan
from deploy.processing.preprocess import Preprocessing

_PREFIX = "niwaki."
_JSON = ("classes", "preprocessing")


class About(BaseModel):
    """Properties that every precision made from a file keeps; None where the file does not say.

    Attributes:
        model: the network's name.
        classes: their names, in the order of the network's outputs.
        preprocessing: how an image becomes its input.
        weights_sha256: of the file that the weights were read from, in hexadecimal.
        precision: of the arithmetic; ``kept_fp32`` names, with commas, what was left in fp32.
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
        """What ``export_onnx`` takes as ``metadata``: the same text for the same facts."""
        said = self.model_dump(mode="json", exclude_none=True)
        return {_PREFIX + k: json.dumps(v, sort_keys=True) if k in _JSON else v for k, v in said.items()}

    @classmethod
    def of(cls, path: Path) -> Self:
        """Read the properties of the ONNX file at ``path``, without the package onnx.

        Raises:
            DeployError: the file is missing, is not ONNX, or a property of Niwaki's is not what it should be.
        """
        path = Path(path)
        said = {k.removeprefix(_PREFIX): v for k, v in scan(path).properties.items() if k.startswith(_PREFIX)}
        try:
            return cls.model_validate({k: json.loads(v) if k in _JSON else v for k, v in said.items()})
        except (ValueError, RecursionError) as error:  # pydantic's is a ValueError; brackets or digits without end
            fault = explain(error) if isinstance(error, ValidationError) else str(error)
            raise DeployError(f"{path} has properties that cannot be read ({fault}); export it again.") from error
