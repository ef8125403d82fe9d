"""Define the manifest of a bundle, read it, and verify every file that it names."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError, model_validator

from deploy.bundle.calibration_summary import Calibration
from deploy.bundle.inputs import MOST_INPUTS, BundleInput, ImageInput, InputName
from deploy.errors import DeployError
from deploy.files import read_bytes
from deploy.onnx.wire import check_whole, read_onnx, scan_bytes
from deploy.processing.postprocess import DetectionDecoder, Postprocessing, SegmentationDecoder
from deploy.processing.preprocess import Preprocessing
from deploy.validation import explain

MANIFEST = "manifest.json"
# The manifest does not name the engines in this folder, for they are built after it. Each is bound to the bundle by
# its sidecar, which holds the hash of an ONNX file that the manifest names.
ENGINES_FOLDER = "engines"
Task = Literal["classification", "detection", "segmentation"]
CpuRuntime = Literal["onnxruntime", "openvino"]
Outputs = Literal["logits", "probabilities"]
_STRICT = ConfigDict(frozen=True, extra="forbid")


class BundledFile(BaseModel):
    """A file of the bundle: its plain name, its size and its SHA-256 in hexadecimal."""

    model_config = _STRICT

    file: str = Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.\-]*$", max_length=255)
    bytes: int = Field(ge=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class Weights(BaseModel):
    """Where the pretrained weights came from: their name, and the SHA-256 of their file where there was one."""

    model_config = _STRICT

    source: str
    sha256: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")


class Manifest(BaseModel):
    """The content of ``manifest.json``.

    Attributes:
        models: the file of each precision; ``default`` is loaded when no precision is named.
        tensorrt: the file that TensorRT builds from, by precision, where it is another one (signed int8).
        cpu_runtime: which runtime comes first on a CPU when both are installed: the one its figures were measured
            with, or the faster one.
        inputs: what each input of a network with several reads, in the order in which the first image is the one that
            an answer is about; empty for a network that reads one image.
        outputs: what a classifier's network returns; None in bundles that do not say it, where its file tells.
        metrics: its quality; ``latency``: its speed; ``calibration``: what its int8 model was calibrated with.
        licence: of the weights, an SPDX expression or words; None where nobody stated it.
        weights: what training started from; ``provenance``: the rest of its origin.
        version: which of the bundles of its product it is, counted upwards; None where nobody counts.
        expires: from when on it is refused; None for never.
    """

    # By default pydantic writes NaN as null without a word; as a constant it is refused when the manifest is written.
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="constants")

    format: Literal["niwaki-bundle-1"] = "niwaki-bundle-1"
    task: Task
    default: str
    models: dict[str, BundledFile] = Field(min_length=1)
    tensorrt: dict[str, BundledFile] = Field(default_factory=dict)
    cpu_runtime: CpuRuntime = "onnxruntime"
    preprocessing: Preprocessing
    inputs: dict[InputName, BundleInput] = Field(default_factory=dict, max_length=MOST_INPUTS)
    postprocessing: Postprocessing | None = None
    classes: tuple[str, ...] = Field(min_length=1)
    outputs: Outputs | None = None
    metrics: dict[str, Any] = Field(default_factory=dict)
    latency: dict[str, Any] = Field(default_factory=dict)
    calibration: Calibration | None = None
    licence: str | None = None
    weights: Weights | None = None
    provenance: dict[str, Any] = Field(default_factory=dict)
    versions: dict[str, str] = Field(default_factory=dict)
    version: int | None = Field(default=None, ge=0)
    expires: AwareDatetime | None = None

    @property
    def files(self) -> tuple[BundledFile, ...]:
        """Every file that the bundle reads beside the manifest and what is built from it."""
        return (*self.models.values(), *self.tensorrt.values())

    @model_validator(mode="after")
    def _check_parts_fit(self) -> Self:
        if self.default not in self.models:
            raise ValueError(f"the default {self.default!r} is not among the models {sorted(self.models)}")
        if set(self.tensorrt) - set(self.models):
            raise ValueError(f"tensorrt has {sorted(self.tensorrt)}, of which not all are among the models")
        if self.inputs and not any(isinstance(one, ImageInput) for one in self.inputs.values()):
            raise ValueError(f"none of the inputs {', '.join(self.inputs)} is an image")
        if len(set(self.classes)) != len(self.classes):
            raise ValueError("two classes have the same name")
        wanted = {"detection": DetectionDecoder, "segmentation": SegmentationDecoder}.get(self.task)
        if wanted is not None and not isinstance(self.postprocessing, wanted):
            raise ValueError(f"the task {self.task!r} needs a postprocessing of its own")
        if self.task == "classification" and self.postprocessing is not None:
            raise ValueError("the task 'classification' has no postprocessing")
        if self.task == "segmentation" and len(self.classes) > 255:
            raise ValueError(f"a mask tells 255 classes apart, not {len(self.classes)}")
        return self


def read_manifest(folder: Path, *, check: Callable[[bytes], None] | None = None) -> Manifest:
    """Read the manifest of the bundle at ``folder`` and verify every file that it names.

    Args:
        folder: the bundle.
        check: called with the bytes of the manifest before they are parsed; it raises where it does not trust them.

    Raises:
        DeployError: the folder is no bundle, its format is unknown, or a file is missing, altered or keeps its
            weights in another one.
    """
    path = folder / MANIFEST
    try:
        content = read_bytes(path)
        if check is not None:
            check(content)
        manifest = Manifest.model_validate_json(content)
    except OSError as error:
        raise DeployError(
            f"{folder} is not a bundle: its {MANIFEST} cannot be read ({error.strerror}); check the path."
        ) from error
    except ValidationError as error:
        raise DeployError(f"{path} is not a bundle's manifest ({explain(error)}); make the bundle again.") from error
    for item in manifest.files:
        _verify_file(folder, item)
    return manifest


def _verify_file(folder: Path, item: BundledFile) -> None:
    path = folder / item.file
    if not path.is_file() or path.is_symlink():
        raise DeployError(f"{folder} lacks the file {item.file}; copy the whole bundle again.")
    if (size := path.stat().st_size) != item.bytes:
        raise DeployError(f"{path} has {size} bytes instead of {item.bytes}; copy the whole bundle again.")
    content = read_onnx(path)
    if (found := hashlib.sha256(content).hexdigest()) != item.sha256:
        raise DeployError(
            f"{path} was altered: its SHA-256 is {found[:12]}... instead of {item.sha256[:12]}...; "
            "copy the whole bundle again."
        )
    check_whole(path, scan_bytes(content, path))
