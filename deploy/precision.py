"""Half precision: weights and arithmetic of an ONNX file in fp16, its inputs and outputs still float32."""

from __future__ import annotations

from pathlib import Path

from deploy.errors import DeployError
from deploy.files import sha256
from deploy.onnxfile import PRECISION, SOURCE, metadata, missing, quiet, read, write


def fp16_from_fp32(src: Path, dst: Path) -> Path:
    """Write the fp16 variant of the fp32 file ``src`` to ``dst``; metadata is kept.

    Raises:
        DeployError: ``src`` is missing, is not ONNX, is not fp32 or cannot be converted.
        MissingDependency: onnxconverter-common is not installed.
    """
    src = Path(src)
    model = read(src)
    props = metadata(model)
    if props.get(PRECISION, "fp32") != "fp32":
        raise DeployError(f"{src} is {props[PRECISION]}; make the fp16 file from the fp32 one.")
    try:
        with quiet():
            from onnxconverter_common import float16
    except ImportError as error:
        raise missing("onnxconverter-common", "Making an fp16 file", "compress") from error
    with quiet():
        try:
            half = float16.convert_float_to_float16(model, keep_io_types=True)
        except (ValueError, TypeError) as error:
            raise DeployError(f"{src} cannot be made fp16 ({error}); ship its fp32 or int8 file instead.") from error
    return write(half, Path(dst), {**props, PRECISION: "fp16", SOURCE: sha256(src)})
