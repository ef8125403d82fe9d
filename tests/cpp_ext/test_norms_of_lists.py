"""Norms of both dimensions and of whole lists, against their slow references and the stated error bound."""

from __future__ import annotations

import math
import os
import subprocess
import sys

import pytest

torch = pytest.importorskip("torch")

import numpy as np  # noqa: E402
from hypothesis import given  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from kernel_cases import DEVICES, LAYOUTS, examples, needs_kernels, tensor  # noqa: E402

import cpp_ext  # noqa: E402
from cpp_ext.norms import NORM_DTYPES  # noqa: E402

KINDS = st.sampled_from([(1, False), (2, False), (2, True), (math.inf, False)])
matrices = st.lists(st.integers(0, 9), min_size=2, max_size=5).map(tuple) | st.sampled_from(
    [(70, 40, 3, 3), (300, 17), (5, 1100, 3), (33, 1, 5, 5), (1, 1), (4, 6, 1, 1), (129, 257), (17, 48), (24, 100)]
)


def ulps(result, exact):
    """How far a result lies from the exact one, in units of the last place of its dtype."""
    spacing = np.spacing(np.abs(exact.numpy()).astype(result.cpu().numpy().dtype)).astype(np.float64)
    return float(np.max(np.abs(result.double().cpu().numpy() - exact.numpy()) / spacing, initial=0.0))


def bound(device, dtype, kind, terms):
    """The stated error of a sum, in ulps of the result; the reference rounds too: twice that in float64."""
    if dtype == torch.float64:
        return terms + 4
    narrow = {(1, False): 4.5, (2, False): 3, (2, True): 5.5, (math.inf, False): 0}
    return narrow[kind] if device == "cpu" else 1


@pytest.mark.parametrize("device", DEVICES)
@examples
@given(matrices, st.sampled_from(NORM_DTYPES), st.sampled_from(LAYOUTS), KINDS, st.integers(0, 99))
def test_both_norms_in_one_read_equal_the_reference(device, shape, dtype, layout, kind, seed):
    x = tensor(shape, dtype, layout, seed, device)
    p, squared = kind
    found = cpp_ext.channel_norms(x, p, squared=squared)
    exact = cpp_ext.channel_norms_reference(x.cpu().double(), p, squared=squared)
    for norm, want, dim in zip(found, exact, (0, 1), strict=True):
        assert norm.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        terms = x.numel() / max(1, x.shape[dim])
        assert ulps(norm, want) <= bound(device, dtype, kind, terms)
        assert ulps(cpp_ext.filter_norm(x, p, dim, squared=squared), want) <= bound(device, dtype, kind, terms)
    again = cpp_ext.channel_norms(x, p, squared=squared)
    assert all(torch.equal(a, b) for a, b in zip(found, again, strict=True))


