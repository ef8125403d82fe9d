"""Export a PyTorch module to one fp32 ONNX file."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from deploy.engines.base import first_line
from deploy.engines.signature import Example, batched, call, named_inputs, named_outputs
from deploy.errors import DeployError
from deploy.exporting.modes import evaluating, out_of_place
from deploy.exporting.optimising import optimise
from deploy.onnx.file import PRECISION, missing_package, quiet, write
from deploy.onnx.opsets import opset_for

if TYPE_CHECKING:
    import onnx
    from torch import Tensor, nn

_NO_METADATA: Mapping[str, str] = MappingProxyType({})
_FIXED = re.compile(r"inferred a static shape of (\d+) for dimension \S*?(\d+)?\]?\.shape\[(\d+)\]")
_PLACE = re.compile(r'File "(?:.*/)?([^"/]+)", line (\d+), in (\w+)\n\s*(.+)')


def export_onnx(
    model: nn.Module,
    example: Example,
    path: Path,
    *,
    opset: int | None = None,
    runtimes: Sequence[str] = (),
    dynamic_size: bool = False,
    input_name: str | Sequence[str] | None = None,
    output_name: str | Sequence[str] | None = None,
    metadata: Mapping[str, str] = _NO_METADATA,
) -> Path:
    """Write ``model`` in evaluation mode as an fp32 ONNX file with a free batch dimension.

    Args:
        model: a module from one tensor or several to a tensor, or a tuple or a dict of them; its training flags are
            unchanged afterwards.
        example: (N, ...) on the model's device, or several by place or by the names of ``forward``'s arguments; the
            shape without N is what the file accepts. An input whose first dimension is not the N of the first one,
            such as a scalar, keeps its whole shape.
        path: where the file goes; it appears whole or not at all.
        opset: the ONNX operator set; by default the highest that all ``runtimes`` read, or 18 where none is named.
        runtimes: which runtimes will run the file, keys of ``deploy.onnx.opsets.READS``.
        dynamic_size: whether height and width, the last two dimensions of ``example``, are free too; a network whose
            code or decoding is made for one size is refused.
        input_name: the name of the file's input, or of each; by default ``image`` for one, else as ``example`` or
            ``forward`` names them.
        output_name: the name of the file's output, or of each; by default ``logits`` for one tensor, a dict's keys, or
            ``output_0`` and so on.
        metadata: written to the file's properties, beside Niwaki's own.

    Raises:
        DeployError: torch cannot export the model, a runtime does not read the opset, or the size cannot be free.
        MissingDependency: torch or its exporter is not installed.
    """
    try:
        import onnxscript  # noqa: F401  (torch.onnx imports it late and fails with a worse message)
        import torch  # noqa: F401
    except ImportError as error:
        raise missing_package(str(error.name), "Exporting to ONNX", "compress") from error

    version = opset_for(runtimes, opset)
    inputs = named_inputs(model, example, input_name)
    frees = _free_dimensions(model, inputs, dynamic_size)
    # torch.export fixes a batch of one: two rows keep the dimension free.
    rows = {name: _two_rows(tensor) if frees[name] else tensor.detach() for name, tensor in inputs.items()}
    result = _tried(model, example, list(rows.values()))
    outputs = list(named_outputs(model, result, output_name))
    simple = len(inputs) == 1 and not isinstance(example, Mapping) and not isinstance(result, Mapping)
    names = {"opset_version": version, "input_names": list(inputs), "output_names": outputs}
    proto = _run_exporter(model if simple else _flat(model, example), rows, frees, names, simple=simple)
    _check_exported(model, proto, version, frees)
    _strip_source_locations(proto)
    return write(proto, Path(path), {**metadata, PRECISION: "fp32"})


def _free_dimensions(model: nn.Module, inputs: Mapping[str, Tensor], dynamic_size: bool) -> dict[str, dict[int, str]]:
    """Return, by input, the names of its free dimensions; raise DeployError where the size cannot be free."""
    frees: dict[str, dict[int, str]] = {name: {0: "batch"} if has else {} for name, has in batched(inputs).items()}
    if dynamic_size:
        (first, *more) = inputs
        if more:
            raise DeployError(f"{type(model).__name__} has {len(inputs)} inputs, of which none can have a free size.")
        check_free_size(model, inputs[first])
        axes = inputs[first].ndim
        frees[first] |= {axes - 2: "height", axes - 1: "width"}
    return frees


def _tried(model: nn.Module, example: Example, rows: Sequence[Tensor]) -> Any:
    """Return what the module gives; raise DeployError where it fails, before the exporter does with a worse message."""
    import torch

    with evaluating(model), out_of_place(model), torch.no_grad():
        try:
            return call(model, example, rows)
        except Exception as error:  # whatever the model's own code raises
            raise DeployError(f"{type(model).__name__} fails on its example: {first_line(error)}.") from error


def _two_rows(tensor: Tensor) -> Tensor:
    import torch

    return tensor.detach() if len(tensor) > 1 else torch.cat([tensor.detach()] * 2)


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
        with evaluating(model), torch.no_grad():
            model(example.new_zeros(*rest, height + 32, width + 64))
    except Exception as error:  # whatever the model's own code raises
        why = f"at {height + 32} x {width + 64} it fails ({first_line(error)})"
        raise DeployError(message.format(why)) from error


def _flat(model: nn.Module, example: Example) -> nn.Module:
    """Return a module from tensors by place to a tuple of tensors that computes what ``model`` computes."""
    from torch import nn

    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
            return tuple(named_outputs(model, call(model, example, tensors)).values())

    return Flat().train(model.training)


def _run_exporter(
    model: nn.Module,
    rows: Mapping[str, Tensor],
    frees: Mapping[str, Mapping[int, str]],
    names: Mapping[str, Any],
    *,
    simple: bool,
) -> onnx.ModelProto:
    """Export ``model``; ``simple`` where it is the user's own, else the one from ``_flat``."""
    import torch

    from deploy.exporting.nms import translations

    shapes = tuple(dict(free) for free in frees.values())
    own = model if simple else model.model
    with evaluating(model), out_of_place(model), quiet():
        try:
            program: Any = torch.onnx.export(
                model,
                tuple(rows.values()),
                dynamo=True,
                dynamic_shapes=shapes if simple else (shapes,),
                custom_translation_table=translations(),
                verbose=False,
                optimize=False,
                **names,
            )
            if program is not None:
                _check_kept(type(own).__name__, program)
                optimise(program)
        except DeployError:
            raise
        except Exception as error:  # the exporter raises whatever the model's own code raises
            raise DeployError(
                f"torch.onnx cannot export {type(own).__name__}: {_cause(error, list(rows), frees)}"
            ) from error
    if program is None:
        raise DeployError(f"torch.onnx returned nothing for {type(own).__name__}; update torch.")
    proto: onnx.ModelProto = program.model_proto
    return proto


