"""Where in the code a pass is, or failed: the innermost module, and the line of the user's code."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import FrameType

from torch import nn

from compress.prune.architecture import walk

_OURS = str(Path(__file__).parent)


def running() -> tuple[nn.Module | None, str]:
    """The innermost module whose method is running, and the innermost line outside of torch, as ``file.py:12``."""
    frame: FrameType | None = sys._getframe(1)
    found, line = None, ""
    while frame is not None and (found is None or not line):
        own, file = frame.f_locals.get("self"), frame.f_code.co_filename
        if found is None and isinstance(own, nn.Module):
            found = own
        if not line and f"{os.sep}torch{os.sep}" not in file and not file.startswith(_OURS):
            line = f"{Path(file).name}:{frame.f_lineno}"
        frame = frame.f_back
    return found, line


def failing(net: nn.Module, error: BaseException) -> str:
    """The innermost module in whose code an error was raised."""
    paths = {id(module): path for path, module in reversed(walk(net))}
    found, step = "", error.__traceback__
    while step is not None:
        own = step.tb_frame.f_locals.get("self")
        found = paths.get(id(own), found)
        step = step.tb_next
    return found
