"""The compiled kernels against their slow references, over dtypes, memory layouts, shapes and emptiness."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

torch = pytest.importorskip("torch")

from hypothesis import HealthCheck, assume, given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

import cpp_ext  # noqa: E402
from cpp_ext import ops  # noqa: E402

needs_kernels = pytest.mark.skipif(
    not cpp_ext.build_info()["cpu"], reason="the kernels are not built: python setup.py build_ext --inplace"
)
DEVICES = [
    pytest.param("cpu", marks=needs_kernels),
    pytest.param(
        "cuda",
        marks=[
            pytest.mark.gpu,
            pytest.mark.skipif(
                not torch.cuda.is_available(), reason="no NVIDIA GPU: torch.cuda.is_available() is False"
            ),
            pytest.mark.skipif(
                not cpp_ext.build_info()["cuda"],
                reason="the CUDA kernels are not built: set CUDA_HOME and build again",
            ),
        ],
    ),
]
EPSILON = {torch.float32: 3e-6, torch.float64: 1e-13, torch.float16: 3e-6, torch.bfloat16: 3e-6}
ANY_DTYPES = [
    *ops.NORM_DTYPES,
    torch.int64,
    torch.int32,
    torch.uint8,
    torch.bool,
    torch.complex64,
    torch.complex128,
]
LAYOUTS = ["contiguous", "permuted", "stepped", "expanded", "offset"]
examples = settings(max_examples=120, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


@pytest.fixture(autouse=True)
def compiled(monkeypatch):
    """The kernels, not the references, whatever the caller's environment says."""
    monkeypatch.delenv("NIWAKI_KERNELS", raising=False)


def tensor(shape, dtype, layout, seed, device):
    """Random values of `shape` and `dtype` that lie in memory as `layout` says."""
    generator = torch.Generator().manual_seed(seed)
    rank = len(shape)

    def values(size):
        if dtype.is_floating_point or dtype.is_complex:
            return torch.randn(size, generator=generator, dtype=torch.float64).to(dtype).to(device)
        return torch.randint(0, 100, size, generator=generator).to(dtype).to(device)

    if layout == "permuted":  # channels_last when the order is 0, 2, 3, 1
        order = torch.randperm(rank, generator=generator).tolist()
        return values([shape[d] for d in order]).permute([order.index(d) for d in range(rank)])
    if layout == "stepped":
        return values([2 * n for n in shape])[tuple(slice(None, None, 2) for _ in shape)]
    if layout == "expanded":
        return values([1 if d == rank - 1 else n for d, n in enumerate(shape)]).expand(shape)
    if layout == "offset":
        return values([n + 1 for n in shape])[tuple(slice(1, None) for _ in shape)]
    return values(shape)


shapes = st.lists(st.integers(0, 9), min_size=1, max_size=5).map(tuple) | st.sampled_from(
    [(3, 2000), (2, 3, 33, 33), (700, 3, 1, 1), (40, 600), (5, 1100, 3), (1, 1, 1, 1), (6, 1, 3, 3)]
)


@pytest.mark.parametrize("device", DEVICES)
@examples
@given(shapes, st.sampled_from(ops.NORM_DTYPES), st.sampled_from(LAYOUTS), st.sampled_from([1, 2]), st.data())
def test_filter_norm_equals_its_reference(device, shape, dtype, layout, p, data):
    x = tensor(shape, dtype, layout, data.draw(st.integers(0, 99)), device)
    dim = data.draw(st.integers(-x.dim(), x.dim() - 1))
    norm = cpp_ext.filter_norm(x, p, dim)
    assert norm.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert norm.shape == (shape[dim],)
    torch.testing.assert_close(norm, ops.filter_norm_reference(x, p, dim), rtol=EPSILON[dtype], atol=0)
    assert torch.equal(norm, cpp_ext.filter_norm(x, p, dim))


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
    expected = ops.channel_slice_reference(x, *keeps)
    assert result.dtype == dtype
    assert result.is_contiguous()
    assert torch.equal(result, expected)
    if result.numel():
        assert result.untyped_storage().data_ptr() != x.untyped_storage().data_ptr()


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
    torch.testing.assert_close(cpp_ext.filter_norm(x, 2), ops.filter_norm_reference(x, 2), rtol=1e-6, atol=0)


@needs_kernels
def test_the_number_of_threads_changes_no_bit():
    x = torch.randn(256, 128, 3, 3, generator=torch.Generator().manual_seed(0))
    keep = torch.arange(0, 128, 2)
    threads = torch.get_num_threads()
    results = []
    try:
        for n in (1, 2, 3):
            torch.set_num_threads(n)
            results.append(
                [cpp_ext.filter_norm(x, p, d) for p in (1, 2) for d in (0, 1)] + [cpp_ext.channel_slice(x, None, keep)]
            )
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("device", DEVICES)
def test_results_require_no_gradient(device):
    x = torch.randn(4, 3, device=device, requires_grad=True)
    assert not cpp_ext.filter_norm(x).requires_grad
    assert not cpp_ext.channel_slice(x).requires_grad


