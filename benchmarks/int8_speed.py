"""What pruning and int8 bring: a torchvision network, dense and cut to half its MACs, fp32 and int8, in turns.

uv run python -m benchmarks.int8_speed --networks resnet50 mobilenet_v2 --folder /tmp/int8 --json int8_speed.json

Weights are random, which changes no time. `--make` only writes the files; what is there is not made again.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.engines_rows import images
from deploy.bench.timing import benchmark
from deploy.engines import load_engine
from deploy.environment import machine_info, versions_info
from deploy.quantization.int8 import KINDS, int8_from_fp32, operators

SIDE = 224
CUTS = {"dense": 1.0, "pruned": 0.5}
CALIBRATION = 16


def make(network: str, folder: Path, keep: Sequence[str], round_to: int) -> dict[str, Path]:
    """Those files of ``network`` that ``folder`` lacks: dense and pruned, fp32 and int8."""
    files = {f"{cut} fp32": folder / f"{network}.{cut}.fp32.onnx" for cut in CUTS}
    for cut, share in CUTS.items():
        if not files[f"{cut} fp32"].is_file():
            _export(network, share, round_to, files[f"{cut} fp32"])
        kept = [kind for kind in keep if operators_in(files[f"{cut} fp32"], kind)]
        int8 = folder / f"{network}.{cut}.int8{''.join(f'-{kind}' for kind in kept)}.onnx"
        if not int8.is_file():
            int8_from_fp32(files[f"{cut} fp32"], int8, list(images(SIDE, CALIBRATION, 0)), keep_fp32=kept)
        files[f"{cut} int8"] = int8
    return files


def operators_in(path: Path, kind: str) -> bool:
    """Whether the file has operators of that kind."""
    from deploy.onnx.file import read

    return bool(operators(read(path), kind))


def _export(network: str, share: float, round_to: int, path: Path) -> None:
    import torch

    from compress import prune
    from compress.models import torchvision
    from deploy.exporting.torch_to_onnx import export_onnx

    torch.manual_seed(0)
    model = torchvision.maker(network)().eval()
    example = torch.from_numpy(images(SIDE, 2, 1))
    if share < 1:
        trace = prune.trace(model, example[:1])
        budget = prune.Budget(macs=share)
        model = prune.apply(
            model, prune.plan(trace, prune.score(trace, model), budget=budget, scope="group", round_to=round_to)
        )
    export_onnx(model.eval(), example, path)


def measure(network: str, files: dict[str, Path], runtimes: Sequence[str], rounds: int) -> list[dict[str, Any]]:
    """One row for each file and runtime, in turns on the same runtime."""
    rows = []
    for runtime in runtimes:
        with ExitStack() as stack:
            engines = []
            for label, path in files.items():
                engine = stack.enter_context(load_engine(path, runtime=runtime))
                engine.name = label
                engines.append(engine)
            feed = np.random.default_rng(0).standard_normal((1, 3, SIDE, SIDE)).astype(np.float32)
            found = benchmark(engines, {"image": feed}, rounds=rounds, warmup=3, runs_per_block=2)
        rows += [{"network": network, **row.model_dump()} for row in found]
        print(
            network,
            runtime,
            *(f"{r.name}: {r.median_ms:.2f} ms, {r.speedup:.2f}x" for r in found),
            sep=" | ",
            flush=True,
        )
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--networks", nargs="+", default=["resnet50", "mobilenet_v2"], help="torchvision's names")
    parser.add_argument("--folder", type=Path, required=True, help="where the ONNX files are, or go")
    parser.add_argument("--keep", nargs="*", default=[], choices=sorted(KINDS), help="kinds that stay in fp32")
    parser.add_argument("--round-to", type=int, default=8, help="widths are multiples of it")
    parser.add_argument("--runtimes", nargs="+", default=["onnxruntime", "openvino"])
    parser.add_argument("--rounds", type=int, default=24)
    parser.add_argument("--make", action="store_true", help="write the files and time nothing")
    parser.add_argument("--json", type=Path, help="where the figures go")
    options = parser.parse_args(arguments)
    options.folder.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    for network in options.networks:
        files = make(network, options.folder, options.keep, options.round_to)
        if not options.make:
            rows += measure(network, files, options.runtimes, options.rounds)
    if options.json is not None:
        found = {"date": datetime.now(UTC).date().isoformat(), "machine": machine_info(), "versions": versions_info()}
        options.json.write_text(json.dumps(found | {"rows": rows}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
