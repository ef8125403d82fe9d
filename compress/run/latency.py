"""Times that decide within a run: the cut network's against the dense one's, OpenVINO's against ONNX Runtime's."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from torch import nn

import deploy
from compress.run.variants import exporting, lowered_of
from compress.run.workspace import Workspace
from deploy.engines import load_engine
from deploy.exporting.torch_to_onnx import export_onnx

OPENVINO_SHARE = "openvino_time_of_onnxruntime"
"""The figure in the ledger that says which runtime the bundle prefers."""


def openvino_share(path: Path, image: np.ndarray, threads: int, rounds: int) -> float | None:
    """Measure OpenVINO's time as a share of ONNX Runtime's, medians of rounds in turns; None where it is not installed.

    Args:
        path: an ONNX file.
        image: its input, shape (1, C, H, W).
        threads: of one run.
        rounds: how often each is timed.
    """
    if find_spec("openvino") is None:
        return None
    with ExitStack() as stack:
        engines = []
        for runtime in ("onnxruntime", "openvino"):
            engine = stack.enter_context(load_engine(path, runtime=runtime, threads=threads))
            engine.name = runtime
            engines.append(engine)
        (name,) = tuple(engines[0].inputs)
        return deploy.benchmark(engines, {name: image}, reference="onnxruntime", rounds=rounds)[1].ratio_to_dense


def share_of_dense(work: Workspace) -> Callable[[nn.Module], float]:
    """Return a function from a network to its latency as a share of the dense one's, on ONNX Runtime."""

    def share(model: nn.Module) -> float:
        settings = work.deploy
        with TemporaryDirectory() as folder, ExitStack() as stack:
            engines = []
            for name, network in (("dense", work.load("teacher")), ("cut", model)):
                lowered = lowered_of(work, network)
                path = Path(folder) / f"{name}.fp32.onnx"
                export_onnx(lowered.module, work.example, path, output_name=lowered.output_name, **exporting(settings))
                engine = stack.enter_context(load_engine(path, threads=settings.threads))
                engine.name = name
                engines.append(engine)
            (name,) = tuple(engines[0].inputs)
            image = work.target.splits["val"].inputs(0, 1).numpy()
            records = deploy.benchmark(engines, {name: image}, reference="dense", rounds=settings.rounds)
        ratio = records[1].ratio_to_dense
        assert ratio is not None
        return ratio

    return share
