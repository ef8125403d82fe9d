"""The manifest of a bundle: what it says, how it is written and how it is verified."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, Self, cast

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from deploy.bench.records import explain, versions_info
from deploy.bundle.calibration_summary import Calibration
from deploy.bundle.signing import check
from deploy.errors import DeployError
from deploy.files import sha256, share
from deploy.onnx.metadata import About
from deploy.onnx.wire import scan
from deploy.processing.postprocess import Detection, Postprocessing, Segmentation
from deploy.processing.preprocess import Preprocessing

MANIFEST = "manifest.json"
Task = Literal["classification", "detection", "segmentation"]
_STRICT = ConfigDict(frozen=True, extra="forbid")


class BundledFile(BaseModel):
    """A file of the bundle: its plain name, its size and its SHA-256 in hexadecimal."""

    model_config = _STRICT

    file: str = Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.\-]*$")
    bytes: int = Field(ge=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class Weights(BaseModel):
    """Where the pretrained weights came from: their name, and the SHA-256 of the file where there was one."""

    model_config = _STRICT

    source: str
    sha256: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")


class Manifest(BaseModel):
    """What ``manifest.json`` says.

    Attributes:
        models: precision to its file; ``default`` is the one that is loaded when none is named.
        tensorrt: precision to the file that TensorRT builds from, where that is another one (signed int8).
        cpu_runtime: what runs it on a CPU where both are installed: what its figures were measured with, or the faster.
        metrics: its quality, ``latency``: its speed, ``calibration``: what its int8 model was calibrated with.
        licence: of the weights, an SPDX expression or words; None where nobody stated it.
        weights: what training began from; ``provenance``: the rest of where it comes from.
    """

    # Left alone pydantic writes NaN as null without a word; kept, it is refused when the manifest is written.
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="constants")

    format: Literal["niwaki-bundle-1"] = "niwaki-bundle-1"
    task: Task
    default: str
    models: dict[str, BundledFile] = Field(min_length=1)
    tensorrt: dict[str, BundledFile] = Field(default_factory=dict)
    cpu_runtime: Literal["onnxruntime", "openvino"] = "onnxruntime"
    preprocessing: Preprocessing
    postprocessing: Postprocessing | None = None
    classes: tuple[str, ...] = Field(min_length=1)
    metrics: dict[str, Any] = Field(default_factory=dict)
    latency: dict[str, Any] = Field(default_factory=dict)
    calibration: Calibration | None = None
    licence: str | None = None
    weights: Weights | None = None
    provenance: dict[str, Any] = Field(default_factory=dict)
    versions: dict[str, str] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _has_default(self) -> Self:
        if self.default not in self.models:
            raise ValueError(f"the default {self.default!r} is not among the models {sorted(self.models)}")
        if set(self.tensorrt) - set(self.models):
            raise ValueError(f"tensorrt has {sorted(self.tensorrt)}, of which not all are among the models")
        if len(set(self.classes)) != len(self.classes):
            raise ValueError("two classes have the same name")
        wanted = {"detection": Detection, "segmentation": Segmentation}.get(self.task)
        if wanted is not None and not isinstance(self.postprocessing, wanted):
            raise ValueError(f"the task {self.task!r} needs a postprocessing of its own")
        if self.task == "classification" and self.postprocessing is not None:
            raise ValueError("the task 'classification' has no postprocessing")
        if self.task == "segmentation" and len(self.classes) > 255:
            raise ValueError(f"a mask tells 255 classes apart, not {len(self.classes)}")
        return self


def write_bundle(
    folder: str | Path,
    *,
    models: Mapping[str, Path],
    default: str,
    preprocessing: Preprocessing,
    classes: Sequence[str],
    task: Task = "classification",
    postprocessing: Detection | Segmentation | None = None,
    metrics: Mapping[str, Any],
    latency: Mapping[str, Any],
    provenance: Mapping[str, Any],
    tensorrt: Mapping[str, Path] = MappingProxyType({}),
    cpu_runtime: Literal["onnxruntime", "openvino"] = "onnxruntime",
    calibration: Calibration | None = None,
    licence: str | None = None,
    weights: Weights | None = None,
) -> Path:
    """Write a bundle to ``folder``, whole or not at all; an older bundle there is replaced.

    Args:
        folder: where it goes.
        models: precision to ONNX file; copied as ``model.<precision>.onnx``.
        default: the precision that is loaded when none is named.
        preprocessing: how an image becomes the network's input.
        classes: their names, in the order of the network's outputs.
        task: what the network does: ``classification``, ``detection`` or ``segmentation``.
        postprocessing: from its raw outputs to boxes or classes of pixels, for the latter two.
        metrics: what was measured about its quality; JSON values.
        latency: what was measured about its speed; JSON values.
        provenance: where it comes from; JSON values.
        tensorrt: precision to the ONNX file that TensorRT builds from, where it is not that of ``models``.
        cpu_runtime: which runtime goes first on a CPU.
        calibration: what the int8 model was calibrated with.
        licence: of the weights, an SPDX expression or words.
        weights: what training began from.

    Raises:
        DeployError: a model file is missing or says other classes or another preprocessing of itself, the parts do not
            fit, or ``folder`` holds something else.
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
        items = {precision: _copy(source, new, precision) for precision, source in models.items()}
        signed = {precision: _copy(source, new, precision, ".trt") for precision, source in tensorrt.items()}
        for source in (*models.values(), *tensorrt.values()):
            _agree(Path(source), tuple(classes), preprocessing)
        try:
            manifest = Manifest(
                task=task,
                default=default,
                models=items,
                tensorrt=signed,
                cpu_runtime=cpu_runtime,
                preprocessing=preprocessing,
                postprocessing=cast("Postprocessing | None", postprocessing),
                classes=tuple(classes),
                metrics=dict(metrics),
                latency=dict(latency),
                calibration=calibration,
                licence=licence,
                weights=weights,
                provenance=dict(provenance),
                versions=versions_info(),
            )
            text = json.dumps(manifest.model_dump(mode="json"), indent=2, allow_nan=False)
        except ValidationError as error:
            raise DeployError(f"The bundle {folder} cannot be written ({explain(error)}).") from error
        except ValueError as error:
            raise DeployError(f"The bundle {folder} cannot be written ({error}); give JSON values.") from error
        (new / MANIFEST).write_text(text + "\n", encoding="utf-8")
        _put_in_place(new, folder, temporary / "old")
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def _copy(source: Path, folder: Path, precision: str, kind: str = "") -> BundledFile:
    if not Path(source).is_file():
        raise DeployError(f"There is no {precision} model at {source}; export it first.")
    if not re.fullmatch(r"[a-z0-9]+", precision):
        raise DeployError(f"The precision is {precision!r}; use small letters and digits, such as fp32 or int8.")
    if outside := scan(Path(source)).outside:
        raise DeployError(f"{source} keeps {outside[0]!r} in another file, which no hash covers; save it as one file.")
    target = folder / f"model.{precision}{kind}.onnx"
    shutil.copyfile(source, target)
    return BundledFile(file=target.name, bytes=target.stat().st_size, sha256=sha256(target))


