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
from deploy.onnx.opsets import of_domain

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
        DeployError: the file is missing, is not ONNX, or is newer than the package onnx.
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
        _check_known(path, model)
        onnx.checker.check_model(model)
    except (DecodeError, onnx.checker.ValidationError, UnicodeDecodeError, OSError) as error:
        raise DeployError(f"{path} is not a valid ONNX file; export the model again.") from error
    return model


def _check_known(path: Path, model: onnx.ModelProto) -> None:
    """Refuse a file of a later format or operator set than the package onnx knows: its checker takes some for sound."""
    import onnx

    if model.ir_version > onnx.IR_VERSION:
        raise DeployError(
            f"{path} is of format (IR version) {model.ir_version} and onnx {onnx.__version__} reads {onnx.IR_VERSION} "
            "at most; update onnx, or export the file for an older one."
        )
    known = onnx.defs.C.schema_version_map()
    for one in model.opset_import:
        most = known.get("" if one.domain == "ai.onnx" else one.domain, (0, one.version))[1]
        if one.version > most:
            raise DeployError(
                f"{path} is of operator set {one.version}{of_domain(one.domain)} and onnx {onnx.__version__} knows "
                f"{most} at most; update onnx, or export the file with an opset of at most {most}"
                f"{of_domain(one.domain)}."
            )


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
