"""Rewrite quantised files: one type of activations for ONNX Runtime, signed ones for TensorRT."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from deploy.errors import DeployError
from deploy.files import sha256
from deploy.onnx.file import SOURCE, properties, read, write

if TYPE_CHECKING:
    import onnx

_RANGE = {"uint8": (0, 255), "int8": (-128, 127)}


def shift_activations(graph: onnx.GraphProto) -> None:
    """Make int8 activations with zero-point 0 uint8 with zero-point 128: the same values, 128 higher.

    ONNX Runtime fuses an operator only where its inputs and outputs have one type. The output of a ReLU is uint8, so an
    int8 activation beside it keeps a convolution or a sum in fp32 (15 of 52 and all 10 in MobileNetV2).
    """
    from onnx import numpy_helper

    constants = {tensor.name: tensor for tensor in graph.initializer}
    shifted: set[str] = set()
    for node in graph.node:
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear") or node.input[0] in constants:
            continue
        zero = numpy_helper.to_array(constants[node.input[2]])
        if zero.dtype != np.int8:
            continue
        name = f"{node.input[2]}.shifted"
        if name not in shifted:
            shifted.add(name)
            graph.initializer.append(numpy_helper.from_array((zero.astype(np.int16) + 128).astype(np.uint8), name))
        node.input[2] = name
    _drop_unused(graph)


def quantise_biases(graph: onnx.GraphProto) -> None:
    """Store the float biases of quantised matrix products as int32, in steps of the activation's times the weight's.

    ONNX Runtime does this itself for convolutions, but leaves a Gemm with a float bias in fp32, weights and all.
    """
    from onnx import helper, numpy_helper

    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    maker = {name: node for node in graph.node for name in node.output}

    def scale_of(name: str) -> np.ndarray | None:
        node = maker.get(name)
        while node is not None and node.op_type in ("Reshape", "Flatten", "Squeeze"):
            node = maker.get(node.input[0])
        return constants.get(node.input[1]) if node is not None and node.op_type == "DequantizeLinear" else None

    for index, node in reversed(list(enumerate(graph.node))):
        if node.op_type != "Gemm" or len(node.input) < 3 or node.input[2] not in constants:
            continue
        bias, scales = constants[node.input[2]], [scale_of(name) for name in node.input[:2]]
        plain = all(a.f == 1 for a in node.attribute if a.name in ("alpha", "beta"))
        if scales[0] is None or scales[1] is None or bias.ndim != 1 or not plain:
            continue
        step = np.broadcast_to(scales[0] * scales[1], bias.shape).astype(np.float32)
        whole = np.rint(bias / step.astype(np.float64))
        if np.abs(whole).max(initial=0) >= 2**31:
            continue
        stem, given = node.input[2], (whole.astype(np.int32), step, np.zeros(bias.shape, np.int32))
        names = [f"{node.name}.{stem}.{part}" for part in ("int32", "step", "zero")]
        graph.initializer.extend(numpy_helper.from_array(a, n) for a, n in zip(given, names, strict=True))
        node.input[2] = f"{node.name}.{stem}.restored"
        graph.node.insert(
            index, helper.make_node("DequantizeLinear", names, [node.input[2]], name=f"{node.input[2]}.node", axis=0)
        )
    _drop_unused(graph)


def store_raw(graph: onnx.GraphProto) -> None:
    """Store the zero-points of weights as raw bytes, which ``amx_rewrite`` can change in place."""
    from onnx import numpy_helper

    constants = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "DequantizeLinear" and len(node.input) == 3 and node.input[0] in constants:
            zero = constants[node.input[2]]
            zero.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(zero), zero.name))


def _restore_biases(graph: onnx.GraphProto) -> None:
    """Undo ``quantise_biases``, for TensorRT takes biases in float."""
    from onnx import numpy_helper

    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    for node in list(graph.node):
        if node.op_type == "DequantizeLinear" and (whole := constants.get(node.input[0])) is not None:
            if whole.dtype != np.int32:
                continue
            bias = (whole * constants[node.input[1]].astype(np.float64)).astype(np.float32)
            graph.initializer.append(numpy_helper.from_array(bias, node.output[0]))
            graph.node.remove(node)
    _drop_unused(graph)


def signed_from_unsigned(src: Path, dst: Path) -> Path:
    """Write the variant of the int8 file ``src`` in which every quantised tensor is int8 with zero-point 0.

    TensorRT knows no other kind; it silently reads uint8 as int8. A scale s with zero-point z over [lo, hi] becomes
    s' = s * max(z - lo, hi - z) / 127, which covers the same range in coarser steps; uint8 with zero-point 128 becomes
    int8 with the same scale, 128 lower.

    Raises:
        DeployError: ``src`` is missing, is not ONNX, is not quantised, or has scales that are not constants.
    """
    from onnx import numpy_helper

    src = Path(src)
    model = read(src)
    graph = model.graph
    _restore_biases(graph)
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    signed: dict[tuple[str, str], tuple[str, str]] = {}
    quantisers = [node for node in graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    if not quantisers:
        raise DeployError(f"{src} is not quantised; make the int8 file first.")
    for node in quantisers:
        scale, zero, kind = _parameters(node, constants, src)
        if kind == "int8" and not zero.any():
            continue
        if node.input[0] in constants:
            raise DeployError(f"{src} holds {kind} weights in {node.name}; quantise the weights symmetrically.")
        low, high = _RANGE[kind]
        key = (node.input[1], node.input[2])
        if key not in signed:
            signed[key] = (f"{key[0]}.signed", f"{key[1]}.signed")
            span = np.maximum(zero.astype(np.int32) - low, high - zero.astype(np.int32))
            if kind == "uint8" and (zero == 128).all():
                span = np.full_like(span, 127)
            new = (np.asarray(scale * span / 127, dtype=scale.dtype), np.zeros_like(zero, dtype=np.int8))
            for name, array in zip(signed[key], new, strict=True):
                graph.initializer.append(numpy_helper.from_array(array, name))
        node.input[1], node.input[2] = signed[key]
    _drop_unused(graph)
    return write(model, Path(dst), {**properties(model), SOURCE: sha256(src)})


def _parameters(
    node: onnx.NodeProto, constants: dict[str, np.ndarray], path: Path
) -> tuple[np.ndarray, np.ndarray, str]:
    """Return (scale, zero-point, element type) of a QuantizeLinear or DequantizeLinear node; they must be constants."""
    where = node.name or node.output[0]
    if len(node.input) < 3 or not all(name in constants for name in node.input[1:3]):
        raise DeployError(
            f"{path.name} computes the scale or zero-point of {where}, or leaves it out; "
            "quantise with constant scales and zero-points."
        )
    zero = constants[node.input[2]]
    if zero.dtype.name not in _RANGE:
        raise DeployError(f"{path.name} quantises {where} to {zero.dtype.name}; only int8 and uint8 are known here.")
    return constants[node.input[1]], zero, zero.dtype.name


def _drop_unused(graph: onnx.GraphProto) -> None:
    """Remove constants that nothing reads any more, and the stated types of tensors whose type has changed."""
    import onnx

    eight = (onnx.TensorProto.INT8, onnx.TensorProto.UINT8)
    values = [value for value in graph.value_info if value.type.tensor_type.elem_type not in eight]
    del graph.value_info[:]
    graph.value_info.extend(values)
    used = {name for node in graph.node for name in node.input} | {value.name for value in graph.output}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)
