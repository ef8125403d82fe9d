"""Read and write ONNX files with the package ``onnx``, which the runtime path does without."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from deploy.errors import DeployError, MissingDependency
from deploy.files import replacing

if TYPE_CHECKING:
    import onnx

PRECISION = "niwaki.precision"
SOURCE = "niwaki.source_sha256"


def missing_package(package: str, need: str, extra: str) -> MissingDependency:
    """Return the error for an optional package that cannot be imported; ``need`` names what requires it."""
    return MissingDependency(
        f"{need} needs the package {package}, which cannot be imported here; get it with "
        f"`uv sync --extra {extra}` or `pip install 'niwaki-vision[{extra}]'`."
    )


def read(path: Path) -> onnx.ModelProto:
    """Parse the ONNX file at ``path``.

    Raises:
        DeployError: the file is missing or is not ONNX.
        MissingDependency: the package onnx is not installed.
    """
    try:
        import onnx
        from google.protobuf.message import DecodeError
    except ImportError as error:
        raise missing_package("onnx", f"Reading {path.name}", "compress") from error
    if not path.is_file():
        raise DeployError(f"There is no ONNX file at {path}; export the model first.")
    try:
        model = onnx.load(path)
        onnx.checker.check_model(model)
    except (DecodeError, onnx.checker.ValidationError, UnicodeDecodeError, OSError) as error:
        raise DeployError(f"{path} is not a valid ONNX file; export the model again.") from error
    return model


def write(model: onnx.ModelProto, path: Path, metadata: Mapping[str, str]) -> Path:
    """Write ``model``, weights included, to ``path`` in one step, with ``metadata`` as its only properties, sorted."""
    import onnx

    onnx.helper.set_model_props(model, dict(sorted(metadata.items())))
    with replacing(path) as temporary:
        onnx.save(model, temporary)
    return path


def properties(model: onnx.ModelProto) -> dict[str, str]:
    """Return the model's metadata properties."""
    return {prop.key: prop.value for prop in model.metadata_props}


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep a library's output (prints, progress bars, warnings, log lines) off the terminal."""
    before = logging.root.manager.disable
    sink = io.StringIO()
    with contextlib.redirect_stdout(sink), contextlib.redirect_stderr(sink), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.CRITICAL)
        try:
            yield
        finally:
            logging.disable(before)