@pytest.mark.parametrize("device", DEVICES)
@examples
@given(
    st.sampled_from([(40, 150), (9, 20, 3, 3), (64, 64), (3, 700), (17, 9)]),
    st.sampled_from([torch.float32, torch.bfloat16]),
    st.sampled_from([(1, False), (2, False)]),
    st.sampled_from([-130, -100, -60, -50, 20, 62, 66, 100, 126]),
    st.integers(0, 99),
)
def test_no_magnitude_is_out_of_bounds(device, shape, dtype, kind, exponent, seed):
    """Channels of every magnitude beside each other, zeros among them: the bound holds for each."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator, dtype=torch.float64).clamp(-3, 3)
    x[torch.rand(shape, generator=generator) < 0.3] = 0
    x[:, torch.rand(shape[1], generator=generator) < 0.3] *= 2.0**exponent / 8
    x[torch.rand(shape[0], generator=generator) < 0.3] *= 2.0**-exponent
    x[torch.rand(shape[0], generator=generator) < 0.1] = 0
    x = x.clamp(-1e38, 1e38).to(dtype).to(device)
    p, _ = kind
    sums = cpp_ext.channel_norms_reference(x.cpu().double(), p)
    for dim, want in enumerate(sums):
        found = (cpp_ext.channel_norms(x, p)[dim], cpp_ext.filter_norm(x, p, dim))
        held = want < 3e38  # a larger sum is infinite in float32
        for norm in found:
            assert (norm.cpu()[~held] > 2.9e38).all()
            assert ulps(norm.cpu()[held], want[held]) <= bound(device, dtype, kind, x.numel())


def a_list(data, device):
    """Tensors, and slots over some of their dimensions whose channels share units."""
    xs, tensors, dims, index = [], [], [], []
    units = data.draw(st.integers(1, 20))
    for k in range(data.draw(st.integers(0, 5))):
        shape = data.draw(matrices)
        dtype, layout = data.draw(st.sampled_from(NORM_DTYPES)), data.draw(st.sampled_from(LAYOUTS))
        xs.append(tensor(shape, dtype, layout, k, device))
        for dim in data.draw(st.permutations(range(len(shape))))[: data.draw(st.integers(0, 3))]:
            tensors.append(k)
            dims.append(dim)
            index.append(np.random.default_rng(k + dim).integers(0, units, shape[dim]))
    return xs, cpp_ext.Slots(tuple(tensors), tuple(dims), tuple(index), units)


@pytest.mark.parametrize("device", DEVICES)
@examples
@given(KINDS, st.booleans(), st.data())
def test_a_whole_list_equals_its_reference(device, kind, relative, data):
    p, squared = kind
    xs, slots = a_list(data, device)
    found = cpp_ext.multi_filter_norm(xs, slots, p, squared=squared, relative=relative)
    want = cpp_ext.multi_filter_norm_reference(xs, slots, p, squared=squared, relative=relative)
    assert found.shape == (slots.units,) and found.dtype == torch.float64
    # A norm and the mean that it is divided by, five roundings to float32 each, and its square.
    rtol = 10 * 2**-24 if device == "cpu" else 1e-11
    torch.testing.assert_close(found, want, rtol=rtol, atol=0)
    assert torch.equal(found, cpp_ext.multi_filter_norm(xs, slots, p, squared=squared, relative=relative))


@pytest.mark.parametrize("device", DEVICES)
def test_a_nan_is_never_lost(device):
    for shape, at in (((5, 7, 3, 3), (2, 4, 1, 1)), ((40, 70), (39, 69))):
        for p in (1, 2, math.inf):
            x = torch.ones(shape, device=device)
            x[at] = math.nan
            rows, columns = cpp_ext.channel_norms(x, p)
            assert rows.isnan().nonzero().flatten().tolist() == [at[0]]
            assert columns.isnan().nonzero().flatten().tolist() == [at[1]]


@pytest.mark.heavy
@needs_kernels
def test_every_instruction_set_and_thread_count_gives_the_same_bits():
    code = """
import hashlib, sys, torch, cpp_ext, math
torch.set_num_threads(int(sys.argv[1]))
h = hashlib.sha256()
for seed, shape in enumerate([(130, 67, 3, 3), (300, 1000), (64, 1, 7, 7), (9, 5)]):
    base = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
        for x in (base.to(dtype), base.to(dtype).transpose(0, 1)):
            for p in (1, 2, math.inf):
                for norm in cpp_ext.channel_norms(x, p):
                    h.update(norm.numpy().tobytes())
            keep = torch.arange(0, x.shape[1], 3)
            h.update(cpp_ext.channel_slice(x, None, keep).view(torch.uint8).numpy().tobytes())
