"""Slices and fills of whole lists against their slow references."""

from __future__ import annotations

import subprocess
import sys

import pytest

torch = pytest.importorskip("torch")

from hypothesis import given  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from kernel_cases import DEVICES, LAYOUTS, examples, needs_kernels, shapes, tensor  # noqa: E402
from test_slices import ANY_DTYPES  # noqa: E402

import cpp_ext  # noqa: E402


def a_list(data, device, sizes=shapes):
    return [
        tensor(data.draw(sizes), data.draw(st.sampled_from(ANY_DTYPES)), data.draw(st.sampled_from(LAYOUTS)), k, device)
        for k in range(data.draw(st.integers(0, 5)))
    ]


@pytest.mark.parametrize("device", DEVICES)
@examples
@given(st.data())
def test_a_whole_list_is_cut_as_its_reference(device, data):
    xs = a_list(data, device)
    keeps = []
    for x in xs:
        pair = []
        for size in (*x.shape[:2], None)[:2]:
            if size is None:
                pair.append(None)
                continue
            indices = st.lists(st.integers(0, size - 1), max_size=2 * size) if size else st.just([])
            rising = indices.map(lambda drawn: sorted(set(drawn)))
            drawn = data.draw(st.none() | indices | rising)
            pair.append(None if drawn is None else torch.tensor(drawn, dtype=torch.int64, device=device))
        keeps.append(tuple(pair))
    results = cpp_ext.multi_channel_slice(xs, keeps)
    for x, result, want in zip(xs, results, cpp_ext.multi_channel_slice_reference(xs, keeps), strict=True):
        assert result.dtype == x.dtype and result.is_contiguous()
        assert torch.equal(result, want)
    stores = [r.untyped_storage().data_ptr() for r in results if r.numel()]
    assert len(set(stores)) == len(stores)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("width", [1, 7, 8, 9, 31, 64, 250])
@needs_kernels
def test_rising_columns_of_every_density(dtype, width):
    generator = torch.Generator().manual_seed(width)
    x = torch.randn(200, width, generator=generator).to(dtype)
    for share in (0.0, 0.1, 0.5, 0.9, 1.0):
        keep = (torch.rand(width, generator=generator) < share).nonzero().flatten()
        rows = torch.arange(0, 200, 3)
        assert torch.equal(cpp_ext.channel_slice(x, rows, keep), x[rows][:, keep])


@pytest.mark.parametrize("device", DEVICES)
@examples
@given(st.data())
def test_masked_channels_become_zero(device, data):
    xs = [x if x._is_view() and 0 not in x.stride() else x.clone() for x in a_list(data, device)]
    dims = [data.draw(st.integers(0, x.dim() - 1)) for x in xs]
    masks = [torch.rand(x.shape[d], device=device) < 0.5 for x, d in zip(xs, dims, strict=True)]
    wanted = [x.clone() for x in xs]
    cpp_ext.masked_fill_channels_reference(wanted, dims, masks)
    cpp_ext.masked_fill_channels(xs, dims, masks)
    assert all(torch.equal(x, want) for x, want in zip(xs, wanted, strict=True))


@pytest.mark.parametrize("device", DEVICES)
def test_opcheck(device):
    assert cpp_ext.kernels_in_use(device) == "compiled"
    x, keep = torch.randn(6, 5, 3, 3, device=device), torch.tensor([4, 0, 2], device=device)
    torch.library.opcheck(torch.ops.niwaki.multi_channel_slice.default, ([x, x[0]], [keep, keep[1:]], [0, -1], [1, 1]))
    mask = torch.tensor([True, False, True, False, True], device=device)
    torch.library.opcheck(
        torch.ops.niwaki.masked_fill_channels.default, ([x, x[0, :, 0].clone()], [1, 0], [mask], [0, 0])
    )


@pytest.mark.parametrize("mode", [pytest.param("compiled", marks=needs_kernels), "reference"])
def test_wrong_arguments_are_errors(mode, monkeypatch):
    monkeypatch.setenv("NIWAKI_KERNELS", mode)
    x = torch.zeros(3, 4)
    with pytest.raises(ValueError, match="0 pairs of indices for 1 tensors"):
        cpp_ext.multi_channel_slice([x], [])
    with pytest.raises(IndexError, match=r"keep1\[1\] = 4 for a dimension of size 4"):
        cpp_ext.multi_channel_slice([x, x], [(None, None), (None, torch.tensor([0, 4]))])
    with pytest.raises(ValueError, match="several devices"):
        cpp_ext.multi_channel_slice([x, x.to("meta")], [(None, None)] * 2)
    with pytest.raises(ValueError, match="keep0 on another device"):
        cpp_ext.multi_channel_slice([x], [(torch.zeros(1, dtype=torch.int64, device="meta"), None)])
    with pytest.raises(ValueError, match="keep1 of 1 dimensions that is not a 1-D int64 tensor"):
        cpp_ext.multi_channel_slice([x], [(None, torch.zeros(1))])
    with pytest.raises(ValueError, match="0 dimensions"):
        cpp_ext.multi_channel_slice([x[0, 0]], [(None, None)])
    with pytest.raises(ValueError, match="one entry for each channel"):
        cpp_ext.masked_fill_channels([x], [0], [torch.zeros(4, dtype=torch.bool)])
    with pytest.raises(IndexError, match="dim = 2"):
        cpp_ext.masked_fill_channels([x], [2], [torch.zeros(4, dtype=torch.bool)])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU: torch.cuda.is_available() is False")
def test_a_wild_index_on_the_device_stops_the_kernel():
    code = (
        "import torch, cpp_ext\n"
        "cpp_ext.channel_slice(torch.zeros(6, 5, device='cuda'), torch.tensor([6], device='cuda'))\n"
        "torch.cuda.synchronize()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "keep0[0] = 6 for a dimension of size 6" in done.stdout
