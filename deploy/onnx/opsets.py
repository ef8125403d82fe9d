"""List which ONNX operator sets each runtime reads, and choose the one that suits several."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from deploy.errors import DeployError

DEFAULT = 18
"""The set that the exporter translates to first; everything measured in the docs was exported with it."""

# What torch 2.15 writes: its translations target 18, and onnx's version converter raises them.
_WRITTEN = (18, 26)

READS: Mapping[str, tuple[int, int]] = MappingProxyType(
    {
        # ONNX Runtime 1.31 refuses to load 27 and warns below 7; its providers share the loader.
        "onnxruntime": (7, 26),
        "onnxruntime_cuda": (7, 26),
        "onnxruntime_tensorrt": (9, 24),
        # OpenVINO 2026.4 looks at the operators, never at the number; this is the range that was tried.
        "openvino": (7, 26),
        # The parser's operator list for TensorRT 10 names 9 to 24, NVIDIA's guide for 11 up to 25: what both read.
        "tensorrt": (9, 24),
        # TensorRT-RTX 1.7 has the same parser and looks only at the operators.
        "tensorrt_rtx": (9, 24),
    }
)
"""The lowest and highest operator set that each runtime reads."""


_NEW_FORMAT = re.compile(r"Unsupported model IR version: (\d+), max supported IR version: (\d+)")
_NEW_OPSET = re.compile(r"Opset (\d+) is under development(?:.* support for domain (\S+) is till opset (\d+))?", re.S)


def too_new(message: str, path: str | Path) -> str | None:
    """Say what ONNX Runtime's ``message`` means where ``path`` is newer than it reads, after its name; else None."""
    if (found := _NEW_FORMAT.search(message)) is not None:
        return (
            f"reads ONNX files of format {found[2]} at most, and {path} is of format {found[1]}; update ONNX Runtime, "
            "or export the file for an older one."
        )
    if (found := _NEW_OPSET.search(message)) is not None:
        return (
            f"does not read operator set {found[1]}{of_domain(found[2])}, of which {path} is; update ONNX Runtime, or "
            f"export the file with an opset of at most {found[3] or READS['onnxruntime'][1]}{of_domain(found[2])}."
        )
    return None


def of_domain(domain: str | None) -> str:
    """Say of which domain an operator set is, unless it is that of all files."""
    return f" of {domain}" if domain and domain != "ai.onnx" else ""


def opset_for(runtimes: Sequence[str], asked: int | None = None) -> int:
    """Return the highest operator set that all ``runtimes`` read, or the one ``asked`` for if all of them read it.

    With neither given, return ``DEFAULT``.

    Raises:
        DeployError: there is no such runtime, or a runtime or the exporter does not know ``asked``.
    """
    known = {"the exporter": _WRITTEN}
    for name in runtimes:
        if name not in READS:
            raise DeployError(f"There is no runtime {name!r}; choose among {', '.join(READS)}.")
        known[name] = READS[name]
    if asked is None:
        return min(high for _, high in known.values()) if runtimes else DEFAULT
    for name, (low, high) in known.items():
        if not low <= asked <= high:
            does = f"{name} {'writes' if name == 'the exporter' else 'reads'} {low} to {high}"
            raise DeployError(f"The opset is {asked}, but {does}; leave it out or take one of these.")
    return asked
