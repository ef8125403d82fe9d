"""Say layer by layer where a network's time goes, and why a cut brings less than its share of the arithmetic."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from pydantic import BaseModel, ConfigDict

from deploy.errors import DeployError
from deploy.files import read_bytes
from deploy.latency.layers import CASTS, PROFILED, REORDERS, LayerTime, Shape, turned
from deploy.latency.profile import How, Job, Timer, time_files
from deploy.onnx.wire_graph import parse_graph

Reason = Literal[
    "", "misaligned", "memory-bound", "overhead-bound", "not fused", "precision fell back", "reorder inserted", "kernel"
]
LANES = 8
"""Channels that vector instructions take at once: other widths are padded or done one by one at the end."""
INTENSITY = 16.0
"""Multiply-accumulates for each number moved, below which a layer waits for memory."""
OVERHEAD_MS = 0.01
"""About what a runtime needs to start a layer: below it less arithmetic changes nothing."""
_SHORT, _NOTABLE = 1.15, 0.005
_FUSABLE = ("Relu", "Clip", "BatchNormalization", "Sigmoid", "HardSwish", "HardSigmoid", "Eltwise", "Swish")


class LayerRow(BaseModel):
    """One layer of the network that ships, beside the same one before the cut.

    Attributes:
        before_ms, expected_ms: None where there is nothing to compare with; what is expected is the time before times
            the share of its multiply-accumulates that is left.
        widths: channels read and made, before and after, in words.
        reason: why it takes longer than expected, or, with nothing to compare with, what bounds it.
        said: the reason in words.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    kind: str
    widths: str = ""
    before_ms: float | None = None
    expected_ms: float | None = None
    after_ms: float
    reason: Reason = ""
    said: str = ""


class Explanation(BaseModel):
    """Where the time of one network goes, or of two; ``explain.json`` of a run."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal["niwaki-explain-1"] = "niwaki-explain-1"
    runtime: str
    threads: int
    before: str | None = None
    after: str
    before_ms: float | None = None
    after_ms: float
    load: tuple[float, ...] = ()
    rows: tuple[LayerRow, ...]

    @property
    def layers_ms(self) -> float:
        """Sum the layers' best times: on a busy machine less than any whole run takes."""
        return sum(row.after_ms for row in self.rows)

    def by_reason(self) -> dict[str, float]:
        """Return how many milliseconds of what ships lie in layers of each reason, the most first."""
        found: dict[str, float] = {}
        for row in self.rows:
            if row.reason:
                found[row.reason] = found.get(row.reason, 0.0) + row.after_ms
        return dict(sorted(found.items(), key=lambda pair: -pair[1]))


def explain_files(
    after: Path,
    before: Path | None = None,
    *,
    runtime: str = "onnxruntime",
    threads: int = 1,
    shapes: Mapping[str, tuple[int, ...]] = MappingProxyType({}),
    timer: Timer = time_files,
) -> Explanation:
    """Measure the layers of one file, or of two in turns, and say where the time goes.

    Args:
        after: what ships.
        before: the network before the cut.
        runtime: one whose profile of layers is read.
        threads: of one run.
        shapes: of the inputs, where the files leave them open.
        timer: what times files.

    Raises:
        DeployError: the runtime has no such profile, or a file cannot be run.
        MissingDependency: the runtime is not installed.
    """
    if runtime not in PROFILED:
        raise DeployError(f"Layer times are read from {' and '.join(PROFILED)}, not from {runtime}; name one.")
    paths = [path for path in (before, after) if path is not None]
    timings = timer(
        [Job(path=str(path)) for path in paths], How(runtime=runtime, threads=threads, layers=True, rounds=20)
    )
    own = timings[-1]
    first = timings[0].layer_times() if before is not None else None
    weights = [weights_of(path) for path in paths]
    rows = explained(own.layer_times(), first, weights[-1], weights[0] if before is not None else None)
    return Explanation(
        runtime=runtime,
        threads=threads,
        before=None if before is None else str(before),
        after=str(after),
        before_ms=None if before is None else timings[0].ms,
        after_ms=own.ms,
        load=own.load,
        rows=tuple(rows),
    )


def weights_of(path: Path) -> list[Shape]:
    """Return the shape of the weights of every product in a file, in order, as the file has them and not padded."""
    graph = parse_graph(read_bytes(path, 1 << 31))
    shapes: dict[str, Shape] = {name: tuple(tensor.shape) for name, tensor in graph.tensors.items()}
    found = []
    for node in graph.nodes:
        if node.op_type == "DequantizeLinear" and node.inputs[0] in shapes:
            shapes[node.outputs[0]] = shapes[node.inputs[0]]
        elif node.op_type in ("Conv", "Gemm", "MatMul") and len(node.inputs) > 1 and node.inputs[1] in shapes:
            found.append(shapes[node.inputs[1]])
        elif node.op_type == "ConvTranspose" and node.inputs[1] in shapes:
            found.append(turned(shapes[node.inputs[1]], depthwise=node.ints.get("group", [1])[0] > 1))
    return found


