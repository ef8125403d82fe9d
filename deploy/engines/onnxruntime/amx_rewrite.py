"""Quantised files as ONNX Runtime computes them fastest on a processor with AMX, value for value.

OpenVINO is slower for both changes, so they are done to the bytes on their way into ONNX Runtime; the file stays.
docs/engines.md has what was measured.
"""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import numpy as np

from deploy.onnx.wire_graph import Graph, Node, Tensor, graph_of, node_bytes, tensor_bytes, with_parts

PRODUCTS = 700
"""From this many products a sum on, ONNX Runtime 1.31 gains by ``shifted``."""


def has_amx(told: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether this processor multiplies matrices of int8 by itself; where the system does not say, no."""
    return told.is_file() and "amx_int8" in told.read_text(encoding="utf-8", errors="replace")


def shifted(data: bytes) -> bytes | None:
    """The ONNX file ``data`` with the weights of its long quantised convolutions one lower, and their zero-points.

    ONNX Runtime's convolution for weights with zero-point 0 uses VNNI alone; its matrix product, which it takes for any
    other zero-point, uses AMX. w - 1 with zero-point -1 are the same numbers, and give the same answers.

    Returns:
        A file of the same length that computes the same, or None where there is nothing to change; so too for bytes
        that are no ONNX file, for ONNX Runtime says better what is wrong with them.
    """
    changed = bytearray(data)
    if (graph := _quantised(changed)) is None:
        return None
    reads = Counter(name for node in graph.nodes for name in node.inputs)
    found: list[np.ndarray] = []
    for _, _, weights, restored in _convolutions(graph):
        name, zero_name = restored.inputs[0], restored.inputs[2]
        # What somebody else reads as well has to stay.
        if math.prod(weights.shape[1:]) >= PRODUCTS and reads[name] == reads[zero_name] == 1:
            pair = weights.int8(), graph.tensors[zero_name].int8()
            if all(array.size for array in pair) and pair[0].min() > -128 and not pair[1].any():
                found += pair
    for array in found:
        np.subtract(array, 1, out=array)
    return bytes(changed) if found else None


def on_blocks(data: bytes) -> bytes | None:
    """The ONNX file ``data`` with its first convolution, of stride 2 on an image, on blocks of 2 x 2 pixels instead.

    k x k on c channels at every second pixel sums what some (k + 1) / 2 squared on 4c channels do at every block. ONNX
    Runtime copies what a sum reads row by row, and rows of 3 channels are short.

    Returns:
        A file that computes the same, or None where there is nothing to change; so too for bytes that are no ONNX file.
    """
    if (graph := _quantised(data)) is None:
        return None
    maker = {name: node for node in graph.nodes for name in node.outputs}
    for place, conv, weights, restored in _convolutions(graph):
        image = maker.get(conv.inputs[0], Node())
        restores = image.kind == "DequantizeLinear" and image.inputs
        quantised = maker.get(image.inputs[0], Node()) if restores else Node()
        if (
            quantised.kind != "QuantizeLinear"
            or not quantised.inputs
            or not (size := graph.inputs.get(quantised.inputs[0]))
        ):
            continue
        kernel, pads = weights.shape[2:], conv.numbers.get("pads", [0])
        plain = conv.numbers.get("strides") == [2, 2] and set(conv.numbers.get("dilations", [1])) == {1}
        plain &= conv.words.get("auto_pad", "NOTSET") == "NOTSET" and restored.numbers.get("axis") == [0]
        square = len(kernel) == 2 and kernel[0] == kernel[1] > 2 and len(set(pads)) == 1
        even = len(size) == 4 and size[1] <= 4 and all(side and side % 2 == 0 for side in size[2:])
        if not (plain and square and even and weights.int8().size):
            continue
        values, before = _blocks(weights.int8().reshape(weights.shape), pads[0])
        # As many places as before: side / 2 + before + after - taps + 1.
        after = (2 * pads[0] - kernel[0]) // 2 - before + values.shape[2]
        if after < 0:
            continue
        new = [f"{conv.outputs[0]}.{part}" for part in ("blocks", "image", "weight", "kernel")]
        nodes = [
            node_bytes("SpaceToDepth", image.inputs[:1], new[:1], {"blocksize": 2}),
            node_bytes("DequantizeLinear", [new[0], *image.inputs[1:]], [new[1]], {}),
            node_bytes("DequantizeLinear", [new[2], *restored.inputs[1:]], [new[3]], {"axis": 0}),
            node_bytes(
                "Conv",
                [new[1], new[3], *conv.inputs[2:]],
                conv.outputs,
                {"kernel_shape": values.shape[2:], "strides": [1, 1], "pads": [before, before, after, after]},
            ),
        ]
        return with_parts(data, {place: nodes}, [tensor_bytes(new[2], values)])
    return None


def _quantised(data: bytes | bytearray) -> Graph | None:
    """The graph of a quantised ONNX file; None for other files and for bytes that are none."""
    if b"DequantizeLinear" not in data:
        return None
    try:
        return graph_of(data)
    except (ValueError, IndexError, TypeError):
        return None


def _convolutions(graph: Graph) -> list[tuple[int, Node, Tensor, Node]]:
    """Convolutions of one group on restored constants: the place, the node, its weights and what restores them."""
    maker = {name: node for node in graph.nodes for name in node.outputs}
    found = []
    for place, node in enumerate(graph.nodes):
        if node.kind != "Conv" or node.numbers.get("group", [1]) != [1] or len(node.inputs) < 2 or not node.outputs:
            continue
        restored = maker.get(node.inputs[1], Node())
        if restored.kind == "DequantizeLinear" and len(restored.inputs) == 3:
            weights = graph.tensors.get(restored.inputs[0])
            if weights is not None and restored.inputs[2] in graph.tensors:
                found.append((place, node, weights, restored))
    return found


def _blocks(weights: np.ndarray, pad: int) -> tuple[np.ndarray, int]:
    """Weights (out, c, k, k) for blocks of pixels, (out, 4c, t, t), and how many blocks come before the first one."""
    out, channels, kernel, _ = weights.shape
    first, last = -pad // 2, (kernel - 1 - pad) // 2
    taps = last - first + 1
    found = np.zeros((out, 2, 2, channels, taps, taps), np.int8)
    for row in range(kernel):
        for column in range(kernel):
            (y, inner_y), (x, inner_x) = divmod(row - pad, 2), divmod(column - pad, 2)
            found[:, inner_y, inner_x, :, y - first, x - first] = weights[:, :, row, column]
    return found.reshape(out, 4 * channels, taps, taps), -first
