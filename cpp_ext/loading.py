"""Which implementation runs: the compiled kernels, or the slow references where they are asked for.

The environment variable `NIWAKI_KERNELS=reference`, read at each call, puts the references in the kernels' place;
nothing else does.
"""

from __future__ import annotations

import functools
import importlib
import os
from typing import Literal

import torch

from cpp_ext.installed import KernelsMissing, build_info

_HOW = (
    "install torch, setuptools, ninja and g++, then run `pip install --no-build-isolation --no-deps -e .` in a "
    "checkout, or set NIWAKI_KERNELS=reference for the slow ones in Python"
)


def kernels_in_use(device: torch.device | str = "cpu") -> Literal["compiled", "reference"]:
    """Which implementation a call on a tensor of `device` runs, by the environment as it is now.

    Raises:
        KernelsMissing: the compiled kernels are asked for and are not there, or do not load.
    """
    if os.environ.get("NIWAKI_KERNELS") == "reference":
        return "reference"
    failure = _load("_C")
    if failure is None and torch.device(device).type == "cuda":
        failure = _load("_C_cuda")
    if failure is not None:
        raise KernelsMissing(failure)
    return "compiled"


def instruction_set() -> str:
    """Which build of the CPU kernels this processor runs: `avx512`, `avx2` or `plain`.

    `NIWAKI_CPU`, read once, asks for a lesser one.

    Raises:
        KernelsMissing: the compiled kernels are not there, or do not load.
    """
    failure = _load("_C")
    if failure is not None:
        raise KernelsMissing(failure)
    return torch.ops.niwaki.cpu_instructions()


@functools.cache
def _load(module: Literal["_C", "_C_cuda"]) -> str | None:
    """Load a compiled module once; returns the sentence that says why it cannot be used, or None."""
    what = "CPU" if module == "_C" else "CUDA"
    info = build_info()
    if not info[what.lower()]:
        said = f" ({info['build']['why']})" if info["build"] else ""
        return f"niwaki's {what} kernels are not installed{said}: {_HOW}."
    try:
        importlib.import_module(f"cpp_ext.{module}")
    except ImportError as error:
        return f"niwaki's {what} kernels do not load under torch {torch.__version__} ({error}): {_HOW}."
    if module == "_C":
        for fakes in (importlib.import_module(f"cpp_ext.{half}").FAKES for half in ("norms", "slices", "select")):
            for op, fake in fakes.items():
                torch.library.register_fake(f"niwaki::{op}", fake)
    return None
