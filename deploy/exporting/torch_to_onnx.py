"""From a PyTorch module to one ONNX file, and the proof that both compute the same."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from deploy.engines.base import Engine, first_line
from deploy.errors import DeployError
from deploy.onnx.file import PRECISION, missing, quiet, write
from deploy.onnx.opsets import opset_for

if TYPE_CHECKING:
    import onnx
    from torch import Tensor, nn

_NONE: Mapping[str, str] = MappingProxyType({})

INPUTS: Mapping[str, Callable[[Tensor], Tensor]] = MappingProxyType(
    {
        "real": lambda rows: rows,
        "times 1000": lambda rows: rows * 1e3,
        "times 0.001": lambda rows: rows * 1e-3,
        "constant": lambda rows: rows.new_full(rows.shape, 0.5),
        "negated": lambda rows: -rows,
    }
)
"""What ``parity`` can make of real rows; all but the first are hard on an engine that rounds."""


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
    metadata: Mapping[str, str] = _NONE,
) -> Path:
    """Write ``model`` in evaluation mode as an fp32 ONNX file with a free batch dimension.

    Args:
        model: a module from (N, ...) to (N, ...); its training flags are as before afterwards.
        example: (N, ...) on the model's device; its shape without N is what the file accepts.
        path: where the file goes; it appears whole or not at all.
        opset: the ONNX operator set; by default the highest that all ``runtimes`` read, or 18 where none is named.
        runtimes: which will run the file, keys of ``deploy.onnx.opsets.READS``.
        dynamic_size: height and width are free too, the last two dimensions of ``example``; a network whose code or
            decoding belongs to one size is refused.
        input_name: the name of the file's input.
        output_name: the name of the file's output, or of each where the model gives a tuple.
        metadata: kept in the file's properties, next to Niwaki's own.

    Raises:
        DeployError: torch cannot export the model, a runtime does not read the opset, or the size cannot be free.
        MissingDependency: torch or its exporter is not installed.
    """
    try:
        import onnxscript  # noqa: F401  (torch.onnx imports it late and fails with a worse message)
        import torch
    except ImportError as error:
        raise missing(str(error.name), "Exporting to ONNX", "compress") from error
    from deploy.exporting.nms import translations

    version = opset_for(runtimes, opset)
    free = {0: "batch"}
    if dynamic_size:
        check_free(model, example)
        free |= {example.ndim - 2: "height", example.ndim - 1: "width"}
    # torch.export bakes in a batch of one: two rows keep the dimension free.
    rows = example.detach() if example.shape[0] > 1 else torch.cat([example.detach()] * 2)
    with _evaluating(model), _out_of_place(model), quiet():
        try:
            program = torch.onnx.export(
                model,
                (rows,),
                dynamo=True,
                opset_version=version,
                input_names=[input_name],
                output_names=[output_name] if isinstance(output_name, str) else list(output_name),
                dynamic_shapes=(free,),
                custom_translation_table=translations(),
                verbose=False,
            )
        except Exception as error:  # the exporter raises whatever the model's own code raises
            way_out = "keep data-dependent Python control flow out of its forward."
            if dynamic_size:
                way_out = "its code may fix the size: export it without dynamic_size."
            raise DeployError(
                f"torch.onnx cannot export {type(model).__name__} ({first_line(error)}); {way_out}"
            ) from error
    if program is None:
        raise DeployError(f"torch.onnx returned nothing for {type(model).__name__}; update torch.")
    proto = program.model_proto
    _check_written(model, proto, version, free)
    _strip_source_locations(proto)
    return write(proto, Path(path), {**metadata, PRECISION: "fp32"})


def check_free(model: nn.Module, example: Tensor) -> None:
    """Refuse a free height and width where the module says why there is one size, or fails at another.

    It has to be tried: torch exports a size that the code fixes as free, and the file then fails when it runs.

    Args:
        model: what is to be exported.
        example: (N, C, H, W) on its device.

    Raises:
        DeployError: the size cannot be free.
    """
    import torch

    says = f"{type(model).__name__} cannot have a free size: {{}}; export it without dynamic_size."
    if (why := getattr(model, "one_size", None)) is not None:
        raise DeployError(says.format(why))
    if example.ndim < 4:
        raise DeployError(says.format(f"its input {list(example.shape)} has no height and width"))
    *rest, height, width = example[:1].shape
    try:
        with _evaluating(model), torch.inference_mode():
            model(example.new_zeros(*rest, height + 32, width + 64))
    except Exception as error:  # whatever the model's own code raises
        why = f"at {height + 32} x {width + 64} it fails ({first_line(error)})"
        raise DeployError(says.format(why)) from error


def _check_written(model: nn.Module, proto: onnx.ModelProto, opset: int, free: Mapping[int, str]) -> None:
    """The exporter falls back to another operator set, or to a fixed size, without a word."""
    (written,) = (one.version for one in proto.opset_import if one.domain in ("", "ai.onnx"))
    if written != opset:
        raise DeployError(
            f"torch.onnx writes {type(model).__name__} in opset {written} instead of {opset}; ask for {written}."
        )
    shape = proto.graph.input[0].type.tensor_type.shape.dim
    fixed = [name for place, name in free.items() if not shape[place].dim_param]
    if fixed:
        raise DeployError(
            f"{type(model).__name__} fixes its {' and '.join(fixed)}: its code takes one size; export it without "
            "dynamic_size."
        )


def parity(
    model: nn.Module,
    engine: Engine,
    example: Tensor,
    batches: Sequence[int] = (1, 2, 7),
    seed: int = 0,
    inputs: Sequence[str] = ("real",),
) -> list[dict[str, Any]]:
    """Compare ``engine`` with ``model`` on rows of ``example`` with a little seeded noise.

    Args:
        batches: how many rows at once.
        seed: of the rows and the noise.
        inputs: what is made of the rows first, keys of ``INPUTS``: as they are, or scaled to be hard on an engine.

    Returns:
        For each of the ``inputs`` and each batch size ``batch``, ``max_relative_error`` (largest difference over the
        largest magnitude of the model's output) and ``snr_db`` (signal to noise in decibels, at most 200); the worst of
        all outputs where there are several.

    Raises:
        DeployError: the shapes differ, the model's output is zero everywhere, or one of both is not finite.
    """
    import torch

    generator = torch.Generator().manual_seed(seed)
    source = example.detach().cpu()
    parameter = next(model.parameters(), None)
    device = example.device if parameter is None else parameter.device
    (name,) = engine.inputs
    found: list[dict[str, Any]] = []
    with _evaluating(model), torch.inference_mode():
        for kind, batch in itertools.product(inputs, batches):
            rows = source[torch.randint(len(source), (batch,), generator=generator)]
            noise = torch.randn(rows.shape, generator=generator) * (0.1 * source.std(correction=0).item() or 1.0)
            feed = INPUTS[kind](rows + noise)
            given = model(feed.to(device))
            values = engine.run({name: feed.numpy()})
            rows_of = [
                _compare(reference.cpu().double().numpy(), values[output].astype(np.float64), engine.name)
                for reference, output in zip(given if isinstance(given, tuple) else (given,), values, strict=False)
            ]
            error, snr = max(r["max_relative_error"] for r in rows_of), min(r["snr_db"] for r in rows_of)
            found.append({"inputs": kind, "batch": batch, "max_relative_error": error, "snr_db": snr})
    return found


def _compare(reference: np.ndarray, value: np.ndarray, name: str) -> dict[str, float]:
    if reference.shape != value.shape:
        raise DeployError(f"{name} gives {list(value.shape)} where the model gives {list(reference.shape)}.")
    peak = float(np.abs(reference).max(initial=0.0))
    if peak == 0 or not np.isfinite(peak):
        raise DeployError(
            f"The largest output of the model is {peak}, which no engine can be compared with; "
            "initialise or train its last layer first."
        )
    if not np.isfinite(value).all():
        raise DeployError(f"{name} gives NaN or infinity where the model gives numbers up to {peak:.3g}.")
    error = value - reference
    # 200 dB is beyond what float32 resolves, and keeps the figure finite when both are equal.
    noise = max(float((error**2).sum()), float((reference**2).sum()) * 1e-20)
    return {
        "max_relative_error": float(np.abs(error).max()) / peak,
        "snr_db": float(10 * np.log10(float((reference**2).sum()) / noise)),
    }


@contextlib.contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside, every module's own flag restored after: some are frozen in a training model."""
    flags = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in flags:
            module.training = training


@contextlib.contextmanager
def _out_of_place(model: nn.Module) -> Iterator[None]:
    """Activations make new tensors inside: torch decomposes those in place by a way that takes half as long again."""
    changed = [module for module in model.modules() if getattr(module, "inplace", False) is True]
    for module in changed:
        module.inplace = False  # type: ignore[assignment]
    try:
        yield
    finally:
        for module in changed:
            module.inplace = True  # type: ignore[assignment]


def _strip_source_locations(proto: onnx.ModelProto) -> None:
    """Remove the stack traces torch records per node: they tell everybody the builder's folders."""
    for graph in (proto.graph, *proto.functions):
        del graph.metadata_props[:]
        for part in (*graph.node, *graph.value_info):
            del part.metadata_props[:]
    for part in (*proto.graph.initializer, *proto.graph.input, *proto.graph.output):
        del part.metadata_props[:]
