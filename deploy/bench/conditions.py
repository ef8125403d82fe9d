"""Say how busy the machine was while something was timed; a figure from a noisy machine is said to be one."""

from __future__ import annotations

import platform
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, FiniteFloat, NonNegativeInt

from deploy.bench.energy import Power, PowerMeter
from deploy.engines.cores import usable_cores
from deploy.environment import clock_mhz, load_average

try:
    import resource
except ImportError:  # Windows has none
    resource = None  # type: ignore[assignment]

_NOISY_SHARE = 0.9
_NOISY_LOAD = 1.25


class Conditions(BaseModel):
    """What a machine was like during one sitting; None where the platform does not tell.

    Attributes:
        load: the average number of processes that wanted to run, over the last minute, at the end.
        cores: those that this process may use.
        processor_share: processor time over wall time of the process. Of a run with one thread it is 1 on an idle
            machine, and less where other processes took their turns.
        involuntary_switches: how often the process was stopped for another one.
        peak_rss_bytes: the most memory that the process ever had.
        clock_mhz: of the cores that this process may use, on average, at the end.
        power: energy, and memory of graphics cards.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    load: FiniteFloat | None = None
    cores: NonNegativeInt | None = None
    processor_share: FiniteFloat | None = None
    involuntary_switches: NonNegativeInt | None = None
    peak_rss_bytes: NonNegativeInt | None = None
    clock_mhz: FiniteFloat | None = None
    power: Power | None = None

    @classmethod
    def of_load(cls, load: Sequence[float]) -> Self:
        """Return the conditions of a timing that noted nothing but the machine's load, of which the highest counts."""
        return cls(load=max(load, default=None), cores=usable_cores())

    def noise(self) -> str | None:
        """Say in words why the machine counts as noisy, or None where it does not."""
        said = []
        if self.load is not None and self.cores and self.load > _NOISY_LOAD * self.cores:
            said.append(f"a load of {self.load:.1f} on {self.cores} core{'s' if self.cores > 1 else ''}")
        if self.processor_share is not None and self.processor_share < _NOISY_SHARE:
            said.append(f"the process had the processor for {100 * self.processor_share:.0f} % of the time")
        return " and ".join(said) or None


def noisy_line(noise: str) -> str:
    """Say to a reader of times what a noisy machine means for them.

    Args:
        noise: what ``Conditions.noise`` said.
    """
    return f"The machine was noisy ({noise}): trust best times more than medians, and measure again."


class Watch:
    """Looks on from when it is made."""

    def __init__(self) -> None:
        self._meter = PowerMeter()
        self._began = time.monotonic(), time.process_time(), _switches()

    def conditions(self) -> Conditions:
        """Return what the machine was like since then."""
        wall, cpu, switches = self._began
        passed = time.monotonic() - wall
        return Conditions(
            load=load_average(),
            cores=usable_cores(),
            processor_share=(time.process_time() - cpu) / passed if passed > 0 else None,
            involuntary_switches=None if switches is None else (_switches() or 0) - switches,
            peak_rss_bytes=peak_rss(),
            clock_mhz=clock_mhz(),
            power=self._meter.power(),
        )


def peak_rss() -> int | None:
    """Return the most memory that this process ever had, in bytes."""
    try:
        # What getrusage tells on Linux is inherited from the process that started this one.
        for line in Path("/proc/self/status").read_text("ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        pass
    if resource is None:
        return None
    told = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return told if platform.system() == "Darwin" else told * 1024


def _switches() -> int | None:
    return None if resource is None else resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw
