"""How long dense, pruned and int8 networks take on this GPU, by every runtime that is here; called by run.sh.

One JSON: a row for each network, runtime, precision and batch, and in `skipped` each one that is not there and why.
Times are from a tensor on the GPU to a tensor on the GPU, synchronised, all contenders of an architecture in turns.
Ends within --seconds; exits with 3 and one sentence where there is no GPU.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
import time
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import numpy as np
import torch

from benchmarks.gpu.contenders import CONTENDERS, Skip, prepare
from benchmarks.gpu.networks import pair

ARCHITECTURES = ("resnet50", "mobilenet_v2")
BATCHES = (1, 8, 64)
ROUNDS = 200
# The largest error allowed against eager fp32: the L2 norm of the difference over that of the answers' own spread.
LIMITS = {"fp32": 1e-2, "fp16": 5e-2, "bf16": 0.3, "int8": 0.5}


def error_of(answer, reference):
    """L2 norm of the difference over the norm of what distinguishes the images (of the whole, for one image)."""
    spread = reference - reference.mean(0) if len(reference) > 1 else reference
    return float(torch.linalg.vector_norm(answer - reference) / torch.linalg.vector_norm(spread))


def check(answer, reference, precision):
    """The error of an answer; Skip when it is not finite, has another shape or is too far from eager fp32."""
    if answer.shape != reference.shape or not bool(torch.isfinite(answer).all()):
        raise Skip(f"its answer {list(answer.shape)} is not finite or not {list(reference.shape)}")
    error = error_of(answer.double(), reference.double())
    if not error <= LIMITS[precision]:
        raise Skip(f"its answer is {error:.2g} away from eager fp32, more than {LIMITS[precision]:g}")
    return error


def in_turns(calls, x, rounds, deadline, synchronise):
    """Milliseconds of each call, (calls, rounds): every round runs each once, in an order that rotates."""
    for call in calls:
        for _ in range(3):
            call(x)
    synchronise()
    times = []
    for turn in range(rounds):
        if times and time.monotonic() > deadline:
            break
        row = np.empty(len(calls))
        for step in range(len(calls)):
            k = (turn + step) % len(calls)
            start = time.perf_counter_ns()
            calls[k](x)
            synchronise()
            row[k] = (time.perf_counter_ns() - start) / 1e6
        times.append(row)
    return np.array(times).T


def measure(networks, contenders, device, batches, deadline, *, rounds=ROUNDS):
    """Rows and skips of one architecture: networks that share a shape, the first contender is the reference.

    Preparing may take two thirds of the time until `deadline` (of time.monotonic); what is left is for timing.
    """
    started = time.monotonic()
    synchronise = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    ready, rows, skipped = [], [], []

    def skip(network, contender, why, batch=None):
        entry = {"network": network.architecture, "variant": network.variant}
        entry |= {"runtime": contender.runtime, "precision": contender.precision}
        skipped.append(entry | ({} if batch is None else {"batch": batch}) | {"why": why})

    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        feeds = {b: torch.randn(b, *networks[0].shape, generator=torch.Generator().manual_seed(b)) for b in batches}
        feeds = {b: x.to(device) for b, x in feeds.items()}
        for contender in contenders:
            for network in networks:
                if ready and time.monotonic() > started + (deadline - started) * 2 / 3:
                    skip(network, contender, "there was no time left to prepare it")
                    continue
                try:
                    call = prepare(contender, network, Path(folder), device, batches)
                    for b in sorted(batches, reverse=True):  # a compiler takes a first batch of one for a constant
                        call(feeds[b])
                    synchronise()
                    ready.append((network, contender, call))
                except Skip as why:
                    skip(network, contender, str(why))
                except Exception as error:  # noqa: BLE001  (whatever a runtime raises must not end the others' turn)
                    lines = str(error).strip().splitlines()
                    skip(network, contender, f"{type(error).__name__}: {lines[0][:200] if lines else ''}")
        for done, batch in enumerate(batches):
            x, until = feeds[batch], time.monotonic() + (deadline - time.monotonic()) / (len(batches) - done)
            references, checked = {}, []
            for network, contender, call in ready:
                answer = call(x).clone()
                synchronise()
                if contender == contenders[0]:
                    references[network.variant] = answer
                try:
                    reference = references.get(network.variant)
                    if reference is None:
                        raise Skip(f"{contenders[0]} did not run, so there is nothing to compare it with")
                    checked.append((network, contender, call, check(answer, reference, contender.precision)))
                except Skip as why:
                    skip(network, contender, str(why), batch)
            times = in_turns([call for *_, call, _ in checked], x, rounds, until, synchronise)
            first = (networks[0], contenders[0])
            base = float(np.median(times[0])) if checked and checked[0][:2] == first else None
            for (network, contender, _, error), figures in zip(checked, times, strict=True):
                rows.append(_row(network, contender, batch, error, figures, base))
    return rows, skipped


def _row(network, contender, batch, error, figures, base):
    median, p90, p99 = (float(v) for v in np.percentile(figures, (50, 90, 99)))
    return {
        "network": network.architecture,
        "variant": network.variant,
        "runtime": contender.runtime,
        "precision": contender.precision,
        "batch": batch,
        "median_ms": median,
        "p90_ms": p90,
        "p99_ms": p99,
        "runs": len(figures),
        "images_per_second": batch / median * 1e3,
        "times_as_fast_as_dense_eager_fp32": None if base is None else base / median,
        "error": error,
    }


def report(device, rows, skipped, seconds):
    """The record that is written: what ran where, with which versions, and when."""
    names = ("numpy", "torchvision", "onnx", "onnxruntime", "onnxruntime-gpu", "tensorrt", "tensorrt-rtx-cu13")
    versions = {"torch": torch.__version__, "cuda": torch.version.cuda, "python": platform.python_version()}
    for name in names:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    cuda = device.type == "cuda"
    return {
        "gpu": torch.cuda.get_device_name(device) if cuda else None,
        "capability": list(torch.cuda.get_device_capability(device)) if cuda else None,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {name: version for name, version in versions.items() if version},
        "seconds": round(seconds, 1),
        "rows": rows,
        "skipped": skipped,
    }


def table(rows):
    """The rows as Markdown: medians in milliseconds, a column for each batch."""
    batches = sorted({row["batch"] for row in rows})
    lines = ["| network | runtime | " + " | ".join(f"batch {b}, ms" for b in batches) + " |"]
    lines.append("| --- " * (2 + len(batches)) + "|")
    by = {}
    for row in rows:
        key = (f"{row['network']} {row['variant']}", f"{row['runtime']} {row['precision']}")
        by.setdefault(key, {})[row["batch"]] = f"{row['median_ms']:.2f}"
    return "\n".join(
        lines + [f"| {a} | {b} | " + " | ".join(m.get(k, "–") for k in batches) + " |" for (a, b), m in by.items()]
    )


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=470.0, help="end within this many seconds")
    chosen = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print(
            "niwaki: no NVIDIA GPU that torch can use was found here; run this on a machine that has one.",
            file=sys.stderr,
        )
        return 3
    torch.backends.cudnn.allow_tf32 = False  # fp32 means fp32, in every runtime
    started, device = time.monotonic(), torch.device("cuda", torch.cuda.current_device())
    rows, skipped = [], []
    for done, architecture in enumerate(ARCHITECTURES):
        left = chosen.seconds * 0.95 - (time.monotonic() - started)
        deadline = time.monotonic() + left / (len(ARCHITECTURES) - done)
        found = measure(pair(architecture), CONTENDERS, device, BATCHES, deadline)
        rows, skipped = rows + found[0], skipped + found[1]
        record = report(device, rows, skipped, time.monotonic() - started)
        chosen.out.parent.mkdir(parents=True, exist_ok=True)
        temporary = chosen.out.with_suffix(".part")
        temporary.write_text(json.dumps(record, indent=1) + "\n")
        temporary.rename(chosen.out)  # after each architecture: what is measured is not lost when the time ends
    print(table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
