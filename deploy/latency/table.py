"""Tables from the width of a layer to its milliseconds, as measured on one runtime of one machine."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from deploy.errors import DeployError
from deploy.files import read_bytes, write_text
from deploy.validation import explain

_STRICT = ConfigDict(frozen=True, extra="forbid")
Milliseconds = Annotated[float, Field(gt=0, le=1e9)]
Width = Annotated[int, Field(ge=1, le=1_000_000)]
Side = Annotated[int, Field(ge=0, le=100_000)]
Activation = Literal["none", "relu", "relu6", "silu", "hardswish", "sigmoid"]


class TimedLayer(BaseModel):
    """Everything that decides a layer's time but its widths, so that layers alike are measured once.

    Attributes:
        kind: ``conv``, ``transposed`` (a transposed convolution), ``linear``, or ``attention``: a block of
            self-attention from its projections to the last one, of which ``inputs`` are the features that it reads and
            makes, ``outputs`` those of all heads together.
        size: height and width of what a convolution reads; the sizes between batch and features of any other.
        per_group: channels that each group of a convolution reads; 0 where it is one group.
        activation: what follows it and may be fused with it.
        head: features of one head of an attention block.
        output_padding: of a transposed convolution.
    """

    model_config = _STRICT

    kind: Literal["conv", "transposed", "linear", "attention"]
    size: tuple[Side, ...] = ()
    kernel: tuple[Side, ...] = ()
    stride: tuple[Side, ...] = ()
    padding: tuple[Side, ...] = ()
    dilation: tuple[Side, ...] = ()
    per_group: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    bias: bool = True
    activation: Activation = "none"
    head: Annotated[int, Field(ge=0, le=100_000)] = 0
    output_padding: tuple[Side, ...] = ()

    @property
    def key(self) -> str:
        """Name the layer in words, another name for any other layer."""
        parts = [self.kind if not self.per_group else "depthwise" if self.per_group == 1 else f"by {self.per_group}"]
        if self.per_group and self.kind == "transposed":
            parts.append("transposed")
        named = {"k": self.kernel, "s": self.stride, "p": self.padding, "d": self.dilation, "o": self.output_padding}
        for letter, values in named.items():
            if values:
                parts.append(letter + "x".join(map(str, values)))
        parts.append(f"at {'x'.join(map(str, self.size))}" if self.size else "at a vector")
        if self.head:
            parts.append(f"by heads of {self.head}")
        if not self.bias:
            parts.append("without bias")
        if self.activation != "none":
            parts.append(f"+ {self.activation}")
        return " ".join(parts)


class Setting(BaseModel):
    """What else a time holds for: another version, processor, precision or number of threads has other times."""

    model_config = _STRICT

    runtime: str
    version: str
    device: str
    precision: Literal["fp32", "fp16", "int8"]
    threads: Annotated[int, Field(ge=0, le=1024)]
    batch: Annotated[int, Field(ge=1, le=4096)] = 1

    def __str__(self) -> str:
        images = "" if self.batch == 1 else f", {self.batch} images"
        return f"{self.runtime} {self.version} in {self.precision}, {self.threads} thread(s){images}, on {self.device}"

    def differences(self, other: Setting) -> list[str]:
        """Say, field by field, how another setting differs."""
        mine, others = self.model_dump(), other.model_dump()
        return [f"{name} {others[name]}, not {value}" for name, value in mine.items() if others[name] != value]


class TimedPoint(BaseModel):
    """The best time of a layer that reads ``inputs`` and makes ``outputs`` channels."""

    model_config = _STRICT

    inputs: Width
    outputs: Width
    ms: Milliseconds


class Entry(BaseModel):
    """One layer in one setting: its times at the widths that were measured, and how busy the machine was."""

    model_config = _STRICT

    layer: TimedLayer
    setting: Setting
    points: Annotated[tuple[TimedPoint, ...], Field(min_length=1)]
    load: tuple[Annotated[float, Field(ge=0)], ...] = ()

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        if len({(p.inputs, p.outputs) for p in self.points}) != len(self.points):
            raise ValueError(f"{self.layer.key} has two times for one pair of widths")
        return self

    @cached_property
    def _grid(self) -> Mapping[tuple[int, int], float]:
        return {(p.inputs, p.outputs): p.ms for p in self.points}

    def ms(self, inputs: int, outputs: int, dense: tuple[int, int]) -> float:
        """Read the time at two widths: by steps, each width taken for the next one above it that was measured.

        Where a pair was not measured, the time is that of one axis times the share of the other, each read where the
        other has its dense width. Nothing is read off a straight line: between two widths lies a step.

        Args:
            inputs, outputs: channels read and made.
            dense: those of the layer before any cut, whose two axes were measured.

        Raises:
            DeployError: the widths lie above all that was measured.
        """
        if self.layer.per_group:
            return self._on_axis(inputs, {p.inputs: p.ms for p in self.points})
        whole_in, whole_out = dense
        reads = {a: ms for (a, b), ms in self._grid.items() if b == whole_out}
        makes = {b: ms for (a, b), ms in self._grid.items() if a == whole_in}
        if dense not in self._grid:
            raise DeployError(f"The table has no time for {self.layer.key} from {whole_in} to {whole_out}; profile it.")
        above = (_above(inputs, reads), _above(outputs, makes))
        if None not in above and above in self._grid:
            return self._grid[above]  # type: ignore[index]
        return self._on_axis(inputs, reads) * self._on_axis(outputs, makes) / self._grid[dense]

    def _on_axis(self, width: int, axis: Mapping[int, float]) -> float:
        step = _above(width, axis)
        if step is None:
            raise DeployError(
                f"The table has no time for {self.layer.key} at {width} channels, {max(axis, default=0)} are its most; "
                "profile the network again."
            )
        return axis[step]


class Network(BaseModel):
    """A whole network that was timed beside its layers, which says what they leave out.

    Attributes:
        name: ``dense``, or what else it is.
        setting: in which it was timed.
        widths: channels of each layer, read and made, by the layer's name in the network.
        ms: its best time.
    """

    model_config = _STRICT

    name: str
    setting: Setting
    widths: dict[str, tuple[int, int]]
    ms: Milliseconds


class Table(BaseModel):
    """Entries of any settings, and the networks that were timed with them; ``latency.json``."""

    model_config = _STRICT

    format: Literal["niwaki-latency-1"] = "niwaki-latency-1"
    entries: tuple[Entry, ...] = ()
    networks: tuple[Network, ...] = ()
    seconds: Annotated[float, Field(ge=0)] = 0.0

    @model_validator(mode="after")
    def _one_entry_each(self) -> Self:
        keys = [(entry.layer.key, entry.setting) for entry in self.entries]
        if len(set(keys)) != len(keys):
            raise ValueError("one layer has two entries for one setting")
        return self

    @cached_property
    def _by_key(self) -> Mapping[tuple[str, Setting], Entry]:
        return {(entry.layer.key, entry.setting): entry for entry in self.entries}

    def find(self, layer: TimedLayer, setting: Setting) -> Entry | None:
        """Return a layer's entry for exactly this setting, or None."""
        return self._by_key.get((layer.key, setting))

    def entry(self, layer: TimedLayer, setting: Setting) -> Entry:
        """Return a layer's entry for exactly this setting.

        Raises:
            DeployError: there is none; where there is one of another version, processor or precision, it is named.
        """
        found = self.find(layer, setting)
        if found is not None:
            return found
        for other in self.entries:
            if other.layer == layer:
                differs = "; ".join(setting.differences(other.setting))
                raise DeployError(
                    f"The time of {layer.key} was measured for another setting ({differs}) and is stale here; profile "
                    "the network again."
                )
        raise DeployError(f"The table has no entry for {layer.key}; profile the network again.")

    def setting(self, runtime: str, precision: str, threads: int, batch: int = 1) -> Setting:
        """Return the one setting of a table that was taken elsewhere, such as on the device.

        Raises:
            DeployError: it has none for this runtime, precision, number of threads and batch, or several, such as of
                two processors.
        """
        asked = (runtime, precision, threads, batch)
        found = {e.setting for e in self.entries}
        fit = {s for s in found if (s.runtime, s.precision, s.threads, s.batch) == asked}
        if not fit:
            there = "; ".join(sorted(map(str, found))) or "nothing"
            raise DeployError(
                f"The table holds times for {there}, none for {runtime} in {precision} with {threads} thread(s) and "
                f"{batch} image(s); profile the network so, or change the recipe."
            )
        if len(fit) > 1:
            raise DeployError(
                f"The table mixes {len(fit)} machines or versions ({'; '.join(sorted(map(str, fit)))}), whose times "
                "do not add up; profile the network again on one."
            )
        return fit.pop()

    def merged(self, entries: Iterable[Entry], seconds: float = 0.0) -> Table:
        """Return this table with more entries; one of the same layer and setting gets the new points as well."""
        found = dict(self._by_key)
        for entry in entries:
            key = (entry.layer.key, entry.setting)
            old = found.get(key)
            points = {(p.inputs, p.outputs): p for p in (*(old.points if old else ()), *entry.points)}
            load = (*(old.load if old else ()), *entry.load)
            found[key] = entry.model_copy(update={"points": tuple(points.values()), "load": load})
        # Not model_copy: what is cached of the old entries must not go along.
        return Table(entries=tuple(found.values()), networks=self.networks, seconds=self.seconds + seconds)

    def to_json(self) -> str:
        """Return the text of a ``latency.json``."""
        return self.model_dump_json(indent=1) + "\n"

    def write(self, path: Path) -> None:
        """Write the table to a temporary name and rename it."""
        write_text(path, self.to_json())

    @classmethod
    def read(cls, path: str | Path) -> Self:
        """Read a table.

        Raises:
            DeployError: the file is missing, is no table, or breaks the schema.
        """
        try:
            return cls.model_validate_json(read_bytes(Path(path)))
        except OSError as error:
            raise DeployError(f"Cannot read the table {path} ({error.strerror}); check the path.") from None
        except ValidationError as error:
            raise DeployError(
                f"{path} is not a niwaki-latency-1 table ({explain(error)}); write it again with `niwaki profile`."
            ) from None


