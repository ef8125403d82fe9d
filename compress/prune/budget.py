"""What a pruned network may cost: shares of the dense network, or bytes."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Share = Annotated[float, Field(gt=0.0, le=1.0)]
Bytes = Annotated[float, Field(gt=0.0)]
"""At most 1 it is a share of the dense network's, above that bytes."""

Precision = Literal["fp32", "fp16", "int8"]

WIDTHS: dict[str, int] = {"fp32": 4, "fp16": 2, "int8": 1}
"""Precision -> bytes of a number."""


class Budget(BaseModel):
    """Upper bounds on a network's cost; all that are given hold together, latency and max_drop stand alone.

    Args:
        macs: multiply-accumulates of one forward pass, as a share.
        params: number of parameters, as a share.
        size: bytes of parameters and buffers at `precision`: a share up to 1, bytes above.
        memory: most bytes of activations that are alive at once, at `precision`, for `batch` images: a share up to
            1, bytes above.
        latency: median latency on ONNX Runtime, measured while planning, as a share.
        max_drop: points (hundredths) of the metric that chooses by which the cut network may end below the whole one on
            validation data, measured while planning; the smallest such network is taken.
        precision: of numbers; vectors (biases, norms) stay in fp32 under int8.
        batch: images at once.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    macs: Share | None = None
    params: Share | None = None
    size: Bytes | None = None
    memory: Bytes | None = None
    latency: Share | None = None
    max_drop: Annotated[float, Field(gt=0.0, lt=100.0)] | None = None
    precision: Precision = "fp32"
    batch: Annotated[int, Field(ge=1)] = 1

    @model_validator(mode="after")
    def _some(self) -> Budget:
        measured = [name for name in ("latency", "max_drop") if getattr(self, name) is not None]
        if not self.bounds and not measured:
            raise ValueError("give at least one of macs, params, size, memory, latency and max_drop")
        if measured and (self.bounds or len(measured) > 1):
            raise ValueError(f"{measured[0]} is met by measuring and stands alone; give it without other bounds")
        return self

    @property
    def bounds(self) -> dict[str, float]:
        """The bounds that can be computed, by name."""
        found = {"macs": self.macs, "params": self.params, "size": self.size, "memory": self.memory}
        return {name: value for name, value in found.items() if value is not None}
