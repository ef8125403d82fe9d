"""What a pruned network may cost: shares of the dense network, or bytes."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Share = Annotated[float, Field(gt=0.0, le=1.0)]
Bytes = Annotated[float, Field(gt=0.0)]
"""At most 1 it is a share of the dense network's, above that bytes."""

Latency = Share | Annotated[str, Field(pattern=r"^[0-9]{1,7}(\.[0-9]{1,6})? ?ms$")]
"""A share of the dense network's, or milliseconds: ``3.2 ms``."""

Precision = Literal["fp32", "fp16", "int8"]

WIDTHS: dict[str, int] = {"fp32": 4, "fp16": 2, "int8": 1}
"""Precision -> bytes of a number."""


class Budget(BaseModel):
    """Upper bounds on a network's cost; all bounds given hold together, and max_drop stands alone.

    Args:
        macs: multiply-accumulates of one forward pass, as a share.
        params: number of parameters, as a share.
        size: bytes of parameters and buffers at `precision`: a share up to 1, bytes above.
        memory: most bytes of activations that are alive at once, at `precision`, for `batch` images: a share up to
            1, bytes above.
        latency: best latency on the runtime and in the precision that ship, measured while planning: a share of the
            dense network's there, or milliseconds such as ``3.2 ms``.
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
    latency: Latency | None = None
    max_drop: Annotated[float, Field(gt=0.0, lt=100.0)] | None = None
    precision: Precision = "fp32"
    batch: Annotated[int, Field(ge=1)] = 1

    @model_validator(mode="after")
    def _some(self) -> Budget:
        if not self.bounds and self.latency is None and self.max_drop is None:
            raise ValueError("give at least one of macs, params, size, memory, latency and max_drop")
        if self.max_drop is not None and (self.bounds or self.latency is not None):
            raise ValueError("max_drop is met by measuring and stands alone; give it without other bounds")
        if isinstance(self.latency, str) and self.latency_limit(0.0) <= 0:
            raise ValueError(f"latency is {self.latency}; give more than 0 ms, or a share of the dense network's")
        return self

    def latency_limit(self, dense: float) -> float:
        """Return the latency in milliseconds for a dense network that takes `dense` of them."""
        if isinstance(self.latency, str):
            return float(self.latency.removesuffix("ms"))
        return dense if self.latency is None else self.latency * dense

    @property
    def bounds(self) -> dict[str, float]:
        """The bounds that can be computed, by name."""
        found = {"macs": self.macs, "params": self.params, "size": self.size, "memory": self.memory}
        return {name: value for name, value in found.items() if value is not None}
