"""A chain of convolutions, the small network that the benchmarks of timing itself are run on."""

from __future__ import annotations

from typing import Any

import numpy as np

LAYERS = 6


def chain(rng: np.random.Generator, width: int) -> tuple[list[Any], list[Any], str]:
    """Return six convolutions of ``width`` channels, each with a ReLU, from ``x`` of three channels.

    Returns:
        Nodes, constants, and the name of what the last node makes, of shape (n, channels, height, width of x).
    """
    from onnx import helper, numpy_helper

    nodes, constants, last, channels = [], [], "x", 3
    for index in range(LAYERS):
        weight = (rng.standard_normal((width, channels, 3, 3)) / (3 * channels**0.5)).astype(np.float32)
        constants.append(numpy_helper.from_array(weight, f"w{index}"))
        nodes.append(helper.make_node("Conv", [last, f"w{index}"], [f"c{index}"], pads=[1, 1, 1, 1]))
        nodes.append(helper.make_node("Relu", [f"c{index}"], [f"r{index}"]))
        last, channels = f"r{index}", width
    return nodes, constants, last
