"""What was measured, and all that is needed to trust it: ``Record`` and the file ``bench.json``."""

from __future__ import annotations

import os
import platform
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    NonNegativeInt,
    PositiveInt,
    ValidationError,
    model_validator,
)

from deploy.errors import DeployError

_STRICT = ConfigDict(frozen=True, extra="forbid")
_SHOWN = 80
# A run that took no time, or longer than the clock could tell, was not measured.
Milliseconds = Annotated[float, Field(gt=0, le=1e12)]
Ratio = Annotated[float, Field(gt=0, le=1e12)]
Share = Annotated[float, Field(ge=0, le=1)]


def explain(error: ValidationError) -> str:
    """The first thing a validation found wrong: where, and what."""
    first = error.errors(include_url=False)[0]
    where = ".".join(map(str, first["loc"]))
    value = f", not {_shown(first['input'])}" if isinstance(first["input"], str | int | float) and where else ""
    message = first["msg"].removeprefix("Value error, ")
    return f"{where}: {message}{value}" if where else message


def _shown(value: str | int | float) -> str:
    """A value as an error shows it: cut where it is long; Python refuses to write a number of thousands of digits."""
    try:
        text = repr(value)
    except ValueError:
        return "a number of thousands of digits"
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def machine_info() -> dict[str, Any]:
    """CPU model, usable cores, platform and Python of this machine; no names of hosts or users."""
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "platform": platform.system(),
        "architecture": platform.machine(),
        "python": platform.python_version(),
    }


def versions_info() -> dict[str, str]:
    """The versions of the packages that run engines, read without importing them."""
    packages = ("niwaki", "numpy", "pillow", "onnxruntime", "openvino", "tensorrt-rtx-cu13", "torch")
    found: dict[str, str] = {}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    named = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or "unknown"


class Record(BaseModel):
    """One engine's figures; times in milliseconds per run of ``batch`` images.

    Attributes:
        status: ``measured``, or ``built`` where the engine exists and was not run here; ``reason`` says why.
        ratio_to_dense: median over rounds divided by the median of ``reference`` over the same rounds.
        ratio_interval: a seeded bootstrap over rounds, 95 %, of that ratio.
        speedup: one over the ratio.
        accuracy: a share of 1, measured through this engine.
        parity: what ``deploy.exporting.torch_to_onnx.parity`` gave.
        kernels: which kernels ran, in words, where the runtime tells.
        held: whether a gate holds the figures to a baseline's. False for what is shown and not shipped, as a network
            that is cut and not yet trained again: its accuracy is chance. None where the file does not say.
    """

    model_config = _STRICT

    name: str
    model: str
    runtime: str
    precision: str
    batch: PositiveInt
    status: Literal["measured", "built"]
    reason: str | None = None
    reference: str | None = None
    warmup: NonNegativeInt | None = None
    repeats: PositiveInt | None = None
    mean_ms: Milliseconds | None = None
    median_ms: Milliseconds | None = None
    p90_ms: Milliseconds | None = None
    p99_ms: Milliseconds | None = None
    min_ms: Milliseconds | None = None
    ratio_to_dense: Ratio | None = None
    ratio_interval: tuple[Ratio, Ratio] | None = None
    speedup: Ratio | None = None
    accuracy: Share | None = None
    parity: tuple[dict[str, FiniteFloat | str], ...] | None = None
    file_bytes: NonNegativeInt | None = None
    sha256: str | None = None
    kernels: str | None = None
    held: bool | None = None

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.status == "measured" and (self.median_ms is None or self.repeats is None):
            raise ValueError(f"record {self.name} is measured but has no times")
        if self.status == "built" and not self.reason:
            raise ValueError(f"record {self.name} is not measured and does not say why")
        return self


class Bench(BaseModel):
    """One sitting: its records, and the machine, the versions and the settings they were taken with."""

    model_config = _STRICT

    format: Literal["niwaki-bench-1"] = "niwaki-bench-1"
    name: str
    created: str = Field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    machine: dict[str, Any] = Field(default_factory=machine_info)
    versions: dict[str, str] = Field(default_factory=versions_info)
    settings: dict[str, Any] = Field(default_factory=dict)
    records: tuple[Record, ...]

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        names = [record.name for record in self.records]
        if len(set(names)) != len(names):
            raise ValueError("two records have the same name")
        return self

    def to_json(self) -> str:
        """The text of a ``bench.json``."""
        return self.model_dump_json(indent=2) + "\n"

    @classmethod
    def from_file(cls, path: str | Path) -> Self:
        """Read a ``bench.json``.

        Raises:
            DeployError: the file is missing, is not JSON, has another format or lacks something.
        """
        path = Path(path)
        try:
            return cls.model_validate_json(path.read_bytes())
        except OSError as error:
            raise DeployError(f"Cannot read the record {path} ({error.strerror}); check the path.") from error
        except ValidationError as error:
            raise DeployError(
                f"{path} is not a niwaki-bench-1 record ({explain(error)}); write it again with `niwaki bench`."
            ) from error
