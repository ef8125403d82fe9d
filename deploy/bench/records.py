"""Define ``Record``, one measured figure with all that is needed to trust it, and the file ``bench.json``."""

from __future__ import annotations

from datetime import UTC, datetime
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

from deploy.bench.conditions import Conditions
from deploy.bench.traffic import OpenLoop, Streams
from deploy.bench.transfers import Transfers
from deploy.environment import machine_info, versions_info
from deploy.errors import DeployError
from deploy.files import read_bytes
from deploy.validation import explain

_STRICT = ConfigDict(frozen=True, extra="forbid")
# A run that took no time, or longer than any clock could tell, was not measured.
Milliseconds = Annotated[float, Field(gt=0, le=1e12)]
Ratio = Annotated[float, Field(gt=0, le=1e12)]
Share = Annotated[float, Field(ge=0, le=1)]


class Cold(BaseModel):
    """What an engine costs before it runs at speed, in a process of its own.

    Attributes:
        load_ms: to load it, its runtime being imported.
        first_ms: of the first run.
        peak_rss_bytes: the most memory of the process, None where the platform does not tell.
        own_rss_bytes: how much of it came after the runtime was imported.
    """

    model_config = _STRICT

    load_ms: Milliseconds
    first_ms: Milliseconds
    peak_rss_bytes: NonNegativeInt | None
    own_rss_bytes: NonNegativeInt | None


class Record(BaseModel):
    """The figures of one engine; times are milliseconds per run of ``batch`` images.

    Attributes:
        status: ``measured``, or ``built`` for an engine that exists but was not run here; ``reason`` says why.
        ratio_to_dense: the median over rounds, divided by the median of ``reference`` over the same rounds.
        ratio_interval: the 95 % interval of that ratio, from a seeded bootstrap over blocks of rounds.
        ratio_of_best: the best time of all sittings, divided by that of ``reference``.
        best_interval: the 95 % interval of that ratio.
        by_sitting: of each process that timed it, the ratio of best times and that of medians.
        speedup: the smaller of the two inverse ratios.
        steady: whether the times had settled when the warm-up ended.
        throughput: images per second, one run after the other.
        structure: a hash of the network without its weights.
        conditions: how busy the machine was while it was timed.
        cold: what it costs to load it and to run it once, in a fresh process.
        streams: what several streams got through together.
        open_loop: latency under requests that come at a fixed rate.
        transfers: on a graphics card, the copies in and out apart from the network.
        accuracy: a share of 1, measured through this engine.
        parity: what ``deploy.exporting.parity.parity`` returned.
        kernels: which kernels ran, in words, where the runtime tells.
        held: whether a gate holds the figures to a baseline. False for what is shown but not shipped, such as the
            pruned network before retraining, whose accuracy is chance. None where the file does not say.
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
    ratio_of_best: Ratio | None = None
    best_interval: tuple[Ratio, Ratio] | None = None
    by_sitting: tuple[tuple[Ratio, Ratio], ...] | None = None
    speedup: Ratio | None = None
    steady: bool | None = None
    throughput: Ratio | None = None
    accuracy: Share | None = None
    parity: tuple[dict[str, FiniteFloat | str], ...] | None = None
    file_bytes: NonNegativeInt | None = None
    sha256: str | None = None
    structure: str | None = None
    kernels: str | None = None
    conditions: Conditions | None = None
    cold: Cold | None = None
    streams: Streams | None = None
    open_loop: OpenLoop | None = None
    transfers: Transfers | None = None
    held: bool | None = None

    @model_validator(mode="after")
    def _check_complete(self) -> Self:
        if self.status == "measured" and (self.median_ms is None or self.repeats is None):
            raise ValueError(f"record {self.name} is measured but has no times")
        if self.status == "built" and not self.reason:
            raise ValueError(f"record {self.name} is not measured and does not say why")
        return self

    @property
    def share(self) -> float | None:
        """The time as a share of the reference's: by best times or by medians, the larger."""
        return max((one for one in (self.ratio_to_dense, self.ratio_of_best) if one is not None), default=None)


class Bench(BaseModel):
    """The records of one session, and the machine, versions and settings they were measured with."""

    model_config = _STRICT

    format: Literal["niwaki-bench-1"] = "niwaki-bench-1"
    name: str
    created: str = Field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    machine: dict[str, Any] = Field(default_factory=machine_info)
    versions: dict[str, str] = Field(default_factory=versions_info)
    settings: dict[str, Any] = Field(default_factory=dict)
    records: tuple[Record, ...]

    @model_validator(mode="after")
    def _check_distinct(self) -> Self:
        names = [record.name for record in self.records]
        if len(set(names)) != len(names):
            raise ValueError("two records have the same name")
        return self

    def to_json(self) -> str:
        """Return the text of a ``bench.json``."""
        return self.model_dump_json(indent=2) + "\n"

    @classmethod
    def from_file(cls, path: str | Path) -> Self:
        """Read a ``bench.json``.

        Raises:
            DeployError: the file is missing, is not JSON, has another format or lacks a field.
        """
        path = Path(path)
        try:
            return cls.model_validate_json(read_bytes(path))
        except OSError as error:
            raise DeployError(f"Cannot read the record {path} ({error.strerror}); check the path.") from error
        except ValidationError as error:
            raise DeployError(
                f"{path} is not a niwaki-bench-1 record ({explain(error)}); write it again with `niwaki bench`."
            ) from error
