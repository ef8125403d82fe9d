"""From a PyTorch module to one ONNX file, and the proof that both compute the same."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np

from deploy.engines.base import Engine, first_line
from deploy.errors import DeployError
from deploy.onnxfile import PRECISION, missing, quiet, write

if TYPE_CHECKING:
    import onnx
    from torch import Tensor, nn

_NONE: Mapping[str, str] = MappingProxyType({})


def export_onnx(
    model: nn.Module,
    example: Tensor,
    path: Path,
    *,
    opset: int = 18,
    input_name: str = "image",
    output_name: str | Sequence[str] = "logits",
    metadata: Mapping[str, str] = _NONE,
) -> Path:
    """Write ``model`` in evaluation mode as an fp32 ONNX file with a free batch dimension.

    Args:
        model: a module from (N, ...) to (N, ...); its training flags are as before afterwards.
        example: (N, ...) on the model's device; its shape without N is what the file accepts.
        path: where the file goes; it appears whole or not at all.
        opset: the ONNX operator set.
        input_name: the name of the file's input.
        output_name: the name of the file's output, or of each where the model gives a tuple.
        metadata: kept in the file's properties, next to Niwaki's own.

    Raises:
        DeployError: torch cannot export the model.
        MissingDependency: torch or its exporter is not installed.
    """
    try:
        import onnxscript  # noqa: F401  (torch.onnx imports it late and fails with a worse message)
        import torch
    except ImportError as error:
        raise missing(str(error.name), "Exporting to ONNX", "compress") from error
    from deploy.nms import translations

    # torch.export bakes in a batch of one: two rows keep the dimension free.
    rows = example.detach() if example.shape[0] > 1 else torch.cat([example.detach()] * 2)
    with _evaluating(model), _out_of_place(model), quiet():
        try:
            program = torch.onnx.export(
                model,
                (rows,),
                dynamo=True,
                opset_version=opset,
                input_names=[input_name],
                output_names=[output_name] if isinstance(output_name, str) else list(output_name),
                dynamic_shapes=({0: "batch"},),
                custom_translation_table=translations(),
                verbose=False,
            )
        except Exception as error:  # the exporter raises whatever the model's own code raises
            raise DeployError(
                f"torch.onnx cannot export {type(model).__name__} ({first_line(error)}); "
                "keep data-dependent Python control flow out of its forward."
            ) from error
    if program is None:
        raise DeployError(f"torch.onnx returned nothing for {type(model).__name__}; update torch.")
    proto = program.model_proto
    _strip_source_locations(proto)
    return write(proto, Path(path), {**metadata, PRECISION: "fp32"})


def parity(
    model: nn.Module, engine: Engine, example: Tensor, batches: Sequence[int] = (1, 2, 5), seed: int = 0
) -> list[dict[str, float]]:
    """Compare ``engine`` with ``model`` on rows of ``example`` with a little seeded noise.

    Returns:
        For each batch size ``batch``, ``max_relative_error`` (largest difference over the largest magnitude
        of the model's output) and ``snr_db`` (signal to noise in decibels, at most 200); the worst of all outputs
        where there are several.

    Raises:
        DeployError: the shapes differ, the model's output is zero everywhere or not finite.
    """
    import torch

    generator = torch.Generator().manual_seed(seed)
    source = example.detach().cpu()
    parameter = next(model.parameters(), None)
    device = example.device if parameter is None else parameter.device
    (name,) = engine.inputs
    found: list[dict[str, float]] = []
    with _evaluating(model), torch.inference_mode():
        for batch in batches:
            rows = source[torch.randint(len(source), (batch,), generator=generator)]
            noise = torch.randn(rows.shape, generator=generator) * (0.1 * source.std(correction=0).item() or 1.0)
            feed = rows + noise
            given = model(feed.to(device))
            values = engine.run({name: feed.numpy()})
            rows_of = [
                _compare(reference.cpu().double().numpy(), values[output].astype(np.float64), engine.name)
                for reference, output in zip(given if isinstance(given, tuple) else (given,), values, strict=False)
            ]
            error, snr = max(r["max_relative_error"] for r in rows_of), min(r["snr_db"] for r in rows_of)
            found.append({"batch": batch, "max_relative_error": error, "snr_db": snr})
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
