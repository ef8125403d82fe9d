"""Ask networks with random weights for a latency, cell by cell, and write down what was measured.

    python -m benchmarks.latency_targets OUT.json [--only mobilenet_v2:onnxruntime:fp32:0.5] [--processes 3]

A cell is a network, a runtime, a precision and a share of the dense network's time; those that OUT.json holds are not
done again. Each is one thread, one image of 224 x 224.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from itertools import product
from pathlib import Path

import numpy as np
import torch
import torchvision

from compress import prune
from compress.errors import PlanError
from compress.prune import Budget
from compress.prune.allocation import Limits
from compress.run.additive import AdditiveModel
from compress.run.filling import Shipping, filled
from compress.run.fitting import LatencyFit, Target
from compress.run.probes import placed_layers
from deploy.environment import machine_info, versions_info
from deploy.exporting.torch_to_onnx import export_onnx
from deploy.latency.profile import time_files
from deploy.quantization.int8 import int8_from_fp32
from deploy.quantization.search import fastest_int8

CELLS = tuple(
    product(("mobilenet_v2", "resnet18", "resnet50"), ("onnxruntime", "openvino"), ("fp32", "int8"), (0.5, 0.7))
)
"""Every cell in order: the smaller networks first."""


def writer(example, images, precision, kept=()):
    """A function that writes the file that ships of a network."""

    def write(model, path):
        fp32 = export_onnx(model, example, path.with_name(f"{path.stem}.fp32.onnx"), output_name="logits")
        if precision == "fp32":
            return fp32
        int8 = path.with_name(f"{path.stem}.int8.onnx")
        return int8_from_fp32(fp32, int8, images, keep_fp32=kept, min_snr_db=None)

    return write


def kept_in_fp32(model, example, images, runtime):
    """The kinds of operators that are faster in fp32 here."""
    with tempfile.TemporaryDirectory() as folder:
        path = export_onnx(model, example, Path(folder) / "dense.onnx", output_name="logits")
        return fastest_int8(path, Path(folder) / "dense.int8.onnx", images, runtime=runtime, min_snr_db=None).kept


def cell(network, runtime, precision, share, out, processes):
    """What one cell came to."""
    torch.manual_seed(0)
    model = getattr(torchvision.models, network)(weights=None).eval()
    example = torch.randn(2, 3, 224, 224)
    images = [np.random.default_rng(0).standard_normal((3, 224, 224)).astype(np.float32)]
    kept = kept_in_fp32(model, example, images, runtime) if precision == "int8" else ()
    trace = prune.trace(model, example)
    scores = prune.score(trace, model, "l1")
    shipping = Shipping(
        writer(example, images, precision, kept),
        runtime=runtime,
        precision=precision,
        kept=kept,
        timer=lambda jobs, how: time_files(jobs, how.model_copy(update={"processes": processes})),
        cache=out.with_name("latency-table.json"),
    )
    layers = placed_layers(model, example)
    advance = lambda done, total, text: print(f"  {text}", flush=True)  # noqa: E731
    entries, seconds = filled(layers, trace, shipping, advance)
    fit = LatencyFit(
        model, model, AdditiveModel(layers, entries, trace), scores.numpy(), shipping, Limits(1, 8), advance
    )
    began = time.perf_counter()
    found = fit.fit(Budget(latency=share), Target(share))
    return {
        "share": found.reading.share,
        "ms": found.reading.ms,
        "dense_ms": found.reading.dense_ms,
        "load": found.reading.load,
        "additive_error": found.additive_error,
        "networks": found.networks,
        "rounds": found.rounds,
        "profile_seconds": seconds,
        "loop_seconds": time.perf_counter() - began,
        "macs_share": found.plan.costs["macs_after"] / found.plan.costs["macs_before"],
        "kept_in_fp32": list(kept),
        "processes": processes,
    }


def main():
    """Do what is not done yet and write after each cell."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("out", type=Path)
    options.add_argument("--only", action="append", help="network:runtime:precision:share; repeatable")
    options.add_argument("--processes", type=int, default=3)
    asked = options.parse_args()
    done = json.loads(asked.out.read_text()) if asked.out.is_file() else {"cells": {}}
    done |= {"machine": machine_info(), "versions": versions_info()}
    for one in CELLS:
        name = ":".join(map(str, one))
        if name in done["cells"] or (asked.only and name not in asked.only):
            continue
        print(name, flush=True)
        try:
            done["cells"][name] = cell(*one, asked.out, asked.processes)
        except PlanError as error:
            done["cells"][name] = {"refused": str(error)}
        print(f"  {done['cells'][name]}", flush=True)
        asked.out.write_text(json.dumps(done, indent=1) + "\n")


if __name__ == "__main__":
    main()