print(cpp_ext.instruction_set(), h.hexdigest())
"""
    best = cpp_ext.instruction_set()
    said = {}
    lesser = ("avx2", "plain") if best == "avx512" else ("plain",)
    for asked, threads in ((best, "1"), (best, "2"), *((name, "1") for name in lesser)):
        environment = {**os.environ, "NIWAKI_CPU": asked}
        done = subprocess.run(
            [sys.executable, "-c", code, threads], capture_output=True, text=True, env=environment, check=True
        )
        name, digest = done.stdout.split()
        assert name == asked
        said[asked, threads] = digest
    assert len(set(said.values())) == 1, said


@pytest.mark.parametrize("device", DEVICES)
def test_opcheck(device):
    assert cpp_ext.kernels_in_use(device) == "compiled"
    x = torch.randn(6, 5, 3, 3, device=device)
    for y in (x, x.to(memory_format=torch.channels_last), x.half()):
        torch.library.opcheck(torch.ops.niwaki.channel_norms.default, (y, 2.0, True))
        slots = cpp_ext.Slots((0, 0), (0, 1), (np.arange(6), np.arange(5)), 6)
        torch.library.opcheck(
            torch.ops.niwaki.multi_filter_norm.default, ([y, x], *slots.on(x.device), 1.0, False, True)
        )


def test_compiled_graphs_hold_the_operators():
    from torch._dynamo.testing import EagerAndRecordGraphs

    backend = EagerAndRecordGraphs()
    x = torch.randn(4, 3)
    assert cpp_ext.kernels_in_use() == "compiled"
    compiled = torch.compile(lambda y: torch.ops.niwaki.filter_norm(y, 1.0, 0) + 1, backend=backend, fullgraph=True)
    torch.testing.assert_close(compiled(x), x.abs().sum(1) + 1)
    assert any("filter_norm" in str(node.target) for node in backend.graphs[0].graph.nodes)


@pytest.mark.parametrize("mode", [pytest.param("compiled", marks=needs_kernels), "reference"])
def test_wrong_arguments_are_errors(mode, monkeypatch):
    monkeypatch.setenv("NIWAKI_KERNELS", mode)
    with pytest.raises(IndexError, match=r"index\[0\]\[1\] = 7 for 3 units"):
        cpp_ext.Slots((0,), (0,), (np.array([0, 7]),), 3)
    with pytest.raises(ValueError, match="2 tensors, 1 dims"):
        cpp_ext.Slots((0, 1), (0,), (np.array([0]),), 3)
    slots = cpp_ext.Slots((0,), (0,), (np.array([0, 1]),), 3)
    with pytest.raises(ValueError, match="2 units for the 4 channels of slot 0"):
        cpp_ext.multi_filter_norm([torch.ones(4, 2)], slots)
    with pytest.raises(IndexError, match="0 tensors, slot 0 is of number 0"):
        cpp_ext.multi_filter_norm([], slots)
    with pytest.raises(IndexError, match="tensor of 1 dimensions"):
        cpp_ext.channel_norms(torch.ones(4))


@needs_kernels
def test_the_operator_itself_refuses_wild_places():
    assert cpp_ext.kernels_in_use() == "compiled"
    call = torch.ops.niwaki.multi_filter_norm
    xs, slot, zero, one = [torch.ones(2, 3)], torch.tensor([[0, 0, 2]]), torch.tensor([0, 1]), torch.tensor([0, 2])
    assert call(xs, slot, zero, one, 1.0).tolist() == [6.0]
    wild = [(torch.tensor([0, 2]), one), (torch.tensor([-1, 0]), one), (zero, torch.tensor([0, 3]))]
    for order, offsets in (*wild, (zero, torch.tensor([2, 0])), (zero, torch.tensor([-1, 2]))):
        with pytest.raises(IndexError):
            call(xs, slot, order, offsets, 1.0)
    for numbers in ([[1, 0, 2]], [[-1, 0, 2]], [[0, 2, 2]]):
        with pytest.raises(IndexError):
            call(xs, torch.tensor(numbers), zero, one, 1.0)
    for table in (torch.tensor([[0, 0, 3]]), torch.tensor([0, 0, 2]), slot.int(), torch.tensor([[0, 0]])):
        with pytest.raises(RuntimeError):
            call(xs, table, zero, one, 1.0)
