"""Convert an fp32 file to fp16 or bf16, weights and arithmetic; its inputs and outputs stay float32."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from deploy.errors import DeployError
from deploy.files import sha256
from deploy.onnx.file import PRECISION, SOURCE, missing_package, properties, quiet, write
from deploy.quantization.calibration import KEPT, Calibrated, read_fp32
from deploy.quantization.converting import raised
from deploy.quantization.feeds import Feed, with_batch
from deploy.quantization.guards import guarded_nodes
from deploy.quantization.ranges import FP16_MAX, MAX_IMAGES, overflowing_nodes, tensor_ranges

if TYPE_CHECKING:
    import onnx

FLOAT, FLOAT16 = 1, 10  # of onnx.TensorProto, which is imported only where it is needed
_BF16_OPSET = 22  # the first whose convolutions and pooling accept bfloat16


def fp16_from_fp32(src: Path, dst: Path, calibration: Iterable[Any] | None = None, *, seed: int = 0) -> Path:
    """Write the fp16 variant of the fp32 file ``src`` to ``dst``; its metadata is kept.

    With ``calibration``, layers that read or write tensors which fp16 cannot hold stay in fp32: those with values above
    half its largest number, or so small that rounding leaves less than 40 dB. They are found by running the images
    through the fp32 file, and a blank and a saturated one besides; the property ``niwaki.kept_fp32`` names their nodes.
    Divisions, roots and logarithms that a small constant guards stay in fp32 in any case, up to what they guard.

    Args:
        src: an fp32 ONNX file.
        dst: where the fp16 file goes.
        calibration: as for ``int8_from_fp32``; without it everything else becomes fp16.
        seed: of the draw where there are more images than ``deploy.quantization.feeds.MAX_IMAGES``.

    Raises:
        DeployError: ``src`` is missing, is not ONNX, is not fp32 or cannot be converted, or the calibration does not
            fit it.
        MissingDependency: onnxconverter-common is not installed.
    """
    src = Path(src)
    if calibration is None:
        model = read_fp32(src, "fp16")
        _name_nodes(model)
        props = {**properties(model), PRECISION: "fp16", SOURCE: sha256(src)}
        if kept := guarded_nodes(model):
            props[KEPT] = ",".join(kept)
        return write(_convert_to_fp16(model, src, kept), Path(dst), props)
    source = Calibrated.read(src, calibration, seed, "fp16")
    _name_nodes(source.model)
    feeds = [*source.feeds[:MAX_IMAGES], *_hard(source)]
    wide = {*overflowing_nodes(source.model, tensor_ranges(source.model, feeds))}
    wide |= {*guarded_nodes(source.model)}
    kept = [node.name for node in source.model.graph.node if node.name in wide]
    half = _convert_to_fp16(source.model, src, kept)
    return source.write(half, dst, "fp16", kept)


def _hard(source: Calibrated) -> list[Feed]:
    """Return a blank feed and the darkest and the brightest that the calibration's values allow.

    Whole numbers, which may be places in a table, and inputs without a batch stay those of the first feed.
    """
    made = [dict(source.feeds[0]) for _ in range(3)]
    for name in with_batch(source.inputs):
        arrays = [feed[name] for feed in source.feeds]
        if arrays[0].dtype.kind == "f":
            values = (0.0, min(float(one.min()) for one in arrays), max(float(one.max()) for one in arrays))
            for feed, value in zip(made, values, strict=True):
                feed[name] = np.full_like(arrays[0], value)
    return made


def bf16_from_fp32(src: Path, dst: Path) -> Path:
    """Write the bf16 variant of the fp32 file ``src`` to ``dst``, for TensorRT and TensorRT-RTX on sm80 and up.

    bf16 has the range of fp32, so nothing overflows and nothing stays in fp32. ONNX Runtime cannot run it on a CPU.

    Raises:
        DeployError, MissingDependency: as ``fp16_from_fp32``.
    """
    import ml_dtypes  # a dependency of onnx
    from onnx import TensorProto, numpy_helper

    src = Path(src)
    model = raised(read_fp32(src, "bf16"), src, _BF16_OPSET)
    props = {**properties(model), PRECISION: "bf16", SOURCE: sha256(src)}
    exact = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    half = _convert_to_fp16(model, src, [])
    for tensor in half.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT16:
            # Taken from the fp32 weights, so that the range of fp16 leaves no trace.
            array = exact[tensor.name].astype(ml_dtypes.bfloat16)
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    for value in half.graph.value_info:
        if value.type.tensor_type.elem_type == TensorProto.FLOAT16:
            value.type.tensor_type.elem_type = TensorProto.BFLOAT16
    for node in half.graph.node:
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.FLOAT16:
                attribute.i = TensorProto.BFLOAT16
            if attribute.t.data_type == TensorProto.FLOAT16:
                raise DeployError(f"{src} holds a tensor in {node.name or node.op_type}; bf16 files cannot have that.")
    return write(half, Path(dst), props)


def _convert_to_fp16(model: onnx.ModelProto, src: Path, kept: Sequence[str]) -> onnx.ModelProto:
    """Convert the model to fp16, except the nodes named in ``kept`` and those that the converter never changes."""
    try:
        with quiet():
            from onnxconverter_common import float16
    except ImportError as error:
        raise missing_package("onnxconverter-common", "Making a file of half precision", "compress") from error
    _name_nodes(model)
    # The converter would treat a cast to float like any node and turn it into fp16.
    blocked = float16.DEFAULT_OP_BLOCK_LIST
    stay = {node.name for node in model.graph.node if node.op_type in blocked or _casts_to(node, FLOAT)} | set(kept)
    readers = {node.name for node in model.graph.node} - stay
    _unshare_weights(model.graph, stay)
    _write_default_values(model.graph)
    with quiet():
        try:
            half = float16.convert_float_to_float16(
                model, min_positive_val=0.0, max_finite_val=FP16_MAX, keep_io_types=True, node_block_list=sorted(stay)
            )
        except (ValueError, TypeError) as error:
            raise DeployError(f"{src} cannot be made fp16 ({error}); ship its fp32 or int8 file instead.") from error
    _remove_cast_pairs(half.graph)
    _cast_outputs(half.graph, readers)
    return half


def _remove_cast_pairs(graph: onnx.GraphProto) -> None:
    """Remove pairs of casts from fp32 to fp16 and back.

    The converter leaves them where several nodes read a tensor, and before the output where a kept node ends the
    network; a value that overflows fp16 would become infinite there.
    """
    maker = {name: node for node in graph.node for name in node.output}
    kinds = {value.name: value.type.tensor_type for value in graph.output}
    renamed: dict[str, str] = {}
    for node in list(graph.node):
        before = maker.get(node.input[0]) if _casts_to(node, FLOAT) else None
        if before is not None and _casts_to(before, FLOAT16) and node.output[0] not in kinds:
            renamed[node.output[0]] = before.input[0]
            graph.node.remove(node)
        elif _casts_to(node, FLOAT16) and node.output[0] in kinds and node.input[0] in maker:
            renamed[node.input[0]] = node.output[0]
            kinds[node.output[0]].elem_type = FLOAT
            graph.node.remove(node)
    for node in graph.node:
        for names in (node.input, node.output):
            for k, name in enumerate(names):
                end = name
                while end in renamed:
                    end = renamed[end]
                names[k] = end
    used = {name for node in graph.node for name in node.input} | set(kinds)
    for node in [n for n in graph.node if _casts_to(n, FLOAT16) and n.output[0] not in used]:
        graph.node.remove(node)
    # Runtimes infer types again when they load the file; those of removed or renamed tensors would be wrong.
    values = [value for value in graph.value_info if value.name not in kinds and value.name not in renamed]
    del graph.value_info[:]
    graph.value_info.extend(values)


def _casts_to(node: onnx.NodeProto, kind: int) -> bool:
    return node.op_type == "Cast" and any(a.name == "to" and a.i == kind for a in node.attribute)


def _cast_outputs(graph: onnx.GraphProto, readers: set[str]) -> None:
    """Insert a cast wherever one of ``readers``, nodes in fp16, reads an output of the network, which is fp32."""
    from onnx import helper

    outputs = {value.name for value in graph.output if value.type.tensor_type.elem_type == FLOAT}
    for index, maker in reversed(list(enumerate(graph.node))):
        for name in outputs & set(maker.output):
            inside = [node for node in graph.node if node.name in readers and name in node.input]
            for node in inside:
                node.input[:] = [f"{name}.fp16" if one == name else one for one in node.input]
            if inside:
                cast = helper.make_node("Cast", [name], [f"{name}.fp16"], name=f"{name}.fp16", to=FLOAT16)
                graph.node.insert(index + 1, cast)


def _unshare_weights(graph: onnx.GraphProto, kept: set[str]) -> None:
    """Copy weights that kept nodes share with others, so that they stay fp32 instead of passing through fp16."""
    weights = {tensor.name: tensor for tensor in graph.initializer}
    # The converter casts every tensor that has a value_info, even weights.
    values = [value for value in graph.value_info if value.name not in weights]
    del graph.value_info[:]
    graph.value_info.extend(values)
    shared = {name for node in graph.node if node.name not in kept for name in node.input} & set(weights)
    copied: set[str] = set()
    for node in graph.node:
        for k, name in enumerate(node.input):
            if node.name in kept and name in shared:
                node.input[k] = f"{name}.fp32"
                if name not in copied:
                    copied.add(name)
                    tensor = graph.initializer.add()
                    tensor.CopyFrom(weights[name])
                    tensor.name = f"{name}.fp32"


def _write_default_values(graph: onnx.GraphProto) -> None:
    """Write out ConstantOfShape's default value, a float32 zero: the converter changes only explicit values."""
    from onnx import helper

    for node in graph.node:
        if node.op_type == "ConstantOfShape" and not node.attribute:
            node.attribute.append(helper.make_attribute("value", helper.make_tensor("value", FLOAT, [1], [0.0])))


def _name_nodes(model: onnx.ModelProto) -> None:
    """Give each node a unique name, by which the converter knows it."""
    seen: set[str] = set()
    for k, node in enumerate(model.graph.node):
        if not node.name or node.name in seen:
            node.name = f"{node.op_type}.{k}"
        seen.add(node.name)
