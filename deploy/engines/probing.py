"""Find out in a child process, under limits of time and memory, whether an ONNX file can be loaded and run.

Only running shows what a loop or a constant of a graph takes, and a runtime that has begun cannot be stopped.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn

from deploy.engines import probe_child
from deploy.errors import DeployError, MissingDependency
from deploy.onnx.metadata import Metadata
from deploy.onnx.wire import bytes_on_disk, read_model

SECONDS = 7
"""Of computing, for a small file; a machine that is busy with other things changes no verdict."""
BYTES = 1 << 30
"""Of memory, for a small file, beside that of the runtime."""
_WAITING = 20  # times as long as it may compute: a process that neither computes nor ends
_BYTES_A_SECOND = 20_000_000  # which a runtime reads and rewrites of a file's weights
_COPIES = 4  # of its weights that a runtime holds while it rewrites them


def probe(path: str | Path, *, runtime: str | None = None, batch: int = 1, seconds: int = SECONDS) -> None:
    """Load the ONNX file at ``path`` and run it once on noise in a child process with limits.

    A file that the runtime refuses in its own words passes: who loads it in earnest says so.

    Args:
        path: the file.
        runtime: what shall run it; OpenVINO is tried by itself, every other runtime by ONNX Runtime on the CPU.
        batch: how many images at once, where the file leaves that open.
        seconds: of computing that a small file may take; a large one gets more, and more than 1 GiB of memory.

    Raises:
        DeployError: it takes more time or memory, ends the process, or is no ONNX file.
        MissingDependency: the runtime is not installed.
    """
    path = Path(path)
    _, wire = read_model(path)
    chosen = "openvino" if runtime == "openvino" else "onnxruntime"
    if find_spec(chosen) is None:
        raise MissingDependency(f"Trying {path} needs the package {chosen}; get it with `pip install {chosen}`.")
    size = bytes_on_disk(path, wire.outside)
    prepared = Metadata.from_file(path).preprocessing
    asked: dict[str, Any] = {
        "path": str(path.absolute()),
        "runtime": chosen,
        "batch": batch,
        "sizes": [] if prepared is None else list(prepared.size),
        "seconds": seconds + size // _BYTES_A_SECOND,
        "bytes": BYTES + _COPIES * size,
    }
    verdict, code = _child(asked, path)
    if verdict == "memory":
        _refuse(path, f"takes more than {asked['bytes'] / (1 << 30):.1f} GiB of memory")
    if code == -signal.SIGXCPU:
        _refuse(path, f"takes more than {asked['seconds']} s of computing")
    if verdict not in ("ok", "error"):
        named = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        _refuse(path, f"ends the process that does so ({named})")


def _child(asked: dict[str, Any], path: Path) -> tuple[str, int]:
    """Start the child and return its verdict, empty where it gave none, and its exit code."""
    command = [sys.executable, "-I", probe_child.__file__, json.dumps(asked)]
    waiting = _WAITING * asked["seconds"]
    try:
        done = subprocess.run(command, capture_output=True, check=False, timeout=waiting, stdin=subprocess.DEVNULL)
    except subprocess.TimeoutExpired:
        _refuse(path, f"takes more than {waiting} s")
    last = done.stdout.decode(errors="replace").strip().rpartition("\n")[2]
    return last.partition(" ")[0], done.returncode


def _refuse(path: Path, why: str) -> NoReturn:
    raise DeployError(f"Loading {path} and running it once {why}; if you trust it, add --no-probe.")
