"""Export a PyTorch module to one fp32 ONNX file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from deploy.engines.base import first_line
from deploy.errors import DeployError
from deploy.exporting.modes import evaluating, out_of_place
from deploy.exporting.optimising import optimise
from deploy.onnx.file import PRECISION, missing_package, quiet, write
from deploy.onnx.opsets import opset_for

if TYPE_CHECKING:
    import onnx
    from torch import Tensor, nn

_NO_METADATA: Mapping[str, str] = MappingProxyType({})


def export_onnx(
    model: nn.Module,
    example: Tensor,
    path: Path,
    *,
    opset: int | None = None,
    runtimes: Sequence[str] = (),
    dynamic_size: bool = False,
    input_name: str = "image",
    output_name: str | Sequence[str] = "logits",
    metadata: Mapping[str, str] = _NO_METADATA,
) -> Path:
    """Write ``model`` in evaluation mode as an fp32 ONNX file with a free batch dimension.

    Args:
        model: a module from (N, ...) to (N, ...); its training flags are unchanged afterwards.
        example: (N, ...) on the model's device; its shape without N is what the file accepts.
        path: where the file goes; it appears whole or not at all.
        opset: the ONNX operator set; by default the highest that all ``runtimes`` read, or 18 where none is named.
        runtimes: which runtimes will run the file, keys of ``deploy.onnx.opsets.READS``.
        dynamic_size: whether height and width, the last two dimensions of ``example``, are free too; a network whose
            code or decoding is made for one size is refused.
        input_name: the name of the file's input.
        output_name: the name of the file's output, or of each output where the model returns a tuple.
        metadata: written to the file's properties, beside Niwaki's own.

    Raises:
        DeployError: torch cannot export the model, a runtime does not read the opset, or the size cannot be free.
        MissingDependency: torch or its exporter is not installed.
    """
    try:
        import onnxscript  # noqa: F401  (torch.onnx imports it late and fails with a worse message)
        import torch
    except ImportError as error:
        raise missing_package(str(error.name), "Exporting to ONNX", "compress") from error

    version = opset_for(runtimes, opset)
    free = {0: "batch"}
    if dynamic_size:
        check_free_size(model, example)
        free |= {example.ndim - 2: "height", example.ndim - 1: "width"}
    # torch.export fixes a batch of one: two rows keep the dimension free.
    rows = example.detach() if example.shape[0] > 1 else torch.cat([example.detach()] * 2)
    outputs = [output_name] if isinstance(output_name, str) else list(output_name)
    names = {"opset_version": version, "input_names": [input_name], "output_names": outputs}
    proto = _run_exporter(model, rows, free, names)
    _check_exported(model, proto, version, free)
    _strip_source_locations(proto)
    return write(proto, Path(path), {**metadata, PRECISION: "fp32"})


def check_free_size(model: nn.Module, example: Tensor) -> None:
    """Refuse a free height and width where the module states that there is one size, or fails at another.

    Only a trial can tell: torch exports a size that the code fixes as a free one, and the file then fails when it runs.

    Args:
        model: the module to be exported.
        example: (N, C, H, W) on its device.

    Raises:
        DeployError: the size cannot be free.
    """
    import torch

    message = f"{type(model).__name__} cannot have a free size: {{}}; export it without dynamic_size."
    if (why := getattr(model, "one_size", None)) is not None:
        raise DeployError(message.format(why))
    if example.ndim < 4:
        raise DeployError(message.format(f"its input {list(example.shape)} has no height and width"))
    *rest, height, width = example[:1].shape
    try:
        with evaluating(model), torch.inference_mode():
            model(example.new_zeros(*rest, height + 32, width + 64))
    except Exception as error:  # whatever the model's own code raises
        why = f"at {height + 32} x {width + 64} it fails ({first_line(error)})"
        raise DeployError(message.format(why)) from error


def _run_exporter(model: nn.Module, rows: Tensor, free: Mapping[int, str], names: Mapping[str, Any]) -> onnx.ModelProto:
    import torch

    from deploy.exporting.nms import translations

    with evaluating(model), out_of_place(model), quiet():
        try:
            program: Any = torch.onnx.export(
                model,
                (rows,),
                dynamo=True,
                dynamic_shapes=(dict(free),),
                custom_translation_table=translations(),
                verbose=False,
                optimize=False,
                **names,
            )
            if program is not None:
                optimise(program)
        except Exception as error:  # the exporter raises whatever the model's own code raises
            way_out = "keep data-dependent Python control flow out of its forward."
            if len(free) > 1:
                way_out = "its code may fix the size: export it without dynamic_size."
            raise DeployError(
                f"torch.onnx cannot export {type(model).__name__} ({first_line(error)}); {way_out}"
            ) from error
    if program is None:
        raise DeployError(f"torch.onnx returned nothing for {type(model).__name__}; update torch.")
    proto: onnx.ModelProto = program.model_proto
    return proto


def _check_exported(model: nn.Module, proto: onnx.ModelProto, opset: int, free: Mapping[int, str]) -> None:
    """Refuse another operator set or a fixed dimension: the exporter falls back to either without a word."""
    (written,) = (one.version for one in proto.opset_import if one.domain in ("", "ai.onnx"))
    if written != opset:
        raise DeployError(
            f"torch.onnx writes {type(model).__name__} in opset {written} instead of {opset}; ask for {written}."
        )
    shape = proto.graph.input[0].type.tensor_type.shape.dim
    fixed = [name for axis, name in free.items() if not shape[axis].dim_param]
    if fixed:
        raise DeployError(
            f"{type(model).__name__} fixes its {' and '.join(fixed)}: its code takes one size; export it without "
            "dynamic_size."
        )


def _strip_source_locations(proto: onnx.ModelProto) -> None:
    """Remove the stack traces that torch records for each node: they reveal the folders of whoever exported it."""
    for graph in (proto.graph, *proto.functions):
        del graph.metadata_props[:]
        for part in (*graph.node, *graph.value_info):
            del part.metadata_props[:]
    for part in (*proto.graph.initializer, *proto.graph.input, *proto.graph.output):
        del part.metadata_props[:]
