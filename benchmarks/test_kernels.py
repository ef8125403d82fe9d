"""Norms and cuts of whole networks against PyTorch's own operators and the floors of memory.

`uv run pytest benchmarks/test_kernels.py --benchmark-only` prints a line for each case at its end. Outputs are held
against PyTorch's first; then all rivals and the floor run in turns, in another order each time since what ran before
leaves the caches its own way, and the medians are compared.
"""

from __future__ import annotations

import random
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
TURNS = 7  # at least, and as many as SECONDS hold
SECONDS = 0.6


@pytest.fixture(scope="module", params=[(n, d) for n in NETWORKS for d in ("float32", "bfloat16")], ids="-".join)
def weights(request, timed):
    import torchvision

    name, dtype = request.param
    if name != "mobilenet_v2" and not timed:
        pytest.skip("outputs are checked on MobileNetV2; --benchmark-only times all networks")
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
    order = random.Random(0)
    for call in calls.values():
        call()
    first = time.perf_counter()
    while len(seconds["ours"]) < TURNS or time.perf_counter() - first < SECONDS:
        for name in order.sample(sorted(calls), len(calls)):
            begun = time.perf_counter()
            calls[name]()
            seconds[name].append(time.perf_counter() - begun)
    return {name: statistics.median(values) for name, values in seconds.items()}


@pytest.fixture
def measure(benchmark, request, timed, say):
    """Times the calls in turns, and says how `ours` stands beside the `floor` and the best of PyTorch's."""

    def run(calls):
        if not timed:
            benchmark(calls["ours"])
            return
        seconds = in_turns(calls)
        floor = "copy" if "copy" in calls else "read"
        best = min((s, n) for n, s in seconds.items() if n not in ("ours", floor))
        line = {
            "floor": round(seconds[floor] / seconds["ours"], 2),
            "over torch": round(best[0] / seconds["ours"], 2),
            "best of torch": best[1],
            **{f"{name} ms": round(1e3 * s, 2) for name, s in seconds.items()},
            "instructions": cpp_ext.instruction_set(),
        }
        benchmark.extra_info.update(line)
        times = ", ".join(f"{name} {1e3 * s:.2f} ms" for name, s in seconds.items())
        say(
            f"{request.node.name}: {line['floor']:.2f} of the floor, {line['over torch']:.2f} times {best[1]} "
            f"({times}; {line['instructions']})"
        )
        benchmark.pedantic(calls["ours"], rounds=3, warmup_rounds=1)

    return run


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
def test_output_norms(weights, threads, p, measure):
    slots = slots_of(weights, (0,))
    rows = [row for w in weights for row in w]
    found = cpp_ext.multi_filter_norm(weights, slots, p)
    torch.testing.assert_close(found, cpp_ext.multi_filter_norm_reference(weights, slots, p), rtol=4e-7, atol=0)
    calls = {
        "ours": lambda: cpp_ext.multi_filter_norm(weights, slots, p),
        "read": read_floor(weights),
        "vector_norm": lambda: [torch.linalg.vector_norm(w.flatten(1), p, 1) for w in weights],
        "_foreach_norm": lambda: torch._foreach_norm(rows, p),
        "abs().sum" if p == 1 else "square().sum": lambda: [
            (w.flatten(1).abs() if p == 1 else w.flatten(1).square()).sum(1) for w in weights
        ],
    }
    measure(calls)


def test_input_norms(weights, threads, measure):
    slots = slots_of(weights, (1,))
    found = cpp_ext.multi_filter_norm(weights, slots, 1)
    torch.testing.assert_close(found, cpp_ext.multi_filter_norm_reference(weights, slots, 1), rtol=4e-7, atol=0)
    others = [(0, *range(2, w.dim())) for w in weights]
    calls = {
        "ours": lambda: cpp_ext.multi_filter_norm(weights, slots, 1),
        "read": read_floor(weights),
        "vector_norm": lambda: [torch.linalg.vector_norm(w, 1, d) for w, d in zip(weights, others, strict=True)],
        "abs().sum": lambda: [w.abs().sum(d) for w, d in zip(weights, others, strict=True)],
    }
    measure(calls)


def test_both_norms(weights, threads, measure):
    slots = slots_of(weights, (0, 1))
    found = cpp_ext.multi_filter_norm(weights, slots, 1)
    torch.testing.assert_close(found, cpp_ext.multi_filter_norm_reference(weights, slots, 1), rtol=4e-7, atol=0)

    def sums():
        return [(a.flatten(2).sum((1, 2)), a.flatten(2).sum((0, 2))) for a in (w[..., None].abs() for w in weights)]

    calls = {
        "ours": lambda: cpp_ext.multi_filter_norm(weights, slots, 1),
        "read": read_floor(weights),
        "two sums of one abs()": sums,
    }
    measure(calls)


def test_cuts(weights, threads, measure):
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
    measure(calls)


def test_the_global_threshold(weights, threads, measure):
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
        "read": read_floor([*weights, *gradients]),
        "topk": lambda: cpp_ext.keep_largest_products_reference(gradients, weights, keep),
    }
    measure(calls)
