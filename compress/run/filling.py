"""Fill a table with the times of a network's layers: at sampled widths first, then between the steps that show."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torch import nn

from compress.prune.units import Trace
from compress.run.probes import PlacedLayer, Precision, probes_of, write_probe
from compress.run.progress import Advance
from deploy.errors import DeployError
from deploy.latency.profile import Probe, Timer, here, measured, time_files
from deploy.latency.table import Entry, Setting, Table, between_jumps

_AT_ONCE = 96


@dataclass(frozen=True)
class Shipping:
    """How the network that ships will run, and what times it.

    Attributes:
        write: makes the file that ships of a network, at a path.
        runtime, precision, threads, batch: see ``deploy.latency.table.Setting``.
        shapes: of the file's inputs, as they are timed.
        kept: kinds of operators that int8 leaves in fp32, keys of ``deploy.quantization.int8.KINDS``.
        timer: what times files.
        cache: the table that is read and added to; None where none is kept.
        table: a table from a device, on which nothing can be measured from here; None where this is the machine.
    """

    write: Callable[[nn.Module, Path], Path]
    runtime: str = "onnxruntime"
    precision: Precision = "fp32"
    threads: int = 1
    batch: int = 1
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    kept: tuple[str, ...] = ()
    timer: Timer = time_files
    cache: Path | None = None
    table: Table | None = None

    @property
    def said(self) -> str:
        """What is timed, in words: ``int8 on onnxruntime``."""
        return f"{self.precision} on {self.runtime}"

    def precisions(self, layers: Sequence[PlacedLayer]) -> dict[str, Precision]:
        """Return the precision in which each layer ships."""
        found: dict[str, Precision] = {}
        first = next((one.name for one in layers if one.layer.kind == "conv"), "")
        for one in layers:
            depthwise = one.layer.kind == "conv" and one.layer.per_group and "depthwise" in self.kept
            stays = depthwise or (one.name == first and "first" in self.kept)
            found[one.name] = "fp32" if stays else self.precision
        return found

    def setting(self, precision: Precision) -> Setting:
        """Return the setting that entries must have: this machine's, or that of the device's table."""
        if self.table is not None:
            return self.table.setting(self.runtime, precision, self.threads, self.batch)
        return here(self.runtime, precision, self.threads, self.batch)


def filled(
    layers: Sequence[PlacedLayer], trace: Trace, shipping: Shipping, advance: Advance
) -> tuple[dict[str, Entry], float]:
    """Return the entry of each layer, and the seconds that measuring what the table lacked took.

    Raises:
        DeployError: a device's table lacks a layer, or has it for another setting.
    """
    precisions = shipping.precisions(layers)
    settings = {precision: shipping.setting(precision) for precision in sorted(set(precisions.values()))}

    def entries(table: Table) -> dict[str, Entry]:
        return {one.name: table.entry(one.layer, settings[precisions[one.name]]) for one in layers}

    if shipping.table is not None:
        return entries(shipping.table), 0.0
    table = _cached(shipping.cache)
    began = time.perf_counter()
    wanted = _lacking(probes_of(layers, precisions, fixed_axes(layers, trace)), table, settings)
    table = _measured(wanted, table, shipping, advance)
    between = _lacking(_between(layers, entries(table), precisions), table, settings)
    table = _measured(between, table, shipping, advance)
    return entries(table), time.perf_counter() - began if wanted or between else 0.0


def fixed_axes(layers: Sequence[PlacedLayer], trace: Trace) -> frozenset[tuple[str, int]]:
    """Return the dimensions of weights of which no channel is free to go: they are measured at one width."""
    free = {slot for group in trace.groups for slot in group.slots}
    axes = [axis for one in layers for axis in (one.reads, one.makes)]
    return frozenset((name, dim) for name, dim in axes if (trace.tied.get(name, name), dim) not in free)


def _cached(path: Path | None) -> Table:
    """Read the table that is kept; one that cannot be read is made anew, for it is only a saving of time."""
    if path is None or not path.is_file():
        return Table()
    try:
        return Table.read(path)
    except DeployError:
        return Table()


def _lacking(probes: Sequence[Probe], table: Table, settings: Mapping[Precision, Setting]) -> list[Probe]:
    found = []
    for probe in probes:
        assert probe.precision != "fp16"
        entry = table.find(probe.layer, settings[probe.precision])
        known = {(p.inputs, p.outputs) for p in entry.points} if entry is not None else set()
        if (probe.inputs, probe.outputs) not in known:
            found.append(probe)
    return found


def _between(
    layers: Sequence[PlacedLayer], entries: Mapping[str, Entry], precisions: Mapping[str, Precision]
) -> list[Probe]:
    """List what to measure next along the axes of each layer."""
    wanted: dict[tuple[str, str, int, int], Probe] = {}
    for one in layers:
        precision, points, (whole_in, whole_out) = precisions[one.name], entries[one.name].points, one.dense
        reads = {p.inputs: p.ms for p in points if one.layer.per_group or p.outputs == whole_out}
        makes = {} if one.layer.per_group else {p.outputs: p.ms for p in points if p.inputs == whole_in}
        step = max(8, one.layer.per_group)
        pairs = [
            (width, width * whole_out // whole_in if one.layer.per_group else whole_out)
            for width in between_jumps(reads, step=step)
        ]
        pairs += [(whole_in, width) for width in between_jumps(makes, step=max(8, one.layer.head))]
        for read, made in pairs:
            name = f"between-{len(wanted):04d}.onnx"
            probe = Probe(file=name, layer=one.layer, inputs=read, outputs=made, precision=precision)
            wanted.setdefault((one.layer.key, precision, read, made), probe)
    return list(wanted.values())


def _measured(probes: Sequence[Probe], table: Table, shipping: Shipping, advance: Advance) -> Table:
    """Write the files, time them and keep the table after every part, so that a stopped run loses little."""
    for start in range(0, len(probes), _AT_ONCE):
        part = probes[start : start + _AT_ONCE]
        advance(start, len(probes), f"profiling layers, {start} of {len(probes)}")
        began = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            for probe in part:
                write_probe(probe, Path(folder) / probe.file)
            found = measured(
                part,
                Path(folder),
                runtime=shipping.runtime,
                threads=shipping.threads,
                batch=shipping.batch,
                timer=shipping.timer,
            )
        table = table.merged(found, time.perf_counter() - began)
        if shipping.cache is not None:
            table.write(shipping.cache)
    return table
