"""Hold a bundle's manifest against what its networks take and give: what cannot predict is neither signed nor built."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from deploy.bundle.decoded import outputs_of, probabilities
from deploy.bundle.inputs import ImageInput, check_inputs, compatible, trial_feeds
from deploy.bundle.manifest import Manifest
from deploy.engines import load_engine
from deploy.engines.base import Engine
from deploy.errors import DeployError, MissingDependency
from deploy.processing.postprocess import DetectionDecoder, SegmentationDecoder


def check_predictable(folder: Path, manifest: Manifest) -> None:
    """Refuse a bundle of which a model does not do by ONNX Runtime what ``load`` and ``predict`` ask of it.

    It has to load, to fit the manifest, and to give a prediction for an image of noise. Where ONNX Runtime is not
    installed, as on a device with TensorRT alone, nothing is loaded here.

    Raises:
        DeployError: one does not.
    """
    for precision, item in (*manifest.models.items(), *manifest.tensorrt.items()):
        path = folder / item.file
        if precision == "bf16":
            continue  # no CPU provider computes in it
        try:
            engine = load_engine(path, runtime="onnxruntime", sha256=item.sha256)
        except MissingDependency:
            return
        with engine:
            check_fit(folder, manifest, engine)
            _try(folder, manifest, engine)


def _try(folder: Path, manifest: Manifest, engine: Engine) -> None:
    """Predict an image of noise, two in one run where the network takes a single input and any batch."""
    read = manifest.inputs or {next(iter(engine.inputs)): ImageInput()}
    feeds = trial_feeds(read, manifest.preprocessing, 256, 0)
    rows = 2 if not manifest.inputs and all(spec.shape[0] is None for spec in engine.inputs.values()) else 1
    outputs = engine.run({name: np.repeat(value, 2, 0) if rows == 2 else value for name, value in feeds.items()})
    name = f"{folder}, {engine.precision},"
    check_outputs(name, manifest, outputs, rows)
    if manifest.task == "classification":
        check_finite(name, first := next(iter(outputs.values()))[0])
        probabilities(first, outputs_of(folder, manifest), manifest.outputs is not None, name)


def check_fit(folder: Path, manifest: Manifest, engine: Engine) -> None:
    """Refuse a bundle whose preprocessing or classes are not those of its network."""
    if manifest.inputs:
        check_inputs(str(folder), manifest.inputs, engine.inputs, manifest.preprocessing)
    else:
        _check_image(folder, manifest, engine)
    outputs = list(engine.outputs.values())
    decoder = manifest.postprocessing
    if isinstance(decoder, DetectionDecoder):
        _check_detector(folder, manifest, engine, decoder)
        return
    found = outputs[0] if outputs else "nothing"
    if isinstance(found, str) or not compatible(found.shape, (None, *expected_outputs(manifest, [""])[""])):
        raise DeployError(
            f"{folder} is for {manifest.task} and names {len(manifest.classes)} classes but its network gives {found}; "
            "make the bundle again."
        )


def _check_image(folder: Path, manifest: Manifest, engine: Engine) -> None:
    inputs, want = list(engine.inputs.values()), manifest.preprocessing.shape
    fits = len(inputs) == 1 and inputs[0].dtype == "float32" and compatible(inputs[0].shape, (None, *want))
    if not fits:
        raise DeployError(
            f"{folder} prepares images as float32 {list(want)} but its network takes "
            f"{', '.join(map(str, inputs)) or 'nothing'}; make the bundle again."
        )
    if inputs[0].shape[0] not in (None, 1):
        raise DeployError(f"{folder} takes {inputs[0].shape[0]} images at once, always; export it with a free batch.")


def _check_detector(folder: Path, manifest: Manifest, engine: Engine, decoder: DetectionDecoder) -> None:
    want = decoder.shapes(len(manifest.classes))
    shapes = {name: spec.shape[1:] for name, spec in engine.outputs.items()}
    if set(shapes) != set(want) or not all(compatible(shapes[name], want[name]) for name in want):
        raise DeployError(
            f"{folder} decodes {want} for {len(manifest.classes)} classes but its network gives {shapes}; "
            "make the bundle again."
        )


def expected_outputs(manifest: Manifest, names: Sequence[str]) -> dict[str, tuple[int | None, ...]]:
    """Return the shape, without the batch, of each output that a prediction is read from.

    Classes and masks are read from the first output.
    """
    decoder, known = manifest.postprocessing, len(manifest.classes)
    if isinstance(decoder, DetectionDecoder):
        return dict(decoder.shapes(known))
    if isinstance(decoder, SegmentationDecoder):
        return {names[0]: (None, None) if decoder.in_graph else (known, None, None)}
    return {names[0]: (known,)}


def check_outputs(name: str, manifest: Manifest, outputs: Mapping[str, np.ndarray], images: int) -> None:
    """Refuse outputs that are no prediction: NaN, infinite boxes or masks, a wrong shape where one was free.

    Args:
        name: of the bundle.
        manifest: its own.
        outputs: of one run.
        images: how many it was of.

    Raises:
        DeployError: they are none.
    """
    for key, wanted in expected_outputs(manifest, list(outputs)).items():
        values = outputs[key]
        if not compatible(values.shape, (images, *wanted)) or 0 in values.shape[1:]:
            raise DeployError(
                f"{name} gives {key!r} as {list(values.shape)} for {images} images; make the bundle again."
            )
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            what = "NaN" if np.isnan(values).any() else "infinity"
            if what == "NaN" or manifest.postprocessing is not None:
                raise DeployError(f"{name} gives {what} in {key!r}; take another precision or make the bundle again.")


def check_finite(name: str, logits: np.ndarray) -> None:
    """Refuse the logits of one image of which the largest is infinite, so that no class is the likeliest.

    Raises:
        DeployError: it is.
    """
    if not np.isfinite(logits.max()):
        raise DeployError(f"{name} gives infinity; take another precision or make the bundle again.")
