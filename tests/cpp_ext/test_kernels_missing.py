"""Which implementation runs, and what is said where the compiled one is not there."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

torch = pytest.importorskip("torch")

from kernel_cases import needs_kernels  # noqa: E402

import cpp_ext  # noqa: E402
from cpp_ext import loading  # noqa: E402


@needs_kernels
def test_the_environment_chooses_at_each_call(monkeypatch):
    x = torch.randn(3, 4, 5)
    assert cpp_ext.kernels_in_use() == "compiled"
    monkeypatch.setenv("NIWAKI_KERNELS", "reference")
    assert cpp_ext.kernels_in_use() == cpp_ext.kernels_in_use("cuda") == "reference"
    monkeypatch.setattr(loading, "_load", lambda module: pytest.fail("the reference needs no kernels"))
    torch.testing.assert_close(cpp_ext.filter_norm(x, 2, 1), torch.linalg.vector_norm(x, 2, (0, 2)))
    assert torch.equal(cpp_ext.channel_slice(x, torch.tensor([2, 0])), x[[2, 0]])


def test_missing_kernels_say_how_to_get_them(monkeypatch):
    info = {"cpu": False, "cuda": False, "build": {"why": "built without kernels: no torch"}}
    monkeypatch.setattr(loading, "build_info", lambda: info)
    monkeypatch.setattr(loading, "_load", loading._load.__wrapped__)
    for call in (lambda: cpp_ext.filter_norm(torch.ones(2)), lambda: cpp_ext.channel_slice(torch.ones(2))):
        with pytest.raises(cpp_ext.KernelsMissing, match=r"no torch.*--no-build-isolation.*NIWAKI_KERNELS=reference"):
            call()
    info["build"] = None
    with pytest.raises(cpp_ext.KernelsMissing, match="CPU kernels are not installed: install torch"):
        cpp_ext.kernels_in_use()


def test_kernels_that_do_not_load_say_why(monkeypatch):
    def broken(name):
        raise ImportError("undefined symbol: torch_something")

    monkeypatch.setattr(loading, "build_info", lambda: {"cpu": True, "cuda": True, "build": None})
    monkeypatch.setattr(loading, "_load", loading._load.__wrapped__)
    monkeypatch.setattr(loading.importlib, "import_module", broken)
    with pytest.raises(cpp_ext.KernelsMissing, match=r"do not load under torch .*undefined symbol: torch_something"):
        loading.kernels_in_use()


def test_a_missing_cuda_half_does_not_stop_the_cpu(monkeypatch):
    monkeypatch.setattr(loading, "_load", {"_C": None, "_C_cuda": "niwaki's CUDA kernels are not installed."}.get)
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
