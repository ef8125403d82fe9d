"""Runtimes without their reports on use: ONNX Runtime, OpenVINO and NNCF send some unless they are told not to."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_SILENCING = ("ORT_DISABLE_TELEMETRY", "NNCF_CI")
_REPORTER = "openvino_telemetry"  # a package of its own; without it OpenVINO has a stub


@contextmanager
def unreported() -> Iterator[None]:
    """Keep what is imported inside from reporting its use over the network, for as long as the process lives.

    Each decides that once, as it is imported, and then also writes no identifier of the machine into the home folder. A
    variable that the user has set stays as it is.
    """
    added = [name for name in _SILENCING if name not in os.environ]
    hidden = _REPORTER not in sys.modules
    os.environ.update(dict.fromkeys(added, "1"))
    if hidden:
        # Whoever imports it is told that there is none.
        sys.modules[_REPORTER] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)
        if hidden:
            sys.modules.pop(_REPORTER, None)
