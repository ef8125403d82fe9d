"""The stages that lower the networks: ONNX files, parity, engines built ahead of time."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from torch import nn

import deploy
from compress.artifact import WEIGHTS
from compress.files import write_text
from compress.run.calibration import calibration_images, held_out_images
from compress.run.evaluation import accuracy_of, accuracy_of_file
from compress.run.ledger import Outcome
from compress.run.progress import StageView
from compress.run.variants import AWARE, ENGINES, PARITY, Variant, exporting, lowered_of, variants_of
from compress.run.workspace import Workspace
from deploy.engines import load_engine
from deploy.environment import int8_sums
from deploy.errors import DeployError, MissingDependency
from deploy.exporting.parity import INPUTS, NotFiniteError, parity
from deploy.exporting.torch_to_onnx import export_onnx
from deploy.files import sha256
from deploy.onnx.metadata import Metadata
from deploy.onnx.wire import scan
from deploy.processing.preprocess import Preprocessing
from deploy.quantization.agreement import Agreement, grade
from deploy.quantization.calibration import KEPT
from deploy.quantization.half import fp16_from_fp32
from deploy.quantization.int8 import int8_from_fp32, int8_with_accuracy_control, signed_from_unsigned
from deploy.quantization.lint import lint_qdq
from deploy.quantization.search import fastest_int8

BATCHES = (1, 2, 7)
FP32_PARITY = 1e-4


def export(work: Workspace, view: StageView) -> Outcome:
    """Write every ONNX file and compare each with torch on real images at several batch sizes."""
    recipe, out = work.recipe, work.out
    variants = variants_of(recipe)
    found: dict[str, list[dict[str, Any]]] = {}
    notes: list[str] = []
    metrics: dict[str, float] = {}
    for done, variant in enumerate(variants):

        def tell(doing: str, part: int = 0, *, done: int = done, variant: Variant = variant) -> None:
            view.advance(3 * done + part, 3 * len(variants), f"{variant.model} {variant.precision}: {doing}")

        tell("write")
        path = out / variant.onnx
        trained = AWARE if variant.precision == "int8" and work.deploy.qat is not None else variant.model
        module, fp32 = _written(work, variant, trained, notes)
        if variant.precision == "int8":
            metrics["int8_time_of_fp32"] = _int8(work, fp32, path, notes, tell)
            rounded = (fp32, path)
        tell("compare with torch", 1)
        with load_engine(path, threads=work.deploy.threads) as engine:
            _check_finite(work, engine, variant)
        found[variant.name] = _parity(work, variant, module, path, notes)
        if variant.model == "student":
            tell("accuracy on validation", 2)
            metrics[f"val_accuracy_{variant.name}"] = accuracy_of_file(work, path, "val")
    view.advance(3 * len(variants), 3 * len(variants), "")
    real = {n: [row for row in rows if row["inputs"] == "real"] for n, rows in found.items()}
    worst = {n: max(p["max_relative_error"] for p in rows) for n, rows in real.items() if rows}
    snr = {n: min(p["snr_db"] for p in rows) for n, rows in real.items() if rows}
    for variant in variants:
        if variant.precision == "fp32" and worst[variant.name] > FP32_PARITY:
            raise DeployError(
                f"{variant.onnx} differs from torch by {worst[variant.name]:.1e} (limit {FP32_PARITY:g}); "
                "please report the model."
            )
    write_text(out / PARITY, json.dumps(found, indent=1) + "\n")
    view.notes.append(f"fp32 = torch within {worst['distilled']:.0e}")
    if "int8" in snr:
        images = held_out_images(work)
        snr["int8"] = Agreement.of(*rounded, [image[None] for image in images]).snr_db
        on = f"{len(images)} validation image{'' if len(images) == 1 else 's'}"
        said = f"int8 at {snr['int8']:.1f} dB on {on}, {grade(snr['int8'])}{_beside_fp32(metrics)}"
        view.notes.append(said)
        notes.append(said)
    metrics |= {f"parity_{n}": v for n, v in worst.items()} | {f"snr_db_{n}": v for n, v in snr.items()}
    return Outcome(metrics=metrics, notes=tuple(notes))


def _written(work: Workspace, variant: Variant, trained: str, notes: list[str]) -> tuple[nn.Module, Path]:
    """Write a variant's file, for int8 the fp32 one that it is made of; return what it computes, and the fp32 file."""
    recipe, out, settings = work.recipe, work.out, exporting(work.deploy)
    lowered = lowered_of(work, work.load(trained))
    fp32 = out / f"deploy/{trained}.fp32.onnx"
    if variant.precision == "fp32" or trained == AWARE:
        about = _about(work, trained).properties()
        export_onnx(lowered.module, work.example, fp32, output_name=lowered.output_name, metadata=about, **settings)
    elif variant.precision == "fp16":
        fp16_from_fp32(fp32, out / variant.onnx, calibration_images(work), seed=recipe.seed)
        if kept := scan(out / variant.onnx).properties.get(KEPT):
            named = kept.split(",")
            more = f" and {len(named) - 5} more" if len(named) > 5 else ""
            notes.append(f"{variant.onnx} keeps in fp32 what fp16 cannot hold: {', '.join(named[:5])}{more}")
    return lowered.module, fp32


