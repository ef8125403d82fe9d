"""How many weights of an ONNX file are zero."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from deploy.onnx.file import read


def count_zeros(path: Path) -> tuple[int, int]:
    """Return zeros and numbers among the floating-point constants of two dimensions and more, which weights have.

    Raises:
        DeployError: the file is missing or is not ONNX.
    """
    from onnx import numpy_helper

    arrays = (numpy_helper.to_array(tensor) for tensor in read(path).graph.initializer)
    weights = [array for array in arrays if array.ndim > 1 and np.issubdtype(array.dtype, np.floating)]
    return sum(int(np.count_nonzero(a == 0)) for a in weights), sum(a.size for a in weights)
