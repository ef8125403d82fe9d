"""What a pruned network may cost, as shares of the dense network."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, model_validator

Share = Annotated[float, Field(gt=0.0, le=1.0)]


class Budget(BaseModel):
    """Upper bounds as shares of the dense network's cost; exactly one is given.

    Args:
        macs: multiply-accumulates of one forward pass.
        latency: median latency on ONNX Runtime, measured while planning.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    macs: Share | None = None
    latency: Share | None = None

    @model_validator(mode="after")
    def _one(self) -> Budget:
        if (self.macs is None) == (self.latency is None):
            raise ValueError("give exactly one of macs and latency")
        return self
