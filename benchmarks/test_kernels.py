"""Norms and cuts of whole networks against PyTorch's own operators and the floors of memory.

`uv run pytest benchmarks/test_kernels.py --benchmark-enable -s` prints a line for each case. Outputs are held against
PyTorch's first; then all rivals and the floor run in turns, and the medians are compared.
"""

from __future__ import annotations

import statistics
import time

import pytest

torch = pytest.importorskip("torch")

import numpy as np  # noqa: E402

import cpp_ext  # noqa: E402

pytestmark = pytest.mark.skipif(
    not cpp_ext.build_info()["cpu"], reason="the kernels are not built: python setup.py build_ext --inplace"
)
NETWORKS = ("resnet50", "mobilenet_v2", "convnext_tiny", "vit_b_16")
ROUNDS = 5


@pytest.fixture(scope="module", params=[(n, d) for n in NETWORKS for d in ("float32", "bfloat16")], ids="-".join)
def weights(request):
    import torchvision

    name, dtype = request.param
    if name != "mobilenet_v2" and not request.config.getoption("benchmark_enable"):
        pytest.skip("outputs are checked on MobileNetV2; --benchmark-enable times all networks")
    with torch.device("meta"):
        model = torchvision.models.get_model(name)
    generator = torch.Generator().manual_seed(0)
    made = [
        torch.randn(p.shape, generator=generator) for p in model.parameters() if p.dim() > 1 and min(p.shape[:2]) > 0
    ]
    return [weight.to(getattr(torch, dtype)) for weight in made]


@pytest.fixture(params=[1, torch.get_num_threads()], ids=lambda n: f"{n}threads")
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def in_turns(calls):
    """Median seconds of each call, all of them run in turns."""
    seconds = {name: [] for name in calls}
    for turn in range(ROUNDS + 1):
        for name, call in calls.items():
            begun = time.perf_counter()
            call()
            if turn:
                seconds[name].append(time.perf_counter() - begun)
    return {name: statistics.median(values) for name, values in seconds.items()}


def report(benchmark, request, calls, ours, floor):
    if not request.config.getoption("benchmark_enable"):
        benchmark(calls[ours])
        return
    medians = in_turns(calls)
    best = min((s, n) for n, s in medians.items() if n not in (ours, floor))
    line = {
        "share of floor": round(medians[floor] / medians[ours], 2),
        "over torch": round(best[0] / medians[ours], 2),
        "best of torch": best[1],
        **{f"{name} ms": round(1e3 * s, 2) for name, s in medians.items()},
        "instructions": cpp_ext.instruction_set(),
    }
    benchmark.extra_info.update(line)
    print(f"\n{request.node.name}: {line}")
    benchmark.pedantic(calls[ours], rounds=3, warmup_rounds=1)


def read_floor(weights):
    """A sum over as many bytes in one piece."""
    size = sum(w.numel() * w.element_size() for w in weights) // 4
    flat = torch.ones(size)
    return flat.sum


def slots_of(weights, dims):
    pairs = [(k, d) for k in range(len(weights)) for d in dims]
    index = tuple(np.arange(weights[k].shape[d]) for k, d in pairs)
    units = max(len(i) for i in index)
    return cpp_ext.Slots(tuple(k for k, _ in pairs), tuple(d for _, d in pairs), index, units)


@pytest.mark.parametrize("p", [1, 2])
def test_output_norms(weights, threads, p, benchmark, request):
    slots = slots_of(weights, (0,))
    found = cpp_ext.multi_filter_norm(weights, slots, p)
    torch.testing.assert_close(found, cpp_ext.multi_filter_norm_reference(weights, slots, p), rtol=1e-9, atol=0)
    calls = {
        "ours": lambda: cpp_ext.multi_filter_norm(weights, slots, p),
        "floor": read_floor(weights),
        "vector_norm": lambda: [torch.linalg.vector_norm(w.flatten(1), p, 1) for w in weights],
        "abs().sum" if p == 1 else "square().sum": lambda: [
            (w.flatten(1).abs() if p == 1 else w.flatten(1).square()).sum(1) for w in weights
        ],
    }
    report(benchmark, request, calls, "ours", "floor")


def test_both_norms(weights, threads, benchmark, request):
    slots = slots_of(weights, (0, 1))
    found = cpp_ext.multi_filter_norm(weights, slots, 1)
    torch.testing.assert_close(found, cpp_ext.multi_filter_norm_reference(weights, slots, 1), rtol=1e-9, atol=0)

    def sums():
        return [(a.flatten(2).sum((1, 2)), a.flatten(2).sum((0, 2))) for a in (w[..., None].abs() for w in weights)]

    calls = {"ours": lambda: cpp_ext.multi_filter_norm(weights, slots, 1), "floor": read_floor(weights), "sums": sums}
    report(benchmark, request, calls, "ours", "floor")


def test_cuts(weights, threads, benchmark, request):
    generator = torch.Generator().manual_seed(1)

    def half(n):
        return torch.randperm(n, generator=generator)[: (n + 1) // 2].sort().values

    keeps = [(half(w.shape[0]), half(w.shape[1])) for w in weights]

    def torchs():
        return [w.index_select(0, a).index_select(1, b) for w, (a, b) in zip(weights, keeps, strict=True)]

    results = cpp_ext.multi_channel_slice(weights, keeps)
    assert all(torch.equal(a, b) for a, b in zip(results, torchs(), strict=True))
    half_of = [torch.empty_like(r) for r in results]
    calls = {
        "ours": lambda: cpp_ext.multi_channel_slice(weights, keeps),
        "copy": lambda: [to.copy_(r) for to, r in zip(half_of, results, strict=True)],
        "index_select twice": torchs,
    }
    report(benchmark, request, calls, "ours", "copy")


def test_the_global_threshold(weights, threads, benchmark, request):
    if weights[0].dtype != torch.float32:
        pytest.skip("timed in float32 alone")
    generator = torch.Generator().manual_seed(2)
    gradients = [torch.randn(w.shape, generator=generator) for w in weights]
    keep = sum(w.numel() for w in weights) // 50
    ours, torchs = [g.clone() for g in gradients], [g.clone() for g in gradients]
    threshold = cpp_ext.keep_largest_products(ours, weights, keep)
    assert threshold == cpp_ext.keep_largest_products_reference(torchs, weights, keep)
    assert all(torch.equal(a, b) for a, b in zip(ours, torchs, strict=True))
    calls = {
        "ours": lambda: cpp_ext.keep_largest_products(gradients, weights, keep),
        "floor": read_floor([*weights, *gradients]),
        "topk": lambda: cpp_ext.keep_largest_products_reference(gradients, weights, keep),
    }
    report(benchmark, request, calls, "ours", "floor")