def _agree(source: Path, classes: tuple[str, ...], preprocessing: Preprocessing) -> None:
    """Refuse a model file whose own properties tell of other classes or another preprocessing."""
    said = About.of(source)
    for name, own, given in (
        ("classes", said.classes, classes),
        ("preprocessing", said.preprocessing, preprocessing),
    ):
        if own is not None and own != given:
            raise DeployError(
                f"{source} says of itself {name} {own}, and the bundle {given}; give the bundle what the file was "
                "exported with."
            )


def _put_in_place(new: Path, folder: Path, aside: Path) -> None:
    """Rename ``new`` to ``folder``; an older bundle steps aside first, for a full folder is in the way."""
    share(new)
    if folder.exists():
        folder.rename(aside)
    try:
        new.rename(folder)
    except OSError:
        if aside.exists():
            aside.rename(folder)
        raise


def read_manifest(folder: Path, *, trusted_key: Path | None = None) -> Manifest:
    """Read the manifest of the bundle at ``folder`` and verify every file it names.

    Args:
        folder: the bundle.
        trusted_key: a PEM file with the Ed25519 public key whose owner has to have signed the manifest.

    Raises:
        DeployError: the folder is no bundle, its format is unknown, a file is missing or altered, or the signature is.
        MissingDependency: a key is given and the package cryptography is not installed.
    """
    path = folder / MANIFEST
    try:
        if path.exists() and not path.is_file():  # a pipe would be waited for
            raise DeployError(f"{folder} is not a bundle: its {MANIFEST} is no file; copy the whole bundle again.")
        content = path.read_bytes()
        if trusted_key is not None:
            check(folder, content, trusted_key)
        manifest = Manifest.model_validate_json(content)
    except OSError as error:
        raise DeployError(
            f"{folder} is not a bundle: its {MANIFEST} cannot be read ({error.strerror}); check the path."
        ) from error
    except ValidationError as error:
        raise DeployError(f"{path} is not a bundle's manifest ({explain(error)}); make the bundle again.") from error
    for item in (*manifest.models.values(), *manifest.tensorrt.values()):
        _verify(folder, item)
    return manifest


def _verify(folder: Path, item: BundledFile) -> None:
    path = folder / item.file
    if not path.is_file() or path.is_symlink():
        raise DeployError(f"{folder} lacks the file {item.file}; copy the whole bundle again.")
    size = path.stat().st_size
    if size != item.bytes:
        raise DeployError(f"{path} has {size} bytes instead of {item.bytes}; copy the whole bundle again.")
    found = sha256(path)
    if found != item.sha256:
        raise DeployError(
            f"{path} was altered: its SHA-256 is {found[:12]}... instead of {item.sha256[:12]}...; "
            "copy the whole bundle again."
        )
