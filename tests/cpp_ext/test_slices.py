"""Slices of channels against their slow reference."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from hypothesis import assume, given  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from kernel_cases import DEVICES, LAYOUTS, examples, needs_kernels, shapes, tensor  # noqa: E402

import cpp_ext  # noqa: E402
from cpp_ext.norms import NORM_DTYPES  # noqa: E402

ANY_DTYPES = [
    *NORM_DTYPES,
    torch.int64,
    torch.int32,
    torch.uint8,
    torch.bool,
    torch.complex64,
    torch.complex128,
]


@pytest.mark.parametrize("device", DEVICES)
@examples
@given(shapes, st.sampled_from(ANY_DTYPES), st.sampled_from(LAYOUTS), st.data())
def test_channel_slice_equals_its_reference(device, shape, dtype, layout, data):
    x = tensor(shape, dtype, layout, data.draw(st.integers(0, 99)), device)
    keeps = []
    for size in shape[:2]:
        indices = st.lists(st.integers(0, size - 1), max_size=2 * size) if size else st.just([])
        drawn = data.draw(st.none() | indices)
        keeps.append(None if drawn is None else torch.tensor(drawn, dtype=torch.int64, device=device))
    result = cpp_ext.channel_slice(x, *keeps)
    expected = cpp_ext.channel_slice_reference(x, *keeps)
    assert result.dtype == dtype
    assert result.is_contiguous()
    assert torch.equal(result, expected)
    if result.numel():
        assert result.untyped_storage().data_ptr() != x.untyped_storage().data_ptr()


@needs_kernels
def test_the_number_of_threads_changes_no_bit():
    x = torch.randn(256, 128, 3, 3, generator=torch.Generator().manual_seed(0))
    keep = torch.arange(0, 128, 2)
    threads = torch.get_num_threads()
    try:
        for n in (1, 2, 3):
            torch.set_num_threads(n)
            assert torch.equal(cpp_ext.channel_slice(x, None, keep), x[:, ::2])
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("device", DEVICES)
def test_results_require_no_gradient(device):
    assert not cpp_ext.channel_slice(torch.randn(4, 3, device=device, requires_grad=True)).requires_grad


@pytest.mark.parametrize("device", DEVICES)
def test_opcheck(device):
    assert cpp_ext.kernels_in_use(device) == "compiled"
    x = torch.randn(6, 5, 3, 3, device=device)
    keep = torch.tensor([4, 0, 2], device=device)
    for y in (x, x.to(memory_format=torch.channels_last), x.to(torch.bfloat16)):
        for keep0, keep1 in ((None, None), (keep, None), (None, keep), (keep, keep)):
            torch.library.opcheck(torch.ops.niwaki.channel_slice.default, (y, keep0, keep1))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("mode", ["compiled", "reference"])
@examples
@given(dim=st.integers(0, 1), indices=st.lists(st.integers(-(2**63), 2**63 - 1) | st.integers(-2, 8), min_size=1))
def test_an_index_out_of_bounds_is_an_error(device, mode, dim, indices):
    size = (6, 5)[dim]
    wild = [i for i, index in enumerate(indices) if not 0 <= index < size]
    assume(wild)
    if device == "cuda" and mode == "compiled":
        pytest.skip("a wild index stops the whole device; test_slices_of_lists.py has that in a process of its own")
    keeps = [None, None]
    keeps[dim] = torch.tensor(indices, device=device)
    sentence = rf"keep{dim}\[{wild[0]}\] = {indices[wild[0]]} for a dimension of size {size}: pass indices between"
    slice_ = cpp_ext.channel_slice if mode == "compiled" else cpp_ext.channel_slice_reference
    with pytest.raises(IndexError, match=sentence):
        slice_(torch.zeros(6, 5, 2, device=device), *keeps)


cut = cpp_ext.channel_slice
ZERO = torch.tensor([0])
WRONG = {
    "a scalar": (lambda x: cut(x.sum()), ValueError, "tensor of 0 dimensions"),
    "keep1 for 1-D": (lambda x: cut(x[0], None, ZERO), ValueError, "keep1 = None"),
    "int32": (lambda x: cut(x, ZERO.int()), ValueError, r"\.long\(\)"),
    "2-D indices": (lambda x: cut(x, ZERO[None]), ValueError, "keep0 of 2 dimensions"),
    "mixed devices": (lambda x: cut(x.to("meta"), ZERO), ValueError, "another device"),
}


@pytest.mark.parametrize("mode", [pytest.param("compiled", marks=needs_kernels), "reference"])
@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_argument_is_an_error(case, mode, monkeypatch):
    monkeypatch.setenv("NIWAKI_KERNELS", mode)
    call, error, sentence = WRONG[case]
    with pytest.raises(error, match=sentence):
        call(torch.zeros(3, 4))


@needs_kernels
def test_the_operator_itself_checks_its_arguments():
    assert cpp_ext.kernels_in_use() == "compiled"
    with pytest.raises(RuntimeError, match="keep1 = None"):
        torch.ops.niwaki.channel_slice(torch.zeros(2), None, torch.tensor([0]))
