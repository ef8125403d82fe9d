"""Tell the precision of an ONNX file from its constants and operators, whatever its name or its metadata say."""

from __future__ import annotations

from pathlib import Path

from deploy.errors import DeployError
from deploy.onnx.wire import read_onnx
from deploy.onnx.wire_graph import every_node, parse_graph

LOW = {10: "fp16", 16: "bf16"}  # element types of onnx.TensorProto
_FLOATS = {1: "fp32", **LOW}
QUANTISED = ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "ConvInteger", "MatMulInteger")


def precision_in(path: Path) -> str | None:
    """Return ``int8`` for a file with quantised operators, else the precision of its constants.

    A file with some fp16 or bf16 constants is of that precision, for some layers may stay in fp32. Constants are
    initialisers and what Constant nodes hold; a file without any is of the precision of what it reads.

    Returns:
        ``int8``, ``fp16``, ``bf16``, ``fp32``, or None where the file has nothing of the kind or cannot be read.
    """
    try:
        return precision_in_bytes(read_onnx(path))
    except DeployError:
        return None


def precision_in_bytes(data: bytes) -> str | None:
    """Return the precision of the ONNX file ``data``; see ``precision_in``."""
    try:
        graph, nodes = parse_graph(data), list(every_node(data))
    except (ValueError, IndexError, TypeError):
        return None
    if any(node.op_type in QUANTISED or node.op_type.startswith("QLinear") for node in nodes):
        return "int8"
    held = {tensor.dtype for tensor in graph.tensors.values()} | {node.dtype for node in nodes}
    kinds = {_FLOATS.get(one) for one in (held & {*_FLOATS} or {*graph.input_types.values()})}
    return next((kind for kind in (*LOW.values(), "fp32") if kind in kinds), None)
