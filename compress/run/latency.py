"""Times that decide within a run: the cut network's against the dense one's, each file's on each runtime."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from torch import nn

import deploy
from compress.run.variants import exporting, lowered_of
from compress.run.workspace import Workspace
from deploy.bench.shipping import Runtime, Timed
from deploy.engines import load_engine
from deploy.exporting.torch_to_onnx import export_onnx

RUNTIMES: tuple[Runtime, ...] = ("onnxruntime", "openvino")


def timed_by_runtime(
    files: Mapping[str, tuple[Path, float | None]], image: np.ndarray, threads: int, rounds: int
) -> list[Timed]:
    """Time each file on each runtime that is installed, all in turns against fp32 on ONNX Runtime.

    Args:
        files: precision -> its ONNX file and its accuracy on validation data; ``fp32`` is among them.
        image: their input, shape (1, C, H, W).
        threads: of one run.
        rounds: how often each is timed.
    """
    runtimes = [name for name in RUNTIMES if name == "onnxruntime" or find_spec(name) is not None]
    pairs = [(precision, runtime) for runtime in runtimes for precision in files]
    with ExitStack() as stack:
        engines = []
        for precision, runtime in pairs:
            engine = stack.enter_context(load_engine(files[precision][0], runtime=runtime, threads=threads))
            engine.name = f"{precision} {runtime}"
            engines.append(engine)
        (name,) = tuple(engines[0].inputs)
        records = deploy.benchmark(engines, {name: image}, reference="fp32 onnxruntime", rounds=rounds)
    return [
        Timed(precision=precision, runtime=runtime, share=record.ratio_to_dense or 1.0, accuracy=files[precision][1])
        for (precision, runtime), record in zip(pairs, records, strict=True)
    ]


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
