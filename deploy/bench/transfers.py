"""Time apart what a run on a graphics card is made of: the copies in, the network, the copies out."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from deploy.engines.base import Engine

_Time = Field(ge=0, le=1e12)


class Transfers(BaseModel):
    """The median milliseconds of the parts of a run, each waited for: together they take longer than a run.

    They are what trtexec calls H2D, GPU compute and D2H, by the clock of the processor.

    Attributes:
        in_ms: of copying the inputs to the device.
        network_ms: of the network on it.
        out_ms: of copying the outputs back.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    in_ms: float = _Time
    network_ms: float = _Time
    out_ms: float = _Time


def transfers_of(engine: Engine, feeds: Mapping[str, np.ndarray], *, runs: int = 50) -> Transfers | None:
    """Return the parts of a run of ``engine`` on ``feeds``; None where nothing is copied, as on a CPU.

    Raises:
        DeployError: it cannot run.
    """
    taken = []
    for _ in range(max(runs, 1) + 5):
        parts = engine.run_apart(feeds)
        if parts is None:
            return None
        taken.append(parts)
    copied_in, ran, copied_out = np.median(np.asarray(taken[5:]), axis=0).tolist()  # the first few warm it up
    return Transfers(in_ms=copied_in, network_ms=ran, out_ms=copied_out)
