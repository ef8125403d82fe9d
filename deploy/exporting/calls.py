"""The whole way from a network to a bundle and a record in a few calls, each with what most callers need."""

from __future__ import annotations

import inspect
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploy.bench.records import Bench
from deploy.bench.timing import benchmark
from deploy.engines import load_engine
from deploy.engines.base import Engine
from deploy.errors import DeployError
from deploy.files import write_text
from deploy.onnx.metadata import Metadata
from deploy.processing.arrays import arrays_of, batches_of, first_batch, is_array
from deploy.processing.preprocess import Preprocessing
from deploy.quantization.feeds import feeds_of, inputs_of
from deploy.validation import explain

if TYPE_CHECKING:
    from torch import nn

MAX_IMAGES = 300
_PARITY_ROWS = 16


def export(
    model: nn.Module,
    example: Any,
    path: str | Path,
    *,
    task: str = "classification",
    classes: Sequence[str] | None = None,
    preprocessing: Preprocessing | Mapping[str, Any] | None = None,
    **options: Any,
) -> Path:
    """Write ``model`` in evaluation mode as an fp32 ONNX file with a free batch dimension.

    Args:
        model: a module on images; a detector's or segmenter's file holds what ``lower`` leaves of it.
        example: images (N, C, H, W), or a loader of them, whose first batch is taken; for a network with several inputs
            a mapping of tensors by the names of ``forward``'s arguments or a tuple of them, or a loader of such.
        path: where the file goes.
        task: ``classification``, ``detection`` or ``segmentation``.
        classes: their names, which the file then states.
        preprocessing: how an image becomes the input, which the file then states.
        options: more of what ``deploy.exporting.torch_to_onnx.export_onnx`` takes: ``opset``, ``runtimes``,
            ``dynamic_size``, ``input_name``, ``output_name``, ``metadata``.

    Raises:
        DeployError: the model cannot be exported so, or ``example`` holds no images.
        MissingDependency: torch or its exporter is not installed.
    """
    from deploy.exporting.lowering import lower
    from deploy.exporting.torch_to_onnx import export_onnx

    rows = _rows(model, example, 2)
    lowered = lower(model, task, rows)
    # Of several inputs and outputs the network's own names are the file's.
    name = {} if len(_needed(model)) > 1 else {"output_name": lowered.output_name}
    named = None if classes is None else tuple(classes)
    about = Metadata(model=type(model).__name__, classes=named, preprocessing=_preprocessing(preprocessing))
    given = {**name, **options}
    given["metadata"] = {**about.properties(), **options.get("metadata", {})}
    return export_onnx(lowered.module, rows, Path(path), **given)


def quantize(
    src: str | Path,
    dst: str | Path,
    images: Any,
    *,
    precision: str = "int8",
    held_out: Any = None,
    **options: Any,
) -> Path:
    """Write the int8 or fp16 variant of the fp32 file ``src`` to ``dst``.

    Args:
        src: an fp32 ONNX file.
        dst: where the new file goes.
        images: preprocessed images such as the network will see: arrays, tensors, a list or a loader of them; the first
            300 are taken. For a file with several inputs mappings from their names to arrays or tensors, or tuples in
            their order, in a list or a loader; the first 300 rows are taken.
        precision: ``int8`` or ``fp16``.
        held_out: more of them, which the int8 file is compared with fp32 on and its ranges are not taken from.
        options: more of what ``int8_from_fp32`` takes (``seed``, ``keep_fp32``, ``min_snr_db``), or ``fp16_from_fp32``.

    Raises:
        DeployError: ``src`` is no such file, the images do not fit it, or int8 is too far from fp32.
        MissingDependency: the package that converts is not installed.
    """
    src, dst = Path(src), Path(dst)
    calibration = _calibration(src, images)
    if precision == "int8":
        from deploy.quantization.int8 import int8_from_fp32

        others = [] if held_out is None else _calibration(src, held_out)
        return int8_from_fp32(src, dst, calibration, held_out=others, **options)
    if precision == "fp16":
        from deploy.quantization.half import fp16_from_fp32

        return fp16_from_fp32(src, dst, calibration, **options)
    raise DeployError(f"The precision is {precision!r}; quantise to int8 or fp16.")