@pytest.mark.parametrize("device", DEVICES)
def test_opcheck(device):
    assert cpp_ext.kernels_in_use(device) == "compiled"
    x = torch.randn(6, 5, 3, 3, device=device)
    keep = torch.tensor([4, 0, 2], device=device)
    for y in (x, x.to(memory_format=torch.channels_last), x.to(torch.bfloat16)):
        for p, dim in ((1, 0), (2, -3)):
            torch.library.opcheck(torch.ops.niwaki.filter_norm.default, (y, p, dim))
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
    keeps = [None, None]
    keeps[dim] = torch.tensor(indices, device=device)
    sentence = rf"keep{dim}\[{wild[0]}\] = {indices[wild[0]]} for a dimension of size {size}: pass indices between"
    slice_ = cpp_ext.channel_slice if mode == "compiled" else cpp_ext.channel_slice_reference
    with pytest.raises(IndexError, match=sentence):
        slice_(torch.zeros(6, 5, 2, device=device), *keeps)


norm, cut = cpp_ext.filter_norm, cpp_ext.channel_slice
ZERO = torch.tensor([0])
WRONG = {
    "another norm": (lambda x: norm(x, 3), ValueError, "got p = 3"),
    "no such dimension": (lambda x: norm(x, 1, 2), IndexError, "got dim = 2 for a tensor of 2 dimensions"),
    "a scalar's norm": (lambda x: norm(x.sum()), IndexError, "tensor of 0 dimensions"),
    "integers": (lambda x: norm(x.long()), ValueError, "int64: convert it to float32"),
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
    with pytest.raises(RuntimeError, match="keep1 = None"):
        torch.ops.niwaki.channel_slice(torch.zeros(2), None, torch.tensor([0]))


@needs_kernels
def test_the_environment_chooses_at_each_call(monkeypatch):
    x = torch.randn(3, 4, 5)
    assert cpp_ext.kernels_in_use() == "compiled"
    monkeypatch.setenv("NIWAKI_KERNELS", "reference")
    assert cpp_ext.kernels_in_use() == cpp_ext.kernels_in_use("cuda") == "reference"
    monkeypatch.setattr(ops, "_load", lambda module: pytest.fail("the reference needs no kernels"))
    torch.testing.assert_close(cpp_ext.filter_norm(x, 2, 1), torch.linalg.vector_norm(x, 2, (0, 2)))
    assert torch.equal(cpp_ext.channel_slice(x, torch.tensor([2, 0])), x[[2, 0]])


def test_missing_kernels_say_how_to_get_them(monkeypatch):
    info = {"cpu": False, "cuda": False, "build": {"why": "built without kernels: no torch"}}
    monkeypatch.setattr(ops, "build_info", lambda: info)
    monkeypatch.setattr(ops, "_load", ops._load.__wrapped__)
    for call in (lambda: cpp_ext.filter_norm(torch.ones(2)), lambda: cpp_ext.channel_slice(torch.ones(2))):
        with pytest.raises(cpp_ext.KernelsMissing, match=r"no torch.*--no-build-isolation.*NIWAKI_KERNELS=reference"):
            call()
    info["build"] = None
    with pytest.raises(cpp_ext.KernelsMissing, match="CPU kernels are not installed: install torch"):
        cpp_ext.kernels_in_use()


def test_kernels_that_do_not_load_say_why(monkeypatch):
    def broken(name):
        raise ImportError("undefined symbol: torch_something")

    monkeypatch.setattr(ops, "build_info", lambda: {"cpu": True, "cuda": True, "build": None})
    monkeypatch.setattr(ops, "_load", ops._load.__wrapped__)
    monkeypatch.setattr(ops.importlib, "import_module", broken)
    with pytest.raises(cpp_ext.KernelsMissing, match=r"do not load under torch .*undefined symbol: torch_something"):
        ops.kernels_in_use()


def test_a_missing_cuda_half_does_not_stop_the_cpu(monkeypatch):
    monkeypatch.setattr(ops, "_load", {"_C": None, "_C_cuda": "niwaki's CUDA kernels are not installed."}.get)
    assert cpp_ext.kernels_in_use() == "compiled"
    with pytest.raises(cpp_ext.KernelsMissing, match="CUDA"):
        cpp_ext.kernels_in_use("cuda")


def test_importing_the_package_imports_no_torch():
    code = (
        "import sys, cpp_ext; cpp_ext.build_info(); cpp_ext.KernelsMissing; dir(cpp_ext); "
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=dict(os.environ), check=False
    )
    assert done.returncode == 0, done.stderr
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        cpp_ext.nothing  # noqa: B018
