"""Bring files of older operator sets and formats into the form that the lower precisions are written in."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from deploy.engines.base import first_line
from deploy.errors import DeployError
from deploy.onnx.file import quiet

if TYPE_CHECKING:
    import onnx

_LEAST_FORMAT = 4  # the first in which a constant need not be an input
_PLAIN_RESIZE = 10  # up to this operator set an enlargement has only one way to place its pixels
_PER_AXIS = 13  # from here on a hardmax looks along one axis, before along all that follow


def without_defaults(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return ``model`` without the constants among its inputs, where old exporters list them as defaults of an input.

    A converter would take them for what the user feeds.
    """
    constants = {tensor.name for tensor in model.graph.initializer}
    kept = [value for value in model.graph.input if value.name not in constants]
    if len(kept) == len(model.graph.input):
        return model
    found = type(model)()
    found.CopyFrom(model)
    del found.graph.input[:]
    found.graph.input.extend(kept)
    found.ir_version = max(found.ir_version, _LEAST_FORMAT)
    return found


def raised(model: onnx.ModelProto, src: Path, opset: int) -> onnx.ModelProto:
    """Return ``model``, read from ``src``, in an operator set of at least ``opset``; it computes the same.

    Raises:
        DeployError: it cannot be converted.
    """
    from onnx import helper, version_converter

    before = next((one.version for one in model.opset_import if one.domain in ("", "ai.onnx")), opset)
    if before >= opset:
        return model
    if before < _PER_AXIS and any(node.op_type == "Hardmax" for node in model.graph.node):
        raise _refused(src, before, opset, "its Hardmax means something else there")
    try:
        with quiet():
            found = version_converter.convert_version(model, opset)
    except Exception as error:  # the converter raises whatever its adapters raise
        raise _refused(src, before, opset, first_line(error)) from error
    found.metadata_props.extend(one for one in model.metadata_props if not found.metadata_props)
    for node in found.graph.node if before <= _PLAIN_RESIZE else ():
        if node.op_type == "Resize":
            # The converter leaves the later default, which moves every pixel by half a step.
            ways = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
            others = [one for one in node.attribute if one.name not in ways]
            del node.attribute[:]
            node.attribute.extend([*others, *(helper.make_attribute(*way) for way in ways.items())])
    return found


def _refused(src: Path, before: int, opset: int, why: str) -> DeployError:
    return DeployError(
        f"{src} is of opset {before}, which it cannot be quantised in, and cannot be converted to {opset} ({why}); "
        f"export it again with opset {opset} or more."
    )