def explained(
    after: Sequence[LayerTime],
    before: Sequence[LayerTime] | None = None,
    weights: Sequence[Shape] = (),
    weights_before: Sequence[Shape] | None = None,
) -> list[LayerRow]:
    """Hold the layers of what ships against those of the network before the cut.

    Products are matched in the order in which they run where there are as many before as after, else by name.

    Args:
        after, before: layer times; without ``before`` each layer is told what bounds it.
        weights, weights_before: shapes of the products' weights as the files have them, in order.
    """
    total = sum(one.ms for one in after)
    partners = _partners(after, before) if before is not None else {}
    true = _true_weights(after, weights)
    true_before = _true_weights(before or (), weights_before or ())
    quantised = any(one.precision == "int8" for one in after if one.is_product)
    moved_before = {one.kind for one in before or () if one.kind in REORDERS}
    rows = []
    for place, one in enumerate(after):
        partner = partners.get(place)
        if not one.is_product:
            rows.append(_row_between(one, partner, total, moved_before if before is not None else set()))
            continue
        shape = true.get(place, one.weights)
        old = None if partner is None or before is None else before[partner]
        old_shape = true_before.get(partner, old.weights) if old is not None and partner is not None else ()
        share = _share(one, shape, old, old_shape)
        expected = None if old is None or share is None else old.ms * share
        row = LayerRow(
            name=one.name,
            kind=one.kind,
            widths=_widths((one, shape), (old, old_shape)),
            before_ms=None if old is None else old.ms,
            expected_ms=expected,
            after_ms=one.ms,
        )
        short = before is None or (expected is not None and one.ms > _SHORT * expected)
        if short and one.ms - (expected or 0.0) >= _NOTABLE * total:
            reason, said = _why(one, shape, quantised)
            if before is None and reason == "kernel":
                reason, said = "", ""
            row = row.model_copy(update={"reason": reason, "said": said})
        rows.append(row)
    return rows


def _why(one: LayerTime, shape: Shape, quantised: bool) -> tuple[Reason, str]:
    """Return what keeps a product from being as fast as its arithmetic."""
    if quantised and one.precision not in ("int8", ""):
        return "precision fell back", f"runs in {one.precision} though the file is int8"
    if one.ms < OVERHEAD_MS:
        return "overhead-bound", f"{1000 * one.ms:.0f} us, about what starting a layer costs"
    odd = _misaligned(one, shape)
    if odd:
        return "misaligned", odd
    intensity = _intensity(one)
    if 0 < intensity < INTENSITY:
        return "memory-bound", f"{intensity:.1f} multiply-accumulates per number moved"
    return "kernel", "its kernel gains less than the arithmetic does"


def _misaligned(one: LayerTime, shape: Shape) -> str:
    """Say which width is none that the kernel is made for; nothing where both are."""
    if len(shape) < 2:
        return ""
    ran = one.weights[-len(shape) :] if len(one.weights) >= len(shape) else ()
    for axis, what in ((0, "makes"), (1, "reads")):
        width = shape[axis]
        padded = ran[axis] if ran and ran[axis] > width else 0
        if padded:
            return f"{what} {width} channels, which run as {padded}"
        if width % LANES and width > LANES:
            return f"{what} {width} channels, no multiple of {LANES}"
    return ""


def _intensity(one: LayerTime) -> float:
    moved = sum(math.prod(shape) for shape in (*one.reads, *one.makes))
    return one.macs / moved if moved else 0.0


def _row_between(one: LayerTime, partner: int | None, total: float, moved_before: set[str]) -> LayerRow:
    """Return the row of a layer that multiplies by no weights."""
    reason: Reason = ""
    said = ""
    if one.ms >= _NOTABLE * total:
        if one.kind in REORDERS:
            reason, said = "reorder inserted", "moves data into the layout that the next kernel needs"
            if one.kind in moved_before:
                said += ", as before the cut"
        elif one.kind in CASTS:
            reason, said = "precision fell back", "changes between precisions"
        elif one.kind in _FUSABLE:
            reason, said = "not fused", "runs on its own, though a product before it could be fused with it"
        else:
            reason, said = "memory-bound", "moves data and hardly computes"
    return LayerRow(name=one.name, kind=one.kind, after_ms=one.ms, reason=reason, said=said)


def _partners(after: Sequence[LayerTime], before: Sequence[LayerTime]) -> dict[int, int]:
    """Return for each product of ``after`` the place of the same one in ``before``."""
    mine = [k for k, one in enumerate(after) if one.is_product]
    theirs = [k for k, one in enumerate(before) if one.is_product]
    if len(mine) == len(theirs):
        return dict(zip(mine, theirs, strict=True))
    named = {before[k].name: k for k in theirs}
    return {k: named[after[k].name] for k in mine if after[k].name in named}


def _true_weights(layers: Sequence[LayerTime], weights: Sequence[Shape]) -> Mapping[int, Shape]:
    """Return the unpadded weights by a layer's place; nothing where the runtime ran another number of products."""
    places = [k for k, one in enumerate(layers) if one.is_product]
    return dict(zip(places, weights, strict=True)) if len(places) == len(weights) else {}


def _share(one: LayerTime, shape: Shape, old: LayerTime | None, old_shape: Shape) -> float | None:
    """Return which share of its arithmetic a product has left."""
    if old is None:
        return None
    if shape and old_shape and old.makes and one.makes:
        # What is made may be padded; places in the image are not.
        return math.prod(shape) * one.places / (math.prod(old_shape) * old.places)
    return one.macs / old.macs if one.macs and old.macs else None


def _widths(now: tuple[LayerTime, Shape], before: tuple[LayerTime | None, Shape]) -> str:
    """Say what a product reads and makes, by the shape of its weights, and what it did before the cut."""
    layer, shape = before
    ours, theirs = _width(*now), "" if layer is None else _width(layer, shape)
    return f"{ours}, before {theirs}" if ours and theirs and ours != theirs else ours


def _width(layer: LayerTime, shape: Shape) -> str:
    if len(shape) < 2:
        return ""
    # Weights for one channel: of many that are each on their own, or of an image that has no more.
    single = layer.reads[0][1:2] == (1,) if layer.reads else False
    return f"{shape[0]} depthwise" if len(shape) > 2 and shape[1] == 1 and not single else f"{shape[1]} to {shape[0]}"