def _check_kept(model: str, program: Any) -> None:
    """Refuse what the exporter leaves out without a word."""
    for node in program.exported_program.graph.nodes:
        if str(node.target).startswith(("aten.avg_pool2d", "aten.avg_pool3d")):
            divisor = node.kwargs.get("divisor_override", node.args[6] if len(node.args) > 6 else None)
            if divisor is not None:
                raise DeployError(
                    f"{model} averages with divisor_override={divisor}, which torch.onnx leaves out; "
                    "leave it out of the pooling and multiply the result."
                )


def _cause(error: BaseException, names: Sequence[str], frees: Mapping[str, Mapping[int, str]]) -> str:
    """Say what was at fault, by the first error of the chain: the exporter's own ones hide it behind advice."""
    root = error
    while root.__cause__ is not None:
        root = root.__cause__
    if (fixed := _FIXED.search(str(root))) is not None:
        size, place, axis = int(fixed[1]), int(fixed[2] or 0), int(fixed[3])
        name = names[min(place, len(names) - 1)]
        what = frees[name].get(axis, f"dimension {axis}")
        way_out = "take sizes from the tensor (view(len(x), -1))"
        way_out += "" if what == "batch" else ", or export it without dynamic_size"
        return f"its code fixes the {what} of {name!r} to {size}, as view({size}, -1) does; {way_out}."
    found = _PLACE.findall(str(root))
    where = f" in {found[-1][2]}, {found[-1][0]} line {found[-1][1]}: {found[-1][3].strip()[:120]}" if found else ""
    way_out = "keep data-dependent Python control flow out of its forward."
    if any(len(free) > 1 for free in frees.values()):
        way_out = "its code may fix the size: export it without dynamic_size."
    return f"{first_line(root)}{where}; {way_out}"  # type: ignore[arg-type]


def _check_exported(
    model: nn.Module, proto: onnx.ModelProto, opset: int, frees: Mapping[str, Mapping[int, str]]
) -> None:
    """Refuse another operator set or a fixed dimension: the exporter falls back to either without a word."""
    (written,) = (one.version for one in proto.opset_import if one.domain in ("", "ai.onnx"))
    if written != opset:
        raise DeployError(
            f"torch.onnx writes {type(model).__name__} in opset {written} instead of {opset}; ask for {written}."
        )
    shapes = {value.name: value.type.tensor_type.shape.dim for value in proto.graph.input}
    if unread := [name for name in frees if name not in shapes]:
        raise DeployError(f"{type(model).__name__} does not read its input {unread[0]!r}; leave it out of the example.")
    fixed = [word for name, free in frees.items() for axis, word in free.items() if not shapes[name][axis].dim_param]
    if fixed:
        raise DeployError(
            f"{type(model).__name__} fixes its {' and '.join(fixed)}: its code takes one size; take sizes from the "
            "tensor, or export it without dynamic_size."
        )


def _strip_source_locations(proto: onnx.ModelProto) -> None:
    """Remove the stack traces that torch records for each node: they reveal the folders of whoever exported it."""
    for graph in (proto.graph, *proto.functions):
        del graph.metadata_props[:]
        for part in (*graph.node, *graph.value_info):
            del part.metadata_props[:]
    for part in (*proto.graph.initializer, *proto.graph.input, *proto.graph.output):
        del part.metadata_props[:]