def _parity(work: Workspace, variant: Variant, module: nn.Module, path: Path, notes: list[str]) -> list[dict[str, Any]]:
    """Compare the file with torch, on validation images and on the same ones scaled to be hard on an engine.

    int8 is calibrated for real images, so it is held to those. What suppresses boxes or takes the largest class in the
    graph answers in steps: there the raw network is exported as well and compared, and the other precisions have the
    accuracy on validation images alone.
    """
    images = work.target.splits["val"].inputs(0, 16)
    with TemporaryDirectory() as folder:
        if work.deploy.in_graph and work.target.task != "classification":
            if variant.precision != "fp32":
                return []
            raw = lowered_of(work, work.load(variant.model), in_graph=False)
            module, names, settings = raw.module, raw.output_name, exporting(work.deploy)
            path = export_onnx(module, work.example, Path(folder) / path.name, output_name=names, **settings)
        with load_engine(path, threads=work.deploy.threads) as engine:
            rows = parity(module, engine, images, BATCHES)
            if work.deploy.dynamic_size and variant.precision == "fp32":
                rows += parity(module, engine, nn.functional.pad(images, (0, 64, 0, 32)), BATCHES[:1])
            for kind in INPUTS if variant.precision != "int8" else ():
                if kind == "real":
                    continue
                try:
                    more = parity(module, engine, images, BATCHES, inputs=(kind,))
                except NotFiniteError:
                    # fp16 cannot hold what a thousandfold input may make; a blank image is an image.
                    if variant.precision == "fp32" or kind != "times 1000":
                        raise
                    notes.append(f"{variant.onnx}, inputs {kind}: fp16 cannot hold what the network makes of them")
                    continue
                except DeployError as error:  # the network itself gives nothing finite for such inputs
                    notes.append(f"{variant.onnx}, inputs {kind}: {error}")
                    continue
                rows += more
                error_of = max(row["max_relative_error"] for row in more)
                if variant.precision == "fp32" and error_of > FP32_PARITY:
                    notes.append(f"{variant.onnx} differs from torch by {error_of:.1e} for inputs {kind}")
    return rows


def _beside_fp32(metrics: Mapping[str, float]) -> str:
    """Say the accuracy of int8 beside that of fp32, both on validation data, where it was measured."""
    int8, fp32 = (metrics.get(f"val_accuracy_{name}") for name in ("int8", "distilled"))
    if int8 is None or fp32 is None:
        return ""
    return f": {100 * int8:.1f} %, {100 * fp32:.1f} % in fp32"


def _about(work: Workspace, model: str) -> Metadata:
    """Return what the file says of itself, so that any copy of it can be held against the run that made it."""
    return Metadata(
        model=model,
        classes=tuple(work.target.classes),
        preprocessing=Preprocessing(**work.recipe.preprocessing.model_dump()),
        weights_sha256=sha256(work.folder(model) / WEIGHTS),
    )


