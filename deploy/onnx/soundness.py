"""Refuse an ONNX graph of which OpenVINO would end the process, or compute something else without a word."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from deploy.errors import DeployError
from deploy.onnx.opsets import READS
from deploy.onnx.protobuf import fields, text
from deploy.onnx.wire_graph import GraphNode, every_node

_LEAST: Mapping[str, int] = MappingProxyType(
    {
        **dict.fromkeys(("Clip", "GlobalAveragePool", "GlobalMaxPool", "LogSoftmax", "Max", "Mean", "Min"), 1),
        **dict.fromkeys(("Pad", "Sum"), 1),
        **dict.fromkeys(("Conv", "ConvTranspose", "ConvInteger", "MatMul", "MatMulInteger", "Gemm"), 2),
        **dict.fromkeys(("Add", "Sub", "Mul", "Div", "Pow", "PRelu", "Gather", "Expand", "Tile"), 2),
        **dict.fromkeys(("QuantizeLinear", "DequantizeLinear", "Equal", "Greater", "Less", "OneHot"), 2),
        **dict.fromkeys(("InstanceNormalization", "Where"), 3),
        **dict.fromkeys(("BatchNormalization",), 5),
        **dict.fromkeys(("QLinearConv", "QLinearMatMul"), 8),
    }
)
"""How many inputs an operator needs, in every operator set."""
_WHAT = {"Conv": "weights", "ConvTranspose": "weights", "BatchNormalization": "statistics"}


def check_inputs(path: Path, data: bytes) -> None:
    """Refuse the ONNX file ``data``, read from ``path``, where a node of it, wherever it stands, is none for OpenVINO.

    Raises:
        DeployError: an operator has fewer inputs than it needs, or is one that OpenVINO 2026.4 computes otherwise, or
            the file is of a later operator set than was tried.
    """
    try:
        nodes, opset = list(every_node(data)), _opset_of(data)
    except (ValueError, IndexError, TypeError) as error:
        raise DeployError(f"{path} is not a valid ONNX file; export the model again.") from error
    # It looks at the names of operators alone: what a later set means by one it takes for what it knows.
    if opset > (most := READS["openvino"][1]):
        raise DeployError(
            f"{path} is of operator set {opset}, and OpenVINO takes its operators for those of {most} at most; export "
            f"the file with an opset of at most {most}."
        )
    for node in nodes:
        least = _LEAST.get(node.op_type, 0)
        if node.op_type == "Pad" and not {"pads", "paddings"} & set(node.ints):
            least = 2  # from opset 11 on an input says how wide
        if len(node.inputs) < least or "" in node.inputs[:least]:
            what = _WHAT.get(node.op_type, "an input that it needs")
            raise DeployError(
                f"{path} has a {node.op_type} without {what} ({', '.join(node.outputs)[:80]}); export the model again."
            )
        if (why := _otherwise(node)) is not None:
            raise DeployError(
                f"{path} has {why} ({', '.join(node.outputs)[:80]}), which OpenVINO computes differently; run it with "
                "ONNX Runtime."
            )


def _opset_of(data: bytes) -> int:
    """Return the operator set of an ONNX file, 0 where it names none."""
    for number, value in fields(memoryview(data)):
        if number == 8:
            entry = dict(fields(value))
            if text(entry.get(1, memoryview(b""))) in ("", "ai.onnx"):
                return int(entry.get(2, 0))
    return 0


def _otherwise(node: GraphNode) -> str | None:
    """Say what of a node OpenVINO computes otherwise; None where all is well."""
    if node.op_type == "Resize" and any(node.ints.get("antialias", ())):
        return "a Resize with antialias"
    if node.op_type == "IsInf" and node.ints.get("detect_positive", [1]) != [0]:
        return "an IsInf of plus infinity"
    if node.op_type == "AveragePool" and all(
        any(node.ints.get(name, ())) for name in ("ceil_mode", "count_include_pad", "pads")
    ):
        return "an AveragePool that counts its padding and rounds its size up"
    return None
