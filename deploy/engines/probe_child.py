"""Load an ONNX file and run it once, under limits that only this process has: a script that ``probing`` starts.

It imports nothing of the package, so that it starts within moments. What it found is the last line that it prints: a
verdict, then words about it.
"""

from __future__ import annotations

import json
import math
import os
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np

try:
    import resource
except ImportError:  # Windows: the process that started this one watches the time, and nobody the memory
    resource = None  # type: ignore[assignment]

_DTYPES = {"tensor(float)": "float32", "tensor(float16)": "float16", "tensor(double)": "float64"}
_NO_MEMORY = re.compile("alloc|out of memory|not enough memory", re.IGNORECASE)
_MOST_NUMBERS = 2_000_000_000  # of an input; who would run it says that more are too many


def main() -> None:
    """Carry out what the only argument says, in JSON: path, runtime, batch, sizes, seconds, bytes."""
    asked = json.loads(sys.argv[1])
    try:
        run = _openvino(asked) if asked["runtime"] == "openvino" else _onnxruntime(asked)
        _tell("ok", "" if run else "its inputs are too large to be made")
    except MemoryError:
        _tell("memory", "")
    except Exception as error:  # noqa: BLE001 - whatever the runtime raises is told by who loads the file in earnest
        _tell("memory" if _NO_MEMORY.search(str(error)) else "error", str(error).splitlines()[0][:200])


def _onnxruntime(asked: dict[str, Any]) -> bool:
    # See ``unreported``, which this script cannot import.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime as ort

    ort.set_default_logger_severity(4)
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    _limit(asked)
    session = ort.InferenceSession(asked["path"], options, providers=["CPUExecutionProvider"])
    feeds = _noise(
        [(one.name, one.shape, _DTYPES.get(one.type, one.type[7:-1])) for one in session.get_inputs()], asked
    )
    if feeds is None:
        return False
    session.run(None, feeds)
    return True


def _openvino(asked: dict[str, Any]) -> bool:
    # See ``unreported``.
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
    import openvino as ov

    core = ov.Core()
    _limit(asked)
    options = {"INFERENCE_NUM_THREADS": "1", "INFERENCE_PRECISION_HINT": "f32"}
    compiled = core.compile_model(core.read_model(Path(asked["path"])), "CPU", options)
    feeds = _noise(
        [
            (
                port.get_any_name(),
                [size.get_length() if size.is_static else None for size in port.get_partial_shape()],
                np.dtype(port.get_element_type().to_dtype()).name,
            )
            for port in compiled.inputs
        ],
        asked,
    )
    if feeds is None:
        return False
    compiled(feeds)
    return True


def _noise(inputs: list[tuple[str, list[Any], str]], asked: dict[str, Any]) -> dict[str, np.ndarray] | None:
    """Draw the noise that ``niwaki bench`` draws; None where an input is too large for it."""
    feeds = {}
    for name, stated, kind in inputs:
        free = iter(asked["sizes"])
        shape = [size if isinstance(size, int) else next(free, 32) for size in stated[1:]]
        if stated:
            shape = [stated[0] if isinstance(stated[0], int) else asked["batch"], *shape]
        if math.prod(shape) > _MOST_NUMBERS:
            return None
        feeds[name] = np.random.default_rng(0).standard_normal(shape).astype(kind)
    return feeds


def _limit(asked: dict[str, Any]) -> None:
    """Set the limits, which count from now on: what was imported so far is ours."""
    if resource is None:
        return
    used = resource.getrusage(resource.RUSAGE_SELF)
    # A second before the kernel kills, it sends SIGXCPU, which tells this limit from a lack of memory.
    _lower(resource.RLIMIT_CPU, math.ceil(used.ru_utime + used.ru_stime) + asked["seconds"], grace=1)
    pages = Path("/proc/self/statm")
    if pages.is_file():
        mapped = int(pages.read_text(encoding="ascii").split()[0]) * resource.getpagesize()
        _lower(resource.RLIMIT_AS, mapped + asked["bytes"])
    _lower(resource.RLIMIT_CORE, 0)


def _lower(kind: int, value: int, grace: int = 0) -> None:
    hard = resource.getrlimit(kind)[1]
    most = value + grace if hard == resource.RLIM_INFINITY else min(value + grace, hard)
    resource.setrlimit(kind, (min(value, most), most))


def _tell(verdict: str, words: str) -> None:
    print(f"\n{verdict} {words}", flush=True)


if __name__ == "__main__":
    main()
