"""Explain TensorRT engines by the JSON that its own tool writes of them; TensorRT need not be installed here."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from deploy.errors import DeployError
from deploy.files import read_bytes
from deploy.latency.explain import Explanation, explained
from deploy.latency.layers import LayerTime, Shape
from deploy.validation import explain

_HOW = "trtexec --dumpProfile --separateProfileRun --exportProfile=FILE.json"
_PRECISIONS = (("int8", "int8"), ("half", "fp16"), ("fp16", "fp16"), ("float", "fp32"), ("fp32", "fp32"))
_KINDS = (("reformat", "Reorder"), ("conv", "Conv"), ("gemm", "Gemm"), ("matrixmultiply", "MatMul"))


class _Timed(BaseModel):
    """One layer of a profile; TensorRT writes more than is read here."""

    model_config = ConfigDict(extra="ignore")

    name: str
    averageMs: Annotated[float, Field(ge=0, le=1e9)]  # noqa: N815 - TensorRT's own name
    medianMs: Annotated[float, Field(ge=0, le=1e9)] | None = None  # noqa: N815


class _Tensor(BaseModel):
    model_config = ConfigDict(extra="ignore")

    dimensions: Annotated[tuple[int, ...], Field(alias="Dimensions")] = ()
    format: Annotated[str, Field(alias="Format/Datatype")] = ""


class _Layer(BaseModel):
    """One layer of an engine's description, as detailed profiling tells of it."""

    model_config = ConfigDict(extra="ignore")

    name: Annotated[str, Field(alias="Name")]
    kind: Annotated[str, Field(alias="LayerType")] = ""
    inputs: Annotated[tuple[_Tensor, ...], Field(alias="Inputs")] = ()
    outputs: Annotated[tuple[_Tensor, ...], Field(alias="Outputs")] = ()
    kernel: Annotated[tuple[int, ...], Field(alias="Kernel")] = ()
    maps: Annotated[int, Field(alias="OutMaps", ge=0)] = 0
    groups: Annotated[int, Field(alias="Groups", ge=1)] = 1
    tactic: Annotated[str, Field(alias="TacticName")] = ""

    def weights(self) -> Shape:
        """Return the shape of a convolution's weights; empty where the description lacks it."""
        read = self.inputs[0].dimensions if self.inputs else ()
        if not self.maps or not self.kernel or len(read) < 2:
            return ()
        return (self.maps, max(1, read[1] // self.groups), *self.kernel)


def read_layers(path: Path) -> tuple[LayerTime, ...]:
    """Read the layer times of an engine from a profile that ``trtexec`` exported.

    Where ``NAME.layers.json`` lies beside ``NAME.json``, written by ``--exportLayerInfo`` with
    ``--profilingVerbosity=detailed``, it says what the layers read and make; without it only names and times are known.

    Raises:
        DeployError: a file is missing or not what TensorRT writes.
    """
    rows = [row for row in _json(path, list) if not (isinstance(row, dict) and "name" not in row and "count" in row)]
    try:
        times = [_Timed.model_validate(row) for row in rows]
    except ValidationError as error:
        raise DeployError(f"{path} is not a profile of TensorRT ({explain(error)}); write it with {_HOW}.") from None
    if not times:
        raise DeployError(f"{path} holds no layers; write it with {_HOW}.")
    about = _described(path.with_name(f"{path.stem}.layers.json"))
    return tuple(_layer(one, about.get(one.name)) for one in times)


def explain_profiles(after: Path, before: Path | None = None) -> Explanation:
    """Say where the time of a TensorRT engine goes, or of two, from exported profiles.

    Args:
        after: the profile of what ships.
        before: that of the network before the cut.

    Raises:
        DeployError: see ``read_layers``.
    """
    own = read_layers(after)
    first = None if before is None else read_layers(before)
    return Explanation(
        runtime="tensorrt",
        threads=0,
        before=None if before is None else str(before),
        after=str(after),
        before_ms=None if first is None else _total(first),
        after_ms=_total(own),
        rows=tuple(explained(own, first)),
    )


def _total(layers: Sequence[LayerTime]) -> float:
    return math.fsum(one.ms for one in layers)


def _layer(timed: _Timed, about: _Layer | None) -> LayerTime:
    ms = timed.averageMs if timed.medianMs is None else timed.medianMs
    if about is None:
        return LayerTime(timed.name, _kind(timed.name), "", "", ms)
    reads = tuple(one.dimensions for one in about.inputs)
    if weights := about.weights():
        reads = (*reads[:1], weights)
    makes = tuple(one.dimensions for one in about.outputs)
    format_ = about.inputs[0].format.lower() if about.inputs else ""
    precision = next((name for word, name in _PRECISIONS if word in format_), "")
    return LayerTime(timed.name, _kind(about.kind or timed.name), about.tactic, precision, ms, reads, makes)


def _kind(said: str) -> str:
    """Return the kind of a layer in the words of ``deploy.latency.layers``; its own word where there is none."""
    return next((kind for word, kind in _KINDS if word in said.lower().replace(" ", "")), said)


def _described(path: Path) -> dict[str, _Layer]:
    """Read what the layers are; nothing where no description lies there."""
    if not path.is_file():
        return {}
    given = _json(path, dict).get("Layers", [])
    if isinstance(given, list) and any(isinstance(one, str) for one in given):
        raise DeployError(f"{path} names its layers only; build the engine with --profilingVerbosity=detailed.")
    try:
        layers = [_Layer.model_validate(one) for one in given]
    except (ValidationError, TypeError) as error:
        said = explain(error) if isinstance(error, ValidationError) else str(error)
        raise DeployError(f"{path} does not describe an engine ({said}); write it with --exportLayerInfo.") from None
    return {one.name: one for one in layers}


def _json(path: Path, kind: type) -> Any:
    try:
        found = json.loads(read_bytes(path))
    except OSError as error:
        raise DeployError(f"Cannot read {path} ({error.strerror}); write it with {_HOW}.") from None
    except (ValueError, RecursionError):
        raise DeployError(f"{path} is not JSON; write it with {_HOW}.") from None
    if not isinstance(found, kind):
        raise DeployError(f"{path} holds {type(found).__name__}, not {kind.__name__}; write it with {_HOW}.")
    return found