def _calibration(src: Path, images: Any) -> Sequence[Any]:
    """Return the first images, or for a file with several inputs the first rows of all of them by name."""
    from deploy.onnx.file import read

    inputs = inputs_of(read(src))
    if len(inputs) == 1:
        return arrays_of(images, MAX_IMAGES)
    return feeds_of(batches_of(images), inputs, convert=True)


def parity(model: nn.Module, engine: Engine | str | Path, example: Any, **options: Any) -> list[dict[str, Any]]:
    """Compare an engine with the module that it was made from, on rows of ``example`` with a little seeded noise.

    Args:
        model: the module.
        engine: an open engine, or the file of one.
        example: as for ``export``.
        options: ``batches``, ``seed`` and ``inputs`` of ``deploy.exporting.parity.parity``.

    Returns:
        A row for each batch size, with ``max_relative_error`` and ``snr_db``.

    Raises:
        DeployError: the shapes differ, or one of the two outputs is not finite where the other is.
    """
    from deploy.exporting import parity as compared

    rows = _rows(model, example, _PARITY_ROWS)
    if isinstance(engine, Engine):
        return compared.parity(model, engine, rows, **options)
    with load_engine(engine) as opened:
        return compared.parity(model, opened, rows, **options)


def measure(engines: Sequence[Engine], images: Any, path: str | Path | None = None, **options: Any) -> Bench:
    """Time engines against the first one, in turns, on one image; ``gate`` compares what is returned.

    Args:
        engines: open engines with distinct names and the same inputs.
        images: preprocessed images, or a loader of them; the first image is taken. For engines with several inputs
            as for ``quantize``; the first row is taken.
        path: where the record goes; None writes nothing.
        options: more of what ``deploy.benchmark`` takes: ``rounds``, ``warmup``, ``seed`` and so on.

    Raises:
        DeployError: there is no engine or no image, or an engine does not take it.
    """
    if not engines:
        raise DeployError("There are 0 engines to measure; give at least one.")
    inputs = engines[0].inputs
    if len(inputs) == 1:
        feed = {next(iter(inputs)): first_batch(images, 1)}
    else:
        feed = feeds_of(batches_of(images), inputs, convert=True)[0]
    records = benchmark(engines, feed, **options)
    found = Bench(name=engines[0].name, settings={"batch": 1, "engines": len(engines)}, records=tuple(records))
    if path is not None:
        write_text(Path(path), found.to_json())
    return found


def write_bundle(
    network: nn.Module | str | Path | Mapping[str, str | Path],
    folder: str | Path,
    images: Any = None,
    *,
    classes: Sequence[str] | None = None,
    preprocessing: Preprocessing | Mapping[str, Any] | None = None,
    precisions: Sequence[str] = ("fp32",),
    **options: Any,
) -> Path:
    """Write a bundle that ``deploy.load`` and ``niwaki predict`` run, from a module or from ONNX files.

    Args:
        network: a module, an ONNX file, or one for each precision by its name.
        folder: where the bundle goes; an older one there is replaced.
        images: preprocessed images, or a loader of them, or rows of several inputs as for ``quantize``: a module is
            exported and other precisions are calibrated on them.
        classes: their names; by default what the file states.
        preprocessing: how an image becomes the network's input; by default what the file states.
        precisions: what is made of a module or of an fp32 file; the last one is loaded when none is named.
        options: more fields of ``deploy.bundle.writing.BundleSpec``, such as ``task``, ``inputs`` of a network with
            several, ``licence``, ``metrics``.

    Raises:
        DeployError: something that the bundle needs is neither given nor stated, or its parts do not fit together.
        MissingDependency: a package that exports or converts is not installed.
    """
    from deploy.bundle.writing import BundleSpec
    from deploy.bundle.writing import write_bundle as write

    if not precisions or "fp32" not in precisions:
        raise DeployError(f"precisions is {list(precisions)}; name fp32, which the others are made from, first.")
    prepared, task = _preprocessing(preprocessing), options.get("task", "classification")
    with tempfile.TemporaryDirectory() as scratch:
        if isinstance(network, Mapping):
            models = {name: Path(file) for name, file in network.items()}
            default = options.pop("default", list(models)[-1]) if models else ""
        else:
            if isinstance(network, str | Path):
                models = {"fp32": Path(network)}
            else:
                models, options = _exported(network, Path(scratch), images, options)
            for name in precisions:
                if name not in models:
                    models[name] = quantize(
                        models["fp32"], Path(scratch) / f"model.{name}.onnx", images, precision=name
                    )
            default = options.pop("default", precisions[-1])
        if not models:
            raise DeployError("network names 0 files; give a module, an ONNX file, or a file for each precision.")
        stated = Metadata.from_file(next(iter(models.values())))
        found: dict[str, Any] = {
            "classes": classes or stated.classes,
            "preprocessing": prepared or stated.preprocessing,
        }
        for what, value in found.items():
            if value is None:
                raise DeployError(f"The bundle {folder} needs {what}, which the network does not state; give {what}.")
        spec = BundleSpec(models=models, default=default, **found, **{**options, "task": task})
        return write(folder, spec)


