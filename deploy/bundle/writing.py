"""Write a bundle to a folder, whole or not at all."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

from pydantic import ValidationError

from deploy.bundle.calibration_summary import Calibration
from deploy.bundle.decoded import stated_outputs
from deploy.bundle.inputs import ImageInput, TensorInput, check_inputs, derived
from deploy.bundle.manifest import MANIFEST, BundledFile, CpuRuntime, Manifest, Outputs, Task, Weights
from deploy.engines.base import TensorSpec
from deploy.environment import versions_info
from deploy.errors import DeployError
from deploy.files import apply_umask
from deploy.onnx.file import SOURCE
from deploy.onnx.metadata import Metadata
from deploy.onnx.precision import precision_in
from deploy.onnx.wire import check_whole, read_onnx, scan_bytes
from deploy.onnx.wire_graph import parse_graph
from deploy.processing.postprocess import DetectionDecoder, Postprocessing, SegmentationDecoder
from deploy.processing.preprocess import Preprocessing
from deploy.validation import explain


@dataclass(frozen=True)
class BundleSpec:
    """The parts of a bundle that is to be written.

    Attributes:
        models: the ONNX file of each precision; copied as ``model.<precision>.onnx``.
        default: the precision that is loaded when none is named.
        preprocessing: how an image becomes the network's input.
        inputs: what each input of a network with several reads, by its name in the file, the image that an answer is
            about before other images; empty where that can be told: one image that ``preprocessing`` fits, the others
            tensors.
        classes: their names, in the order of the network's outputs.
        task: ``classification``, ``detection`` or ``segmentation``.
        postprocessing: from the network's raw outputs to boxes or classes of pixels; None for classification.
        outputs: what a classifier's files return, ``logits`` or ``probabilities``; None where they shall tell it, which
            they do where they end in a softmax or a sigmoid, or where what they give for noise sums to 1.
        metrics: what was measured of its quality; JSON values.
        latency: what was measured of its speed; JSON values.
        provenance: where it comes from; JSON values.
        tensorrt: the ONNX file that TensorRT builds from, by precision, where it differs from that in ``models``.
        cpu_runtime: which runtime comes first on a CPU.
        calibration: what the int8 model was calibrated with.
        licence: of the weights, an SPDX expression or words.
        weights: what training started from.
    """

    models: Mapping[str, Path]
    default: str
    preprocessing: Preprocessing
    classes: Sequence[str]
    task: Task = "classification"
    postprocessing: DetectionDecoder | SegmentationDecoder | None = None
    inputs: Mapping[str, ImageInput | TensorInput] = field(default_factory=dict)
    outputs: Outputs | None = None
    metrics: Mapping[str, Any] = field(default_factory=dict)
    latency: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    tensorrt: Mapping[str, Path] = field(default_factory=dict)
    cpu_runtime: CpuRuntime = "onnxruntime"
    calibration: Calibration | None = None
    licence: str | None = None
    weights: Weights | None = None


def write_bundle(folder: str | Path, spec: BundleSpec) -> Path:
    """Write a bundle of ``spec`` to ``folder``; an older bundle there is replaced.

    Raises:
        DeployError: a model file is missing or states other classes or another preprocessing, which of several inputs
            is an image cannot be told, the parts do not fit together, such as logits that are probabilities already,
            or ``folder`` holds something else.
    """
    folder = Path(folder)
    if folder.exists() and not (folder / MANIFEST).is_file() and (not folder.is_dir() or any(folder.iterdir())):
        raise DeployError(f"{folder} exists and is not a bundle; choose another folder or remove it.")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    except OSError as error:
        raise DeployError(f"Cannot write {folder} ({error.strerror}); choose a folder you may write to.") from error
    new = temporary / "new"
    new.mkdir()
    try:
        inputs = _inputs(spec)
        models = {precision: _copy(source, new, precision) for precision, source in spec.models.items()}
        tensorrt = {precision: _copy(source, new, precision, ".trt") for precision, source in spec.tensorrt.items()}
        for source in (*spec.models.values(), *spec.tensorrt.values()):
            _check_metadata(Path(source), spec)
        (new / MANIFEST).write_text(
            _manifest_text(folder, replace(spec, inputs=inputs), models, tensorrt), encoding="utf-8"
        )
        _put_in_place(new, folder, temporary / "old")
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def _manifest_text(
    folder: Path, spec: BundleSpec, models: dict[str, BundledFile], tensorrt: dict[str, BundledFile]
) -> str:
    try:
        manifest = Manifest(
            task=spec.task,
            default=spec.default,
            models=models,
            tensorrt=tensorrt,
            cpu_runtime=spec.cpu_runtime,
            preprocessing=spec.preprocessing,
            inputs=dict(spec.inputs),
            postprocessing=cast("Postprocessing | None", spec.postprocessing),
            classes=tuple(spec.classes),
            outputs=stated_outputs(
                [*spec.models.values(), *spec.tensorrt.values()],
                spec.task,
                spec.postprocessing,
                spec.outputs,
                spec.preprocessing,
                spec.inputs,
            ),
            metrics=dict(spec.metrics),
            latency=dict(spec.latency),
            calibration=spec.calibration,
            licence=spec.licence,
            weights=spec.weights,
            provenance=dict(spec.provenance),
            versions=versions_info(),
        )
        return json.dumps(manifest.model_dump(mode="json"), indent=2, allow_nan=False) + "\n"
    except ValidationError as error:
        raise DeployError(f"The bundle {folder} cannot be written ({explain(error)}).") from error
    except ValueError as error:
        raise DeployError(f"The bundle {folder} cannot be written ({error}); give JSON values.") from error


def _copy(source: Path, folder: Path, precision: str, suffix: str = "") -> BundledFile:
    if not Path(source).is_file():
        raise DeployError(f"There is no {precision} model at {source}; export it first.")
    if not re.fullmatch(r"[a-z0-9]+", precision):
        raise DeployError(f"The precision is {precision!r}; use small letters and digits, such as fp32 or int8.")
    content = read_onnx(Path(source))
    wire = scan_bytes(content, Path(source))
    check_whole(Path(source), wire)
    # A file that was made from an fp32 one may keep every layer of it, and is then what it was made as.
    if (found := precision_in(Path(source))) not in (None, precision) and SOURCE not in wire.properties:
        raise DeployError(f"{source} is given as {precision} and is {found}; name the precision that it has.")
    target = folder / f"model.{precision}{suffix}.onnx"
    target.write_bytes(content)
    return BundledFile(file=target.name, bytes=len(content), sha256=hashlib.sha256(content).hexdigest())


_TYPES = {
    1: "float32", 2: "uint8", 3: "int8", 6: "int32", 7: "int64", 9: "bool", 10: "float16", 11: "float64",
}  # fmt: skip


def _inputs(spec: BundleSpec) -> dict[str, ImageInput | TensorInput]:
    """Return what each input of the files reads; empty where they read one image and nothing else was stated.

    Raises:
        DeployError: a file has no inputs, or others than were stated or than another file has, or which of them is an
            image cannot be told.
    """
    found = dict(spec.inputs)
    for source in map(Path, (*spec.models.values(), *spec.tensorrt.values())):
        if not source.is_file():
            continue  # what copies it says so
        specs = _specs(source)
        if not found and len(specs) > 1:
            found = derived(specs, spec.preprocessing, str(source))
        if found:
            check_inputs(str(source), found, specs, spec.preprocessing)
    return found


def _specs(source: Path) -> dict[str, TensorSpec]:
    """Return the inputs of an ONNX file that are no weights, by name."""
    try:
        graph = parse_graph(read_onnx(source))
    except (ValueError, IndexError, TypeError) as error:
        raise DeployError(f"{source} is not a valid ONNX file; export the model again.") from error
    names = [name for name in graph.inputs if name not in graph.tensors]
    return {
        name: TensorSpec(
            _TYPES.get(graph.input_types[name], "unknown"), tuple(one or None for one in graph.inputs[name])
        )
        for name in names
    }


def _check_metadata(source: Path, spec: BundleSpec) -> None:
    """Refuse a model file that states other classes or another preprocessing than the bundle."""
    stated = Metadata.from_file(source)
    for name, own, given in (
        ("classes", stated.classes, tuple(spec.classes)),
        ("preprocessing", stated.preprocessing, spec.preprocessing),
    ):
        if own is not None and own != given:
            raise DeployError(
                f"{source} states {name} {own}, but the bundle {given}; give the bundle what the file was "
                "exported with."
            )


def _put_in_place(new: Path, folder: Path, aside: Path) -> None:
    """Rename ``new`` to ``folder``; an older bundle is moved aside first, for a full folder cannot be replaced."""
    apply_umask(new)
    if folder.exists():
        folder.rename(aside)
    try:
        new.rename(folder)
    except OSError:
        if aside.exists():
            aside.rename(folder)
        raise
