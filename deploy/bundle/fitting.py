"""Hold a bundle's manifest against what its networks take and give: what cannot predict is neither signed nor built."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from deploy.bundle.inputs import check_inputs, compatible
from deploy.bundle.manifest import Manifest
from deploy.engines import load_engine
from deploy.engines.base import Engine
from deploy.errors import DeployError, MissingDependency
from deploy.processing.postprocess import DetectionDecoder, SegmentationDecoder


def check_predictable(folder: Path, manifest: Manifest) -> None:
    """Refuse a bundle of which a model cannot be loaded by ONNX Runtime or does not fit the manifest, as ``load`` does.

    Where ONNX Runtime is not installed, as on a device with TensorRT alone, nothing is loaded here.

    Raises:
        DeployError: one does not.
    """
    for precision, item in manifest.models.items():
        path = folder / item.file
        if precision == "bf16":
            continue  # no CPU provider computes in it
        try:
            engine = load_engine(path, runtime="onnxruntime", sha256=item.sha256)
        except MissingDependency:
            return
        with engine:
            check_fit(folder, manifest, engine)


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
