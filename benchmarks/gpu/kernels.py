"""Norms and cuts of whole lists on a GPU, against PyTorch's own operators and a device copy; called by run.sh."""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path

import numpy as np
import torch

import cpp_ext

LISTS = ("resnet50", "vit_l_16")


def milliseconds(call, rounds=20):
    """Median over rounds, by events on the stream, after a warm-up."""
    for _ in range(3):
        call()
    times = []
    for _ in range(rounds):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        call()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end))
    return statistics.median(times)


def launches(call):
    """The names of the kernels that one call runs."""
    call()
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        call()
        torch.cuda.synchronize()
    return [event.key for event in profile.key_averages() for _ in range(event.count)]


def measure(name, dtype):
    import torchvision

    with torch.device("meta"):
        model = torchvision.models.get_model(name)
    ws = [torch.randn(p.shape, device="cuda").to(dtype) for p in model.parameters() if p.dim() > 1]
    size = sum(w.numel() * w.element_size() for w in ws)
    source = torch.empty(size, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    pairs = [(k, d) for k in range(len(ws)) for d in (0, 1)]
    index = [np.arange(ws[k].shape[d]) for k, d in pairs]
    units = max(map(len, index))
    out = cpp_ext.Slots(tuple(range(len(ws))), (0,) * len(ws), tuple(np.arange(w.shape[0]) for w in ws), units)
    both = cpp_ext.Slots(tuple(k for k, _ in pairs), tuple(d for _, d in pairs), tuple(index), units)
    keeps = [tuple(torch.arange(0, n, 2, device="cuda") for n in w.shape[:2]) for w in ws]
    for slots in (out, both):
        torch.testing.assert_close(
            cpp_ext.multi_filter_norm(ws, slots, 1),
            cpp_ext.multi_filter_norm_reference(ws, slots, 1),
            rtol=1e-9,
            atol=0,
        )
    cuts = zip(cpp_ext.multi_channel_slice(ws, keeps), cpp_ext.multi_channel_slice_reference(ws, keeps), strict=True)
    assert all(torch.equal(a, b) for a, b in cuts)
    calls = {
        "copy": lambda: target.copy_(source),
        "output_norms": lambda: cpp_ext.multi_filter_norm(ws, out, 1),
        "output_norms_torch": lambda: [w.flatten(1).abs().sum(1) for w in ws],
        "output_norms_torch_vector_norm": lambda: [torch.linalg.vector_norm(w.flatten(1), 1, 1) for w in ws],
        "both_norms": lambda: cpp_ext.multi_filter_norm(ws, both, 1),
        "cuts": lambda: cpp_ext.multi_channel_slice(ws, keeps),
        "cuts_torch": lambda: [w.index_select(0, a).index_select(1, b) for w, (a, b) in zip(ws, keeps, strict=True)],
    }
    times = {key: milliseconds(call) for key, call in calls.items()}
    # A copy reads and writes: norms read alone.
    return {
        "list": name,
        "dtype": str(dtype).removeprefix("torch."),
        "megabytes": size / 1e6,
        "milliseconds": times,
        "output_norms_share_of_copy_bandwidth": times["copy"] / 2 / times["output_norms"],
        "launches_of_output_norms": launches(calls["output_norms"]),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    path = parser.parse_args().out
    cases = [measure(name, dtype) for name in LISTS for dtype in (torch.float32, torch.bfloat16)]
    record = {
        "gpu": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "kernels": cpp_ext.build_info()["build"],
        "implementation": cpp_ext.kernels_in_use("cuda"),
        "cases": cases,
    }
    temporary = path.with_suffix(".part")
    temporary.write_text(json.dumps(record, indent=2) + "\n")
    temporary.rename(path)
    print(json.dumps(cases, indent=2))


if __name__ == "__main__":
    main()
