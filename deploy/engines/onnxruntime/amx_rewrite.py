"""Rewrite quantised files into what ONNX Runtime computes fastest on a processor with AMX, value for value.

Both rewrites make OpenVINO slower, so they change the bytes on their way into ONNX Runtime and leave the file alone.
The measurements are in docs/engines.md.
"""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import numpy as np

from deploy.onnx.wire_graph import Graph, GraphNode, GraphTensor, encode_node, encode_tensor, parse_graph, replace_nodes

MIN_PRODUCTS = 700
"""ONNX Runtime 1.31 gains by ``shift_weights`` from this many products per sum on."""


def has_amx(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Return whether this processor has AMX for int8; False where the system does not say."""
    return cpuinfo.is_file() and "amx_int8" in cpuinfo.read_text(encoding="utf-8", errors="replace")


def shift_weights(data: bytes) -> bytes | None:
    """Lower the weights of the long quantised convolutions in the ONNX file ``data`` by one, and their zero-points too.

    For weights with zero-point 0 ONNX Runtime uses a convolution that knows only VNNI; for any other zero-point it
    uses its matrix product, which knows AMX. w - 1 with zero-point -1 are the same numbers and give the same answers.

    Returns:
        A file of the same length that computes the same, or None where there is nothing to change; None also for bytes
        that are no ONNX file, for ONNX Runtime says better what is wrong with them.
    """
    changed = bytearray(data)
    if (graph := _parse_quantised(changed)) is None:
        return None
    reads = Counter(name for node in graph.nodes for name in node.inputs)
    found: list[np.ndarray] = []
    for _, _, weights, dequantise in _convolutions(graph):
        name, zero_name = dequantise.inputs[0], dequantise.inputs[2]
        # A constant that another node reads as well must stay.
        if math.prod(weights.shape[1:]) >= MIN_PRODUCTS and reads[name] == reads[zero_name] == 1:
            pair = weights.int8(), graph.tensors[zero_name].int8()
            if all(array.size for array in pair) and pair[0].min() > -128 and not pair[1].any():
                found += pair
    for array in found:
        np.subtract(array, 1, out=array)
    return bytes(changed) if found else None


def space_to_depth(data: bytes) -> bytes | None:
    """Move the first convolution of the ONNX file ``data``, of stride 2 on an image, to blocks of 2 x 2 pixels.

    A k x k kernel on c channels at every second pixel equals a kernel of about (k + 1) / 2 squared on 4c channels at
    every block. ONNX Runtime copies the inputs of a sum row by row, and rows of 3 channels are short.

    Returns:
        A file that computes the same, or None where there is nothing to change or the bytes are no ONNX file.
    """
    if (graph := _parse_quantised(data)) is None:
        return None
    maker = {name: node for node in graph.nodes for name in node.outputs}
    for place, conv, weights, dequantise in _convolutions(graph):
        image = maker.get(conv.inputs[0], GraphNode())
        dequantised = image.op_type == "DequantizeLinear" and image.inputs
        quantised = maker.get(image.inputs[0], GraphNode()) if dequantised else GraphNode()
        if (
            quantised.op_type != "QuantizeLinear"
            or not quantised.inputs
            or not (size := graph.inputs.get(quantised.inputs[0]))
        ):
            continue
        kernel, pads = weights.shape[2:], conv.ints.get("pads", [0])
        plain = conv.ints.get("strides") == [2, 2] and set(conv.ints.get("dilations", [1])) == {1}
        plain &= conv.strings.get("auto_pad", "NOTSET") == "NOTSET" and dequantise.ints.get("axis") == [0]
        square = len(kernel) == 2 and kernel[0] == kernel[1] > 2 and len(set(pads)) == 1
        even = len(size) == 4 and size[1] <= 4 and all(side and side % 2 == 0 for side in size[2:])
        if not (plain and square and even and weights.int8().size):
            continue
        values, before = _block_weights(weights.int8().reshape(weights.shape), pads[0])
        # Keeps the size of the output: side / 2 + before + after - taps + 1.
        after = (2 * pads[0] - kernel[0]) // 2 - before + values.shape[2]
        if after < 0:
            continue
        new = [f"{conv.outputs[0]}.{part}" for part in ("blocks", "image", "weight", "kernel")]
        nodes = [
            encode_node("SpaceToDepth", image.inputs[:1], new[:1], {"blocksize": 2}),
            encode_node("DequantizeLinear", [new[0], *image.inputs[1:]], [new[1]], {}),
            encode_node("DequantizeLinear", [new[2], *dequantise.inputs[1:]], [new[3]], {"axis": 0}),
            encode_node(
                "Conv",
                [new[1], new[3], *conv.inputs[2:]],
                conv.outputs,
                {"kernel_shape": values.shape[2:], "strides": [1, 1], "pads": [before, before, after, after]},
            ),
        ]
        return replace_nodes(data, {place: nodes}, [encode_tensor(new[2], values)])
    return None


def _parse_quantised(data: bytes | bytearray) -> Graph | None:
    """Return the graph of a quantised ONNX file; None for any other bytes."""
    if b"DequantizeLinear" not in data:
        return None
    try:
        return parse_graph(data)
    except (ValueError, IndexError, TypeError):
        return None


def _convolutions(graph: Graph) -> list[tuple[int, GraphNode, GraphTensor, GraphNode]]:
    """Return (index, convolution, its weights, the node that dequantises those) for ungrouped constant weights."""
    maker = {name: node for node in graph.nodes for name in node.outputs}
    found = []
    for place, node in enumerate(graph.nodes):
        if node.op_type != "Conv" or node.ints.get("group", [1]) != [1] or len(node.inputs) < 2 or not node.outputs:
            continue
        dequantise = maker.get(node.inputs[1], GraphNode())
        if dequantise.op_type == "DequantizeLinear" and len(dequantise.inputs) == 3:
            weights = graph.tensors.get(dequantise.inputs[0])
            if weights is not None and dequantise.inputs[2] in graph.tensors:
                found.append((place, node, weights, dequantise))
    return found


def _block_weights(weights: np.ndarray, pad: int) -> tuple[np.ndarray, int]:
    """Convert weights (out, c, k, k) to blocks of pixels.

    Returns:
        The weights (out, 4c, t, t), and the padding in blocks before the first one.
    """
    out, channels, kernel, _ = weights.shape
    first, last = -pad // 2, (kernel - 1 - pad) // 2
    taps = last - first + 1
    found = np.zeros((out, 2, 2, channels, taps, taps), np.int8)
    for row in range(kernel):
        for column in range(kernel):
            (y, inner_y), (x, inner_x) = divmod(row - pad, 2), divmod(column - pad, 2)
            found[:, inner_y, inner_x, :, y - first, x - first] = weights[:, :, row, column]
    return found.reshape(out, 4 * channels, taps, taps), -first