def _exported(
    network: nn.Module, scratch: Path, images: Any, options: Mapping[str, Any]
) -> tuple[dict[str, Path], dict[str, Any]]:
    """Export a module; return its file, and the options with what the bundle does after the network."""
    from deploy.exporting.lowering import lower
    from deploy.exporting.torch_to_onnx import export_onnx

    if images is None:
        raise DeployError("A module is exported by an example; give images as the network reads them.")
    rows, task = _rows(network, images, 2), str(options.get("task", "classification"))
    if task == "classification":
        return {"fp32": export_onnx(network, rows, scratch / "model.fp32.onnx")}, dict(options)
    if len(needed := _needed(network)) > 1:
        raise DeployError(
            f"{type(network).__name__} has {len(needed)} inputs ({', '.join(needed)}), and only a classifier with "
            f"several is exported for a bundle; give its ONNX file with the postprocessing for {task}."
        )
    lowered = lower(network, task, rows)
    file = export_onnx(lowered.module, rows, scratch / "model.fp32.onnx", output_name=lowered.output_name)
    return {"fp32": file}, {"postprocessing": lowered.postprocessing, **options}


def _rows(model: nn.Module, example: Any, most: int) -> Any:
    """The first images as a tensor on the model's device; for several inputs the first batch of each."""
    import torch

    parameter = next(model.parameters(), None)
    device = "cpu" if parameter is None else parameter.device
    if len(needed := _needed(model)) < 2:
        return torch.from_numpy(first_batch(example, most)).to(device)
    batch = example
    while not isinstance(batch, Mapping) and not (isinstance(batch, tuple | list) and all(map(is_array, batch))):
        try:
            batch = next(iter(batch))
        except (TypeError, StopIteration) as error:
            raise DeployError(
                f"{type(model).__name__} takes {len(needed)} inputs ({', '.join(needed)}); give a mapping of tensors "
                "by these names, a tuple of them in this order, or a loader of such."
            ) from error
    if not isinstance(batch, Mapping):
        return tuple(torch.as_tensor(one).to(device) for one in batch)
    if missing := [name for name in needed if name not in batch]:
        raise DeployError(
            f"{type(model).__name__} takes {', '.join(needed)} and the example has the keys "
            f"{', '.join(map(str, batch))[:120]}; give {', '.join(missing)} too."
        )
    known = inspect.signature(model.forward).parameters
    return {name: torch.as_tensor(value).to(device) for name, value in batch.items() if name in known}


def _needed(model: nn.Module) -> list[str]:
    """Return the arguments that ``forward`` cannot do without."""
    named = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    found = inspect.signature(model.forward).parameters.items()
    return [name for name, one in found if one.kind in named and one.default is inspect.Parameter.empty]


def _preprocessing(given: Preprocessing | Mapping[str, Any] | None) -> Preprocessing | None:
    from pydantic import ValidationError

    if given is None or isinstance(given, Preprocessing):
        return given
    try:
        return Preprocessing(**given)
    except ValidationError as error:
        raise DeployError(f"{explain(error)}; correct the preprocessing.") from None
