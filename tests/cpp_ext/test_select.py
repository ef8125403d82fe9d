"""The global threshold of |gradient * weight| against its slow reference."""

from __future__ import annotations

import math

import pytest

torch = pytest.importorskip("torch")

from hypothesis import given  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from kernel_cases import DEVICES, examples, needs_kernels, shapes, tensor  # noqa: E402

import cpp_ext  # noqa: E402
from cpp_ext.norms import NORM_DTYPES  # noqa: E402


@pytest.mark.parametrize("device", DEVICES)
@examples
@given(
    st.lists(shapes, min_size=1, max_size=4),
    st.sampled_from(NORM_DTYPES),
    st.sampled_from(["contiguous", "permuted"]),
    st.data(),
)
def test_the_largest_products_of_a_list_stay(device, sizes, dtype, layout, data):
    weights = [tensor(shape, dtype, layout, k, device) for k, shape in enumerate(sizes)]
    gradients = [torch.empty_like(w).copy_(torch.randn(w.shape)) for w in weights]
    if data.draw(st.booleans()):
        weights = [w.round() for w in weights]  # many equal products, and zeros
        gradients = [g.sign() for g in gradients]
    total = sum(w.numel() for w in weights)
    keep = data.draw(st.integers(0, total))
    wanted = [g.clone() for g in gradients]
    threshold = cpp_ext.keep_largest_products_reference(wanted, weights, keep)
    assert torch.equal(cpp_ext.keep_largest_products(gradients, weights, keep), threshold)
    assert all(torch.equal(g, want) for g, want in zip(gradients, wanted, strict=True))
    assert sum(int((g != 0).sum()) for g in gradients) <= total


@pytest.mark.parametrize("device", DEVICES)
def test_exactly_so_many_stay_where_products_differ(device):
    weight = torch.arange(1.0, 5001.0, device=device).view(100, 50)
    for keep in (0, 1, 17, 4999, 5000):
        gradient = torch.ones_like(weight)
        threshold = cpp_ext.keep_largest_products([gradient], [weight], keep)
        assert int(gradient.sum()) == keep
        assert threshold == (math.inf if keep == 0 else 0 if keep == 5000 else 5001 - keep)


@pytest.mark.parametrize("device", DEVICES)
def test_opcheck(device):
    assert cpp_ext.kernels_in_use(device) == "compiled"
    w = torch.randn(6, 5, device=device)
    torch.library.opcheck(torch.ops.niwaki.keep_largest_products.default, ([torch.randn_like(w)], [w], 7))


@pytest.mark.parametrize("mode", [pytest.param("compiled", marks=needs_kernels), "reference"])
def test_wrong_arguments_are_errors(mode, monkeypatch):
    monkeypatch.setenv("NIWAKI_KERNELS", mode)
    w = torch.ones(3, 4)
    with pytest.raises(ValueError, match="keep 13 of 12"):
        cpp_ext.keep_largest_products([w.clone()], [w], 13)
    with pytest.raises(ValueError, match="gradient 0 that is not of its weight's dtype"):
        cpp_ext.keep_largest_products([w.half()], [w], 1)
    with pytest.raises(ValueError, match="0 gradients for 1 weights"):
        cpp_ext.keep_largest_products([], [w], 1)
    assert cpp_ext.keep_largest_products([], [], 0) == math.inf
