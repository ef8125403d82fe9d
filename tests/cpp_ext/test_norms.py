"""Norms of channels against their slow reference."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from hypothesis import given  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from kernel_cases import DEVICES, LAYOUTS, examples, needs_kernels, shapes, tensor  # noqa: E402

import cpp_ext  # noqa: E402
from cpp_ext.norms import NORM_DTYPES, filter_norm_reference  # noqa: E402

EPSILON = {torch.float32: 6e-7, torch.float64: 1e-13, torch.float16: 6e-7, torch.bfloat16: 6e-7}


@pytest.mark.parametrize("device", DEVICES)
@examples
@given(shapes, st.sampled_from(NORM_DTYPES), st.sampled_from(LAYOUTS), st.sampled_from([1, 2]), st.data())
def test_filter_norm_equals_its_reference(device, shape, dtype, layout, p, data):
    x = tensor(shape, dtype, layout, data.draw(st.integers(0, 99)), device)
    dim = data.draw(st.integers(-x.dim(), x.dim() - 1))
    norm = cpp_ext.filter_norm(x, p, dim)
    assert norm.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert norm.shape == (shape[dim],)
    torch.testing.assert_close(norm, filter_norm_reference(x, p, dim), rtol=EPSILON[dtype], atol=0)
    assert torch.equal(norm, cpp_ext.filter_norm(x, p, dim))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_every_16_bit_number_is_read_right(device, dtype):
    x = torch.arange(-(2**15), 2**15, device=device).to(torch.int16).view(dtype)
    torch.testing.assert_close(cpp_ext.filter_norm(x), x.float().abs(), rtol=0, atol=0, equal_nan=True)
    rows = x[:, None].expand(-1, 40).contiguous()  # long enough for the rows' own loop
    torch.testing.assert_close(
        cpp_ext.filter_norm(rows), (x.double().abs() * 40).float(), rtol=1e-6, atol=0, equal_nan=True
    )


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("scale", [1e-30, 1e-22, 1e18, 1e25])
def test_squares_neither_overflow_nor_vanish(device, scale):
    x = torch.randn(4, 3000, generator=torch.Generator().manual_seed(0)).to(device) * scale
    torch.testing.assert_close(cpp_ext.filter_norm(x, 2), filter_norm_reference(x, 2), rtol=1e-6, atol=0)


@needs_kernels
def test_the_number_of_threads_changes_no_bit():
    x = torch.randn(256, 128, 3, 3, generator=torch.Generator().manual_seed(0))
    threads = torch.get_num_threads()
    results = []
    try:
        for n in (1, 2, 3):
            torch.set_num_threads(n)
            results.append([cpp_ext.filter_norm(x, p, d) for p in (1, 2) for d in (0, 1)])
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("device", DEVICES)
def test_results_require_no_gradient(device):
    assert not cpp_ext.filter_norm(torch.randn(4, 3, device=device, requires_grad=True)).requires_grad


@pytest.mark.parametrize("device", DEVICES)
def test_opcheck(device):
    assert cpp_ext.kernels_in_use(device) == "compiled"
    x = torch.randn(6, 5, 3, 3, device=device)
    for y in (x, x.to(memory_format=torch.channels_last), x.to(torch.bfloat16)):
        for p, dim in ((1, 0), (2, -3)):
            torch.library.opcheck(torch.ops.niwaki.filter_norm.default, (y, p, dim))


norm = cpp_ext.filter_norm
WRONG = {
    "another norm": (lambda x: norm(x, 3), ValueError, "got p = 3"),
    "a squared 1-norm": (lambda x: norm(x, 1, squared=True), ValueError, "squares the norm p = 2 alone"),
    "no such dimension": (lambda x: norm(x, 1, 2), IndexError, "got dim = 2 for a tensor of 2 dimensions"),
    "a scalar's norm": (lambda x: norm(x.sum()), IndexError, "tensor of 0 dimensions"),
    "integers": (lambda x: norm(x.long()), ValueError, "int64: convert it to float32"),
}


@pytest.mark.parametrize("mode", [pytest.param("compiled", marks=needs_kernels), "reference"])
@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_argument_is_an_error(case, mode, monkeypatch):
    monkeypatch.setenv("NIWAKI_KERNELS", mode)
    call, error, sentence = WRONG[case]
    with pytest.raises(error, match=sentence):
        call(torch.zeros(3, 4))


@needs_kernels
@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        ((torch.zeros(2), 3, 0), "got p = 3"),
        ((torch.zeros(2).long(), 1, 0), "got a tensor of Long"),
        ((torch.zeros(()), 1, 0), "tensor of 0 dimensions"),
    ],
)
def test_the_operator_itself_checks_its_arguments(args, sentence):
    assert cpp_ext.kernels_in_use() == "compiled"
    with pytest.raises((RuntimeError, IndexError), match=sentence):
        torch.ops.niwaki.filter_norm(*args)
