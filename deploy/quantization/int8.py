"""Quantise an fp32 file to int8 for ONNX Runtime and OpenVINO; ``qdq`` derives the signed file for TensorRT."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from deploy.engines import load_engine
from deploy.engines.base import first_line
from deploy.engines.unreported import unreported
from deploy.errors import DeployError
from deploy.onnx.file import missing_package, quiet
from deploy.onnx.opsets import too_new
from deploy.quantization.agreement import MIN_SNR_DB, Agreement
from deploy.quantization.calibration import Calibrated
from deploy.quantization.feeds import Feed
from deploy.quantization.guards import guarded_nodes
from deploy.quantization.qdq import quantise_biases, shift_activations, signed_from_unsigned, store_raw
from deploy.quantization.sufficing import check_sufficing

if TYPE_CHECKING:
    import onnx

    from deploy.engines.base import Engine

__all__ = ["KINDS", "int8_from_fp32", "int8_with_accuracy_control", "operators", "signed_from_unsigned"]


def int8_from_fp32(
    src: Path,
    dst: Path,
    calibration: Iterable[Any],
    *,
    seed: int = 0,
    keep_fp32: Sequence[str] = (),
    held_out: Iterable[Any] = (),
    min_snr_db: float | None = MIN_SNR_DB,
    method: str = "fast",
) -> Path:
    """Write the int8 variant (QDQ) of the fp32 file ``src`` to ``dst``; its metadata is kept.

    The file is compared with the fp32 one and states the worse agreement of the two sets of images:
    ``deploy.quantization.agreement.Agreement.read(dst)``.

    Args:
        src: an fp32 ONNX file.
        dst: where the int8 file goes.
        calibration: preprocessed float32 arrays (C, H, W) or (N, C, H, W), such as the network will see; for a file
            with several inputs mappings from their names to arrays, or tuples in their order, in a list or a loader.
        seed: of the draw where there are more images than ``deploy.quantization.feeds.MAX_IMAGES``.
        keep_fp32: kinds of operators that stay in fp32, keys of ``KINDS``; what a small constant guards, from the
            sums before it to the division after it, stays there in any case.
        held_out: more of the same kind that the ranges are not taken from.
        method: how the rounding is made up for, one of ``METHODS``.
        min_snr_db: the least signal to noise against fp32; None writes the file whatever it is worth.

    Raises:
        DeployError: ``src`` is not an fp32 ONNX file, the calibration does not fit it or suffices for nothing (see
            ``deploy.quantization.sufficing``), or int8 is further from fp32 than ``min_snr_db``, or 10 dB further on
            ``held_out`` than on the calibration.
        MissingDependency: NNCF is not installed.
    """
    source = Calibrated.read(src, calibration, seed, "int8")
    others = source.others(held_out, seed)
    check_sufficing(source, others, min_snr_db)
    nncf, options = _import_nncf(source, keep_fp32, method)
    # Symmetric, for ONNX Runtime is fast only where whole chains fuse in int8 (measured in docs/engines.md). Processors
    # differ in which operators gain: deploy.quantization.search.fastest_int8 measures.
    with quiet():
        try:
            quantised = nncf.quantize(
                source.model, nncf.Dataset(source.feeds), subset_size=len(source.feeds), **options
            )
        except Exception as error:  # the errors of NNCF and of the runtime it calibrates with share no base class
            raise _failed(src, error) from error
    _finish(quantised)
    stated = _agreement(source, quantised, others, min_snr_db)
    return source.write(quantised, dst, "int8", keep_fp32, stated)


def _failed(src: Path, error: Exception) -> DeployError:
    if (said := too_new(str(error), src)) is not None:
        return DeployError(f"ONNX Runtime, by which int8 is calibrated, {said}")
    return DeployError(f"NNCF cannot quantise {src} ({first_line(error)}); ship its fp32 or fp16 file instead.")


def _finish(quantised: onnx.ModelProto) -> None:
    """Bring what NNCF gives, in place, into the form that both runtimes fuse."""
    shift_activations(quantised.graph)
    quantise_biases(quantised.graph)
    store_raw(quantised.graph)


def _agreement(
    source: Calibrated, quantised: onnx.ModelProto, held_out: Sequence[Feed], least: float | None
) -> Mapping[str, str]:
    """Hold the quantised model against the fp32 file; return what the file states of it."""
    import onnx

    if any(node.op_type == "NonMaxSuppression" for node in quantised.graph.node):
        return {}  # boxes come and go in steps: their agreement is an mAP, which needs labels
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "candidate.onnx"
        onnx.save(quantised, path)
        found = [Agreement.of(source.path, path, feeds) for feeds in (source.feeds, held_out) if feeds]
    for one, what in zip(found, ("the calibration's images", "held-out images"), strict=False):
        one.check(source.path, what, least)
    if least is not None:
        found[-1].check_fit(source.path, found[0])
    return min(found, key=lambda one: one.snr_db).properties()


def int8_with_accuracy_control(
    src: Path,
    dst: Path,
    calibration: Iterable[Any],
    measure: Callable[[Engine], float],
    *,
    max_drop: float = 0.01,
    seed: int = 0,
    keep_fp32: Sequence[str] = (),
    held_out: Iterable[Any] = (),
    min_snr_db: float | None = MIN_SNR_DB,
) -> Path:
    """Quantise as ``int8_from_fp32``, but return layers to fp32 until ``measure`` drops by no more than ``max_drop``.

    Args:
        src, dst, calibration, seed, keep_fp32, held_out, min_snr_db: as for ``int8_from_fp32``, whose comparison with
            fp32 and whose refusals are made here too.
        measure: returns the quality of an engine, positive and the higher the better, such as its accuracy on
            validation data.
        max_drop: how far the quality may lie below that of the fp32 file.

    Raises:
        DeployError: as ``int8_from_fp32``, or ``max_drop`` is negative, or the fp32 file's quality is not positive.
        MissingDependency: NNCF is not installed.
    """
    if max_drop < 0:
        raise DeployError(f"max_drop is {max_drop}; give 0 or more.")
    source = Calibrated.read(src, calibration, seed, "int8")
    others = source.others(held_out, seed)
    _check_quality(source.path, measure)
    check_sufficing(source, others, min_snr_db)
    nncf, options = _import_nncf(source, keep_fp32)

    def validate(model: onnx.ModelProto, _: object) -> tuple[float, None]:
        import onnx

        with tempfile.TemporaryDirectory() as folder:
            onnx.save(model, Path(folder) / "candidate.onnx")
            with load_engine(Path(folder) / "candidate.onnx") as engine:
                return float(measure(engine)), None

    with quiet():
        try:
            quantised = nncf.quantize_with_accuracy_control(
                source.model,
                nncf.Dataset(source.feeds),
                nncf.Dataset(source.feeds),
                validate,
                max_drop=max_drop,
                subset_size=len(source.feeds),
                advanced_quantization_parameters=options.pop("advanced_parameters"),
                **options,
            )
        except DeployError:
            raise
        except Exception as error:  # as above
            raise _failed(src, error) from error
    _finish(quantised)
    return source.write(quantised, dst, "int8", keep_fp32, _agreement(source, quantised, others, min_snr_db))


def _check_quality(path: Path, measure: Callable[[Engine], float]) -> None:
    """Raise DeployError where the quality of the fp32 file, by which NNCF divides, is not positive."""
    with load_engine(path) as engine:
        dense = float(measure(engine))
    if dense <= 0:
        raise DeployError(f"The quality of {path} is {dense}; measure something that is above 0 for a good network.")


def operators(model: onnx.ModelProto, kind: str) -> list[str]:
    """Return the names of the nodes of ``model`` that are of ``kind``, a key of ``KINDS``.

    Raises:
        DeployError: there is no such kind.
    """
    if kind not in KINDS:
        raise DeployError(f"There is no kind of operators {kind!r}; choose among {', '.join(KINDS)}.")
    constants = {tensor.name for tensor in model.graph.initializer}
    return KINDS[kind](list(model.graph.node), constants)


def _depthwise(nodes: list[onnx.NodeProto], _: set[str]) -> list[str]:
    return [n.name for n in nodes if n.op_type == "Conv" and any(a.name == "group" and a.i > 1 for a in n.attribute)]


def _first(nodes: list[onnx.NodeProto], _: set[str]) -> list[str]:
    return [node.name for node in nodes if node.op_type == "Conv"][:1]


def _sums(nodes: list[onnx.NodeProto], constants: set[str]) -> list[str]:
    return [n.name for n in nodes if n.op_type in ("Add", "Mul", "Concat") and not constants & set(n.input)]


def _gates(nodes: list[onnx.NodeProto], constants: set[str]) -> list[str]:
    """Return the nodes from each pooled average to the product that it weighs, as squeeze-and-excitation has them."""
    found: list[str] = []
    for start, pool in enumerate(nodes):
        if pool.op_type not in ("GlobalAveragePool", "ReduceMean"):
            continue
        inside, made = [pool.name], set(pool.output)
        for node in nodes[start + 1 :]:  # in the order in which they are computed
            if node.op_type not in _GATE or not made & set(node.input):
                continue
            if node.op_type == "Mul" and any(name not in made | constants for name in node.input):
                found += [*inside, node.name] if len(inside) > 1 else []
                break
            inside.append(node.name)
            made |= set(node.output)
    return list(dict.fromkeys(found))


_GATE = ("Conv", "Relu", "Clip", "Sigmoid", "HardSigmoid", "HardSwish", "Swish", "Add", "Mul", "Div")
KINDS: Mapping[str, Callable[[list[onnx.NodeProto], set[str]], list[str]]] = MappingProxyType(
    {"depthwise": _depthwise, "first": _first, "sums": _sums, "gates": _gates}
)
"""Kinds of operators that are slower, or much less exact, in int8 on some processors: depthwise and grouped
convolutions, the first convolution, those that join two branches, and squeeze-and-excitation."""
METHODS: tuple[str, ...] = ("fast", "exact", "smooth")
"""How NNCF makes up for the rounding: biases moved by averages estimated layer by layer (``fast``) or by those of the
quantised network as it is built up (``exact``), and SmoothQuant of convolutions and products (Xiao et al., 2023) before
the fast one (``smooth``)."""


_SHORT = 64  # values


def _decoding(nodes: list[onnx.NodeProto]) -> list[str]:
    """Return the nodes after the last weights where a graph suppresses boxes: 256 steps are too few for their edges."""
    if not any(node.op_type == "NonMaxSuppression" for node in nodes):
        return []
    feeds: set[str] = set()  # tensors from which a weight can still be reached
    after = []
    for node in reversed(nodes):
        if node.op_type in ("Conv", "ConvTranspose", "Gemm", "MatMul") or feeds & set(node.output):
            feeds |= set(node.input)
        else:
            after.append(node.name)
    return after


def _import_nncf(source: Calibrated, keep_fp32: Sequence[str], method: str = "fast") -> tuple[Any, dict[str, Any]]:
    """Import NNCF and return it with the options that every quantisation here uses, and those of a method."""
    if method not in METHODS:
        raise DeployError(f"There is no method {method!r}; choose among {', '.join(METHODS)}.")
    if method == "exact" and len(source.inputs) > 1:
        raise DeployError(
            f"The method 'exact' runs pieces of a network that NNCF cuts from one input, and {source.path} has "
            f"{len(source.inputs)}; take 'fast' or 'smooth'."
        )
    wanted = {name for kind in keep_fp32 for name in operators(source.model, kind) if name}
    # A guarded value spans more powers of ten than 256 steps: a dark image would be divided by nothing, or by a step.
    kept = {*guarded_nodes(source.model), *_decoding(list(source.model.graph.node))}
    names = sorted(wanted | kept)
    try:
        with quiet(), unreported():
            import nncf
            import onnxruntime  # noqa: F401 - NNCF imports it later, when nothing silences it
            from nncf.quantization import advanced_parameters as advanced
            from nncf.quantization import range_estimator as ranges
    except ImportError as error:
        raise missing_package("nncf", "Making an int8 file", "compress") from error
    # NNCF averages the extremes of the rows, which for a short vector beside an image lie far inside its range.
    short = len(source.inputs) > 1 and any(a.dtype.kind == "f" and a.size < _SHORT for a in source.feeds[0].values())
    extremes = ranges.RangeEstimatorParametersSet.MINMAX if short else ranges.RangeEstimatorParameters()
    return nncf, {
        "preset": nncf.QuantizationPreset.PERFORMANCE,
        "ignored_scope": nncf.IgnoredScope(names=names, validate=False) if names else None,
        "advanced_parameters": advanced.AdvancedQuantizationParameters(
            # With activations per channel ONNX Runtime fuses no depthwise convolution.
            activations_quantization_params=advanced.QuantizationParameters(per_channel=False),
            activations_range_estimator_params=extremes,
            smooth_quant_alphas=advanced.AdvancedSmoothQuantParameters(
                **({"convolution": 0.5, "matmul": 0.5} if method == "smooth" else {})
            ),
        ),
        "fast_bias_correction": method != "exact",
        # Only for a transformer does NNCF smooth at all.
        "model_type": nncf.ModelType.TRANSFORMER if method == "smooth" else None,
    }
