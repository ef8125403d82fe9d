"""What int8 costs networks with hard-swish, SiLU and squeeze-and-excitation: accuracy and time, by form.

python -m benchmarks.int8_trained --files mobilenet_v3.fp32.onnx efficientnet.fp32.onnx --json int8_trained.json

The files are those of ``benchmarks.trained_small``; accuracy is that on its 4,000 held-out images of CIFAR-10, times
are shares of fp32's on the same runtime, in turns.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.trained_small import HELD_OUT, cifar10, prepared
from deploy.bench.timing import benchmark
from deploy.engines import load_engine
from deploy.engines.probing import probe
from deploy.environment import machine_info, versions_info
from deploy.errors import DeployError
from deploy.quantization.agreement import Agreement
from deploy.quantization.int8 import int8_from_fp32

FORMS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("fast", ()),
    ("exact", ()),
    ("smooth", ()),
    ("fast", ("gates",)),
    ("fast", ("sums",)),
    ("fast", ("sums", "gates")),
    ("fast", ("depthwise", "sums", "gates")),
    ("fast", ("depthwise", "first", "sums", "gates")),
    ("exact", ("sums", "gates")),
)
"""A method of ``deploy.quantization.int8`` and the kinds of operators that stay in fp32."""
CALIBRATION, BATCH = 200, 100


def accuracy(path: Path, images: np.ndarray, labels: np.ndarray) -> float:
    """Return the share of images that a file classifies right, by ONNX Runtime."""
    with load_engine(path) as engine:
        (name,) = engine.inputs
        parts = range(0, len(images), BATCH)
        found = [next(iter(engine.run({name: images[k : k + BATCH]}).values())).argmax(1) for k in parts]
    return float((np.concatenate(found) == labels).mean())


def times(fp32: Path, int8: Path, rounds: int, side: int) -> dict[str, float | str]:
    """Return int8's time as a share of fp32's, by runtime: of medians, and of the best rounds; or why there is none."""
    feed = np.random.default_rng(0).standard_normal((1, 3, side, side)).astype(np.float32)
    found: dict[str, float | str] = {}
    for runtime in ("onnxruntime", "openvino"):
        try:
            # OpenVINO 2026.4 ends the process on some of these files.
            probe(int8, runtime=runtime)
        except DeployError as error:
            found[runtime] = str(error)
            continue
        with load_engine(fp32, runtime=runtime) as one, load_engine(int8, runtime=runtime) as other:
            one.name, other.name = "fp32", "int8"
            dense, rounded = benchmark([one, other], {"image": feed}, rounds=rounds, warmup=5)
        assert rounded.ratio_to_dense and rounded.min_ms and dense.min_ms
        found |= {runtime: rounded.ratio_to_dense, f"{runtime}_best": rounded.min_ms / dense.min_ms}
    return found


def rows(fp32: Path, rounds: int) -> list[dict[str, Any]]:
    """Return a row for each form, with fp32's accuracy in the first."""
    pixels, labels = cifar10("train")
    with load_engine(fp32) as engine:
        side = next(iter(engine.inputs.values())).shape[-1]
    assert side is not None
    images, wanted = prepared(pixels[-HELD_OUT:], side), labels[-HELD_OUT:]
    calibration = list(prepared(pixels[:CALIBRATION], side))
    dense = accuracy(fp32, images, wanted)
    found: list[dict[str, Any]] = [{"network": fp32.name, "form": "fp32", "accuracy": dense}]
    print(found[-1], flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for method, kept in FORMS:
            path = Path(folder) / f"{method}-{'-'.join(kept)}.onnx"
            row: dict[str, Any] = {"network": fp32.name, "form": method, "kept": list(kept)}
            try:
                int8_from_fp32(fp32, path, calibration, keep_fp32=kept, method=method, min_snr_db=None)
            except DeployError as error:
                found.append(row | {"why": str(error)})
                continue
            stated = Agreement.read(path)
            assert stated is not None
            row |= {
                "accuracy": accuracy(path, images, wanted),
                "snr_db": stated.snr_db,
                **times(fp32, path, rounds, side),
            }
            found.append(row)
            print(row, flush=True)
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--files", nargs="+", type=Path, required=True, help="fp32 files of benchmarks.trained_small")
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--json", type=Path, help="where the rows go")
    options = parser.parse_args(arguments)
    found = [row for path in options.files for row in rows(path, options.rounds)]
    if options.json is not None:
        about = {"machine": machine_info(), "versions": versions_info()}
        options.json.write_text(json.dumps(about | {"rows": found}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