def schema() -> dict[str, Any]:
    """Return the JSON schema of a ``latency.json``."""
    return Table.model_json_schema()


def sample_widths(size: int, *, finest: int = 8, most: int = 12) -> tuple[int, ...]:
    """Return the widths to measure a layer of ``size`` channels at: multiples of a power of two, and ``size`` itself.

    Args:
        size: channels of the dense layer.
        finest: the least step, a power of two; what is smaller than two steps is sampled by halves of them.
        most: how many steps there may be.
    """
    step = finest
    while step > 1 and size < 2 * step:
        step //= 2
    while size / step > most:
        step *= 2
    # The smallest widths matter where a network is cut hard: the first step is halved down to the finest.
    small = [finest << k for k in range(max(0, int(math.log2(step / finest)) if step > finest else 0))]
    return tuple(sorted({*small, *range(step, size, step), size}))


def between_jumps(curve: Mapping[int, float], *, step: int = 8, jump: float = 1.5) -> tuple[int, ...]:
    """Return the widths to measure next: the middles of neighbours between which the time jumps.

    A time that grows ``jump`` times faster than the width, or falls although the width grows, hides a step.

    Args:
        curve: width -> milliseconds.
        step: widths are multiples of it.
        jump: see above.
    """
    widths = sorted(curve)
    found = []
    for low, high in pairwise(widths):
        if high - low < 2 * step:
            continue
        growth, expected = curve[high] / curve[low], high / low
        if growth > 1 + jump * (expected - 1) or growth < 1:
            found.append((low + high) // 2 // step * step)
    return tuple(width for width in found if width not in curve)


def _above(width: int, measured: Iterable[int]) -> int | None:
    """Return the least measured width that is not below ``width``; None where there is none."""
    return min((w for w in measured if w >= width), default=None)