def _int8(work: Workspace, fp32: Path, path: Path, notes: list[str], tell: Callable[[str], None]) -> float:
    """Write the int8 file that is fastest here, and the signed one; return its time as a share of fp32's."""
    recipe, images, held_out = work.recipe, calibration_images(work), held_out_images(work)
    how: dict[str, Any] = {"threads": work.deploy.threads, "runtime": work.deploy.runtime}
    if int8_sums() == "saturating":
        notes.append("int8: sums saturate in 16 bits on this processor (no VNNI); with VNNI int8 is nearer to fp32")
    choice = fastest_int8(fp32, path, images, seed=recipe.seed, held_out=held_out, tell=tell, **how)
    notes.append(f"int8: {choice}")
    signed = path.with_suffix(".trt.onnx")
    if (drop := work.deploy.accuracy_drop) is not None:
        tell("give layers back to fp32 for accuracy")
        # Over what is kept for speed, layers are given back until validation images are told apart well enough.
        int8_with_accuracy_control(
            fp32,
            path,
            images,
            lambda engine: accuracy_of(work, engine, "val"),
            max_drop=drop,
            seed=recipe.seed,
            keep_fp32=choice.kept,
            held_out=held_out,
        )
        signed_from_unsigned(path, signed)
    elif choice.kept:
        # What is slow in int8 on this processor is not slow on a GPU: the engine for it gets everything in int8.
        with TemporaryDirectory() as folder:
            whole = int8_from_fp32(fp32, Path(folder) / path.name, images, seed=recipe.seed)
            signed_from_unsigned(whole, signed)
    else:
        signed_from_unsigned(path, signed)
    # What is kept is said above, and how near the whole file is to fp32 at the end, on more images.
    told = (finding for finding in lint_qdq(path) if not finding.intended and finding.where != path.name)
    odd = Counter((finding.what, finding.why) for finding in told)
    notes.extend(f"int8: {f'{count} times ' if count > 1 else ''}{what} ({why})" for (what, why), count in odd.items())
    return choice.ratio


def _check_finite(work: Workspace, engine: deploy.Engine, variant: Variant) -> None:
    """Raise DeployError for a precision in which real images overflow."""
    (name,) = tuple(engine.inputs)
    outputs = engine.run({name: work.target.splits["val"].inputs(0, 16).numpy()})
    if not all(np.isfinite(output).all() for output in outputs.values()):
        raise DeployError(
            f"{variant.onnx} gives NaN or infinity on validation images; leave {variant.precision} out of "
            "deploy.precisions, or train longer so that the network is better conditioned."
        )


def build(work: Workspace, view: StageView) -> Outcome:
    """Build TensorRT-RTX engines ahead of time, or note in one line why there are none."""
    from deploy.engines.tensorrt.building import engine_from_onnx

    sources = {
        "fp16": work.out / "deploy/student.fp16.onnx",
        "int8": work.out / "deploy/student.int8.trt.onnx",
    }
    jobs = [
        (target, precision, path)
        for target in work.deploy.rtx_targets
        for precision, path in sources.items()
        if path.is_file()
    ]
    built: list[dict[str, Any]] = []
    notes: tuple[str, ...] = ()
    for done, (target, precision, path) in enumerate(jobs):
        view.advance(done, len(jobs), f"{precision} for {target}")
        try:
            engine = engine_from_onnx(path, work.out / "deploy", target=target, precision=precision)
        except MissingDependency as error:
            notes = (str(error),)
            break
        size = engine.stat().st_size
        built.append({"target": target, "precision": precision, "file": engine.name, "bytes": size})
    write_text(work.out / ENGINES, json.dumps(built, indent=1) + "\n")
    view.notes.append(f"{len(built)} engines" if built else notes[0] if notes else "nothing to build")
    return Outcome(metrics={"engines": float(len(built))}, notes=notes)
