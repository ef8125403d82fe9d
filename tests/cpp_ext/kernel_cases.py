"""What the kernels' tests share: devices, and tensors over dtypes, memory layouts, shapes and emptiness."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from hypothesis import HealthCheck, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

import cpp_ext  # noqa: E402

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
LAYOUTS = ["contiguous", "permuted", "stepped", "expanded", "offset"]
examples = settings(max_examples=120, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


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
