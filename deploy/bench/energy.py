"""Read what the platform counts of energy and of a graphics card's memory: RAPL in sysfs, and NVML."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, FiniteFloat, NonNegativeInt

POWERCAP = Path("/sys/class/powercap")


class Power(BaseModel):
    """What was counted over one sitting; None where the platform does not tell, and then ``reason`` says why.

    Attributes:
        processor_joules: of all processor packages, by RAPL: of every engine of the sitting, and whatever else ran.
        gpu_joules: of all graphics cards, by NVML.
        gpu_memory_bytes: what this process held on all graphics cards at the end.
        gpus: the name of each card and its clock in MHz at the end, such as ``NVIDIA H200, 1980 MHz``.
        reason: what could not be read, and why, in words.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    processor_joules: FiniteFloat | None = None
    gpu_joules: FiniteFloat | None = None
    gpu_memory_bytes: NonNegativeInt | None = None
    gpus: tuple[str, ...] = ()
    reason: str | None = None


class PowerMeter:
    """Counts from when it is made.

    Args:
        root: the folder of RAPL's zones.
        nvml: the module of NVML; by default ``pynvml``, where that can be imported.
    """

    def __init__(self, root: Path = POWERCAP, nvml: Any = None) -> None:
        self._root = root
        self._zones, self._no_zones = _zones(root)
        self._nvml, self._no_nvml = (nvml, None) if nvml is not None else _nvml()
        self._cards = self._ask(_joules_of_cards)

    def power(self) -> Power:
        """Return what was counted since then."""
        zones, told = _zones(self._root)
        why_not = [one for one in (self._no_zones or told,) if one]
        joules = None
        if self._zones and self._zones.keys() == zones.keys():
            try:
                joules = sum(self._passed(name, before, zones[name]) for name, before in self._zones.items()) / 1e6
            except (OSError, ValueError) as error:
                why_not.append(f"RAPL's counter was reset and does not say where it ends ({error})")
        cards, memory = self._ask(_joules_of_cards), self._ask(_own_memory)
        gpus = self._ask(_named_cards) or ()
        spent = None if self._cards is None or cards is None else cards - self._cards
        if self._no_nvml:
            why_not.append(self._no_nvml)
        return Power(
            processor_joules=joules,
            gpu_joules=spent,
            gpu_memory_bytes=memory,
            gpus=gpus,
            reason="; ".join(why_not) or None,
        )

    def _passed(self, zone: str, before: int, after: int) -> int:
        """Return the microjoules between two readings of a counter that begins anew at its end."""
        if after >= before:
            return after - before
        return after - before + int((self._root / zone / "max_energy_range_uj").read_text("ascii"))

    def _ask(self, question: Callable[[Any], Any]) -> Any:
        """Return an answer of NVML, or None, remembering why."""
        if self._nvml is None:
            return None
        try:
            with _opened(self._nvml):
                return question(self._nvml)
        except self._nvml.NVMLError as error:
            self._no_nvml = f"NVML does not tell ({error})"
            return None


def _zones(root: Path) -> tuple[Mapping[str, int], str | None]:
    """Return the microjoules of each package, without its parts, by zone; and why there are none."""
    found: dict[str, int] = {}
    try:
        for zone in sorted(root.glob("*-rapl:*")):
            # A zone such as intel-rapl:0:1 is a part of one that is counted already.
            if zone.name.count(":") == 1 and (zone / "name").read_text("ascii").startswith("package"):
                found[zone.name] = int((zone / "energy_uj").read_text("ascii"))
    except (OSError, ValueError) as error:
        return {}, f"RAPL cannot be read ({getattr(error, 'strerror', None) or error})"
    return found, None if found else "RAPL counts no processor package here"


def _nvml() -> tuple[Any, str | None]:
    try:
        return import_module("pynvml"), None
    except ImportError:
        return None, "NVML is not asked, as the package nvidia-ml-py is not installed"


@contextmanager
def _opened(nvml: Any) -> Iterator[None]:
    nvml.nvmlInit()
    try:
        yield
    finally:
        nvml.nvmlShutdown()


def _handles(nvml: Any) -> list[Any]:
    return [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())]


def _joules_of_cards(nvml: Any) -> float:
    return sum(nvml.nvmlDeviceGetTotalEnergyConsumption(card) for card in _handles(nvml)) / 1e3


def _own_memory(nvml: Any) -> int:
    running = [one for card in _handles(nvml) for one in nvml.nvmlDeviceGetComputeRunningProcesses(card)]
    return sum(one.usedGpuMemory or 0 for one in running if one.pid == os.getpid())


def _named_cards(nvml: Any) -> tuple[str, ...]:
    said = []
    for card in _handles(nvml):
        name = nvml.nvmlDeviceGetName(card)  # bytes in older versions
        clock = nvml.nvmlDeviceGetClockInfo(card, nvml.NVML_CLOCK_SM)
        said.append(f"{name.decode() if isinstance(name, bytes) else name}, {clock} MHz")
    return tuple(said)
