"""Write ONNX Runtime's own format, and the operators that a build of it for small devices has to contain."""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path

from deploy.engines.base import first_line
from deploy.engines.unreported import unreported
from deploy.errors import DeployError, MissingDependency
from deploy.files import replacing
from deploy.onnx.wire import check_whole, read_model

OPERATORS = ".required_operators.config"


def ort_from_onnx(src: Path, dst: Path) -> Path:
    """Write the ONNX file ``src`` as ``dst`` in ONNX Runtime's format, optimised for any processor.

    A minimal build (``build.sh --minimal_build --include_ops_by_config``) reads no other format; the list of operators
    that it is built with is written beside ``dst``, as NAME.required_operators.config. Any build of ONNX Runtime of
    this version or later loads ``dst`` too.

    Args:
        src: an ONNX file that keeps its weights inside.
        dst: where the file goes; its name ends in ``.ort``, by which ONNX Runtime knows it.

    Returns:
        The path of the list of operators.

    Raises:
        DeployError: ``src`` is missing or cannot be loaded, or ``dst`` has another ending.
        MissingDependency: ONNX Runtime is not installed.
    """
    src, dst = Path(src), Path(dst)
    if dst.suffix != ".ort":
        raise DeployError(f"{dst} would not be known as ONNX Runtime's format; give it the ending .ort.")
    try:
        with unreported():
            import onnxruntime as ort
        from onnxruntime.tools.ort_format_model import create_config_from_models
    except ImportError as error:
        raise MissingDependency(
            f"{error.name} cannot be imported here; get it with `pip install onnxruntime`."
        ) from error
    data, wire = read_model(src)
    check_whole(src, wire)
    with tempfile.TemporaryDirectory() as folder:
        written, listed = Path(folder) / dst.name, Path(folder) / "operators"
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.optimized_model_filepath = str(written)
        options.add_session_config_entry("session.save_model_format", "ORT")
        options.log_severity_level = 4
        try:
            # Blocks of channels are of this machine's vectors, and the file is for another's.
            unfit = ["NchwcTransformer"]
            ort.InferenceSession(data, options, providers=["CPUExecutionProvider"], disabled_optimizers=unfit)
            logging.getLogger("ort_format_model.utils").setLevel(logging.WARNING)
            create_config_from_models([written], listed, False)
        except Exception as error:  # ONNX Runtime's exceptions share no public base class
            raise DeployError(f"ONNX Runtime {ort.__version__} cannot convert {src} ({first_line(error)}).") from error
        # The list begins with the paths of this machine.
        rows = [row for row in listed.read_text("utf-8").splitlines() if row and not row.startswith("#")]
        beside = dst.with_suffix(OPERATORS)
        for path, content in ((dst, written.read_bytes()), (beside, "\n".join([*rows, ""]).encode())):
            with replacing(path) as temporary:
                temporary.write_bytes(content)
    return beside
