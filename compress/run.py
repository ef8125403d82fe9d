"""One run: from a recipe to a folder with networks, engines, records and a report."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError
from torch import nn

import cpp_ext
import deploy
from compress import data, stages
from compress.data import ImageReader
from compress.errors import RecipeError
from compress.files import write_text
from compress.ledger import Ledger, StageEntry
from compress.preflight import alone, check_model, going_on
from compress.recipe import Recipe
from compress.stages import Outcome, StageFunction
from compress.train import TASKS, evaluate, make_fabric
from compress.ui import StageView, Ui
from compress.workspace import Workspace
from deploy import preprocess
from deploy.engines import load_engine
from deploy.errors import DeployError, MissingDependency
from deploy.export import export_onnx, parity
from deploy.precision import fp16_from_fp32
from deploy.preprocess import Preprocessing
from deploy.quantize import int8_from_fp32, signed_from_unsigned
from deploy.records import Bench, Record, machine_info, versions_info

BATCHES = (1, 2, 5)
PARITY = "deploy/parity.json"
ENGINES = "deploy/engines.json"
FP32_PARITY = 1e-4
EVALUATION_BATCH = 64


@dataclass(frozen=True)
class Variant:
    """One engine of the run: a network in a precision."""

    name: str
    model: str
    precision: str

    @property
    def onnx(self) -> str:
        return f"deploy/{self.model}.{self.precision}.onnx"


def run(recipe: Recipe, out: Path, ui: Ui, *, resume: bool = False) -> Path:
    """Does everything that `recipe` asks for and leaves it in `out`.

    Args:
        recipe: what is asked for.
        out: the run folder; it appears only after the recipe, the data and the model were checked.
        ui: where progress goes.
        resume: go on with the run that `out` holds; what is done is not done again.

    Raises:
        NiwakiError, DeployError: one sentence about what cannot be used and the way out.
    """
    if (ranks := int(os.environ.get("WORLD_SIZE", "1"))) > 1:
        raise RecipeError(f"A run works in one process, torchrun started {ranks}; start niwaki run without torchrun.")
    work = _prepare(recipe, out, ui, resume)
    with alone(out):
        _forget_lost(work)
        return _carry_out(work, ui)


def _carry_out(work: Workspace, ui: Ui) -> Path:
    todo = _stages(work.recipe)
    for number, (name, title, function) in enumerate(todo, start=1):
        if work.ledger.done(name):
            ui.line(f"[{number:>2}/{len(todo)}] {title}: done before")
            continue
        start = time.perf_counter()
        with ui.stage(number, len(todo), title) as view:
            outcome = function(work, view)
        work.finish(
            StageEntry(
                name=name,
                title=title,
                seconds=time.perf_counter() - start,
                training_flops=outcome.training_flops,
                metrics=outcome.metrics,
                notes=outcome.notes,
            )
        )
    from deploy.report import write_report

    return write_report(work.out)


def _outputs(recipe: Recipe) -> dict[str, list[str]]:
    """What each stage leaves that a later one, or the user, needs."""
    return {
        "pretrain": [stages.PRETRAINED],
        "transfer": ["teacher/model.json", "teacher/model.safetensors"],
        "twin": ["checkpoints/twin/model.safetensors"],
        "prune": ["pruned/model.json", "pruned/model.safetensors"],
        "distill": ["student/model.json", "student/model.safetensors"],
        "finetuned": ["checkpoints/finetuned/model.safetensors"],
        "scratch": ["checkpoints/scratch/model.safetensors"],
        "export": [PARITY, *(variant.onnx for variant in _variants(recipe))],
        "build": [ENGINES],
        "bench": ["bench.json"],
        "bundle": ["bundle/manifest.json"],
    }


def _forget_lost(work: Workspace) -> None:
    """Takes back the stages whose files are gone, and all that came after them, so that they are done again."""
    outputs = _outputs(work.recipe)
    for k, entry in enumerate(work.ledger.stages):
        if not all((work.out / name).is_file() for name in outputs.get(entry.name, [])):
            work.ledger = work.ledger.model_copy(update={"stages": work.ledger.stages[:k]})
            return


def _stages(recipe: Recipe) -> list[tuple[str, str, StageFunction]]:
    """Name, title and function of each stage that the recipe asks for, in order."""
    found: list[tuple[bool, str, str, Callable[..., Outcome]]] = [
        (recipe.source is not None, "pretrain", "Pretrain on the source domain", stages.pretrain),
        (True, "transfer", "Fine-tune on the target: the teacher", stages.transfer),
        (recipe.twin, "twin", "Train the teacher's twin from scratch", stages.twin),
        (True, "prune", "Prune whole channels and prove the cut", _cut),
        (True, "distill", "Distil the student from the teacher", stages.distil),
        (
            "finetuned" in recipe.distill.compare,
            "finetuned",
            "Fine-tune it without a teacher",
            stages.finetuned,
        ),
        (
            "scratch" in recipe.distill.compare,
            "scratch",
            "Train the small network from scratch",
            stages.scratch,
        ),
        (True, "export", "Lower to ONNX and check parity", _export),
        (bool(recipe.deploy.rtx_targets), "build", "Build TensorRT-RTX engines", _build),
        (True, "test", "Measure accuracy on the test split", _test),
        (True, "bench", "Measure latency, interleaved", _bench),
        (True, "bundle", "Pack the bundle", _bundle),
    ]
    return [(name, title, function) for wanted, name, title, function in found if wanted]


# Before anything is written -------------------------------------------------------------------------------


def _prepare(recipe: Recipe, out: Path, ui: Ui, resume: bool) -> Workspace:
    """Checks the whole request, then makes the folder or takes up the one that is there."""
    resuming = going_on(recipe, out, resume)
    try:
        prepare = Preprocessing(**recipe.preprocessing.model_dump())
    except ValidationError as error:
        fault = error.errors()[0]
        where = ".".join(("preprocessing", *map(str, fault["loc"])))
        raise RecipeError(f"{where}: {fault['msg'].removeprefix('Value error, ')}; change it in the recipe.") from None
    reader = ImageReader(preprocess.load, prepare)
    target = data.load(recipe.target, reader, recipe.seed)
    if "test" not in target.splits:
        raise RecipeError("target.kind rendered_digits has no test split; use it under source, not under target.")
    if resuming:
        return Workspace(recipe, out, reader, target, Ledger.read(out / "ledger.json"))
    kernels = cpp_ext.kernels_in_use()
    make_fabric(recipe.device, recipe.precision)
    check_model(recipe, target)
    out.mkdir(parents=True, exist_ok=True)
    (out / "checkpoints").mkdir(exist_ok=True)
    write_text(out / "recipe.yaml", recipe.to_yaml())
    ledger = Ledger(
        name=recipe.name,
        seed=recipe.seed,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        kernels=kernels,
        machine={**machine_info(), "threads": torch.get_num_threads()},
        versions=versions_info(),
        classes=target.classes,
        test_images=len(target.splits["test"]),
    )
    ledger.write(out / "ledger.json")
    work = Workspace(recipe, out, reader, target, ledger)
    work.log("start", name=recipe.name, seed=recipe.seed)
    return work


def _cut(work: Workspace, view: StageView) -> Outcome:
    return stages.cut(work, view, _measure(work))


# Lowering -------------------------------------------------------------------------------------------------


def _variants(recipe: Recipe) -> list[Variant]:
    made = [Variant("dense", "teacher", "fp32"), Variant("pruned", "pruned", "fp32")]
    names = {"fp32": "distilled", "fp16": "distilled-fp16", "int8": "int8"}
    return made + [Variant(names[p], "student", p) for p in ("fp32", "fp16", "int8") if p in recipe.deploy.precisions]


def _export(work: Workspace, view: StageView) -> Outcome:
    """Writes every ONNX file and compares each with torch on real images at several batch sizes."""
    recipe, out = work.recipe, work.out
    variants = _variants(recipe)
    found: dict[str, list[dict[str, float]]] = {}
    for done, variant in enumerate(variants):
        view.advance(done, len(variants), f"{variant.model} {variant.precision}")
        path, fp32 = out / variant.onnx, out / f"deploy/{variant.model}.fp32.onnx"
        model = work.load(variant.model)
        if variant.precision == "fp32":
            about = {"niwaki.model": variant.model, "niwaki.classes": json.dumps(work.target.classes)}
            export_onnx(model, work.example, path, metadata=about)
        elif variant.precision == "fp16":
            fp16_from_fp32(fp32, path)
        else:
            int8_from_fp32(fp32, path, _calibration(work), seed=recipe.seed)
            signed_from_unsigned(path, path.with_suffix(".trt.onnx"))
        with load_engine(path, threads=recipe.deploy.threads) as engine:
            _check_finite(work, engine, variant)
            found[variant.name] = parity(model, engine, work.target.splits["val"].inputs(0, 16), BATCHES)
    view.advance(len(variants), len(variants), "")
    worst = {n: max(p["max_relative_error"] for p in rows) for n, rows in found.items()}
    snr = {n: min(p["snr_db"] for p in rows) for n, rows in found.items()}
    for variant in variants:
        if variant.precision == "fp32" and worst[variant.name] > FP32_PARITY:
            raise DeployError(
                f"{variant.onnx} differs from torch by {worst[variant.name]:.1e} (limit {FP32_PARITY:g}); "
                "please report the model."
            )
    write_text(out / PARITY, json.dumps(found, indent=1) + "\n")
    view.notes.append(f"fp32 = torch within {worst['distilled']:.0e}")
    if "int8" in snr:
        view.notes.append(f"int8 at {snr['int8']:.1f} dB")
    return Outcome({f"parity_{n}": v for n, v in worst.items()} | {f"snr_db_{n}": v for n, v in snr.items()})


def _check_finite(work: Workspace, engine: deploy.Engine, variant: Variant) -> None:
    """Refuses a precision in which real images overflow."""
    (name,), (output, *_) = tuple(engine.inputs), tuple(engine.outputs)
    logits = engine.run({name: work.target.splits["val"].inputs(0, 16).numpy()})[output]
    if not np.isfinite(logits).all():
        raise DeployError(
            f"{variant.onnx} gives NaN or infinity on validation images; leave {variant.precision} out of "
            "deploy.precisions, or train longer so that the network is better conditioned."
        )


def _calibration(work: Workspace) -> list[np.ndarray]:
    """Training images, drawn with the run's seed, as the network sees them: float32 (C, H, W)."""
    split = work.target.splits["train"]
    count = min(work.recipe.deploy.calibration_images, len(split))
    chosen = np.random.default_rng(work.recipe.seed).permutation(len(split))[:count]
    return [split.gather(torch.tensor([int(i)]))[0].numpy() for i in sorted(chosen)]


def _build(work: Workspace, view: StageView) -> Outcome:
    """Builds TensorRT-RTX engines ahead of time, or says in one line why it does not."""
    from deploy.engines.tensorrt import engine_from_onnx

    sources = {
        "fp16": work.out / "deploy/student.fp16.onnx",
        "int8": work.out / "deploy/student.int8.trt.onnx",
    }
    jobs = [
        (target, precision, path)
        for target in work.recipe.deploy.rtx_targets
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
    return Outcome({"engines": float(len(built))}, None, notes)


# Measuring ------------------------------------------------------------------------------------------------


def _test(work: Workspace, view: StageView) -> Outcome:
    """Touches the test split, once, with every network and every engine that is not a network's own fp32."""
    split, task = work.target.splits["test"], TASKS[work.target.task]
    metrics: dict[str, float] = {}
    lowered = [v for v in _variants(work.recipe) if v.precision != "fp32"]
    total = len(work.ledger.models) + len(lowered)
    for entry in work.ledger.models:
        view.advance(len(metrics), total, entry.title)
        found = evaluate(work.load(entry.name), work.target, "test", work.fabric)
        metrics[entry.name] = found[task.selects]
        filled: dict[str, Any] = {"test_accuracy": found[task.selects], "test_metrics": found, "test_total": len(split)}
        if task.name == "classification":
            filled["test_correct"] = round(found["top1"] * len(split))
        work.ledger = work.ledger.with_model(entry.model_copy(update=filled))
    for variant in lowered:
        view.advance(len(metrics), total, f"{variant.model} {variant.precision}")
        with load_engine(work.out / variant.onnx, threads=torch.get_num_threads()) as engine:
            right = 0
            (name,), (output, *_) = tuple(engine.inputs), tuple(engine.outputs)
            for batch in split.batches(EVALUATION_BATCH):
                given = engine.run({name: batch.images.numpy()})[output]
                right += int((given.argmax(1) == batch.targets.numpy()).sum())
        metrics[variant.name] = right / len(split)
    view.notes.append(
        f"teacher {100 * metrics['teacher']:.1f} %, student {100 * metrics['student']:.1f} % "
        f"of {len(split)} test images"
    )
    return Outcome(metrics)


def _bench(work: Workspace, view: StageView) -> Outcome:
    """Times every engine against the dense teacher in one sitting and writes `bench.json`."""
    recipe, out = work.recipe, work.out
    variants = _variants(recipe)
    accuracy = next(s.metrics for s in work.ledger.stages if s.name == "test")
    checked = json.loads((out / PARITY).read_text(encoding="utf-8"))
    image = work.target.splits["val"].inputs(0, 1).numpy()
    with ExitStack() as stack:
        engines = []
        for variant in variants:
            engine = stack.enter_context(load_engine(out / variant.onnx, threads=recipe.deploy.threads))
            engine.name = variant.name
            engines.append(engine)
        (name,) = tuple(engines[0].inputs)
        records = deploy.benchmark(
            engines,
            {name: image},
            reference="dense",
            rounds=recipe.deploy.rounds,
            progress=lambda done, total: view.advance(done, total, "rounds"),
        )
    filled = [
        Record.model_validate(
            record.model_dump()
            | {
                "model": variant.model,
                "accuracy": accuracy[variant.model if variant.precision == "fp32" else variant.name],
                "parity": checked[variant.name],
            }
        )
        for record, variant in zip(records, variants, strict=True)
    ]
    bench = Bench(
        name=recipe.name,
        settings={
            "threads": recipe.deploy.threads,
            "batch": 1,
            "rounds": recipe.deploy.rounds,
            "pruning_kernels": work.ledger.kernels,
        },
        records=(*filled, *_built_records(out)),
    )
    write_text(out / "bench.json", bench.to_json())
    speedups = {r.name: r.speedup or 0.0 for r in filled}
    last = filled[-1]
    view.notes.append(f"{last.name}: {last.median_ms:.2f} ms, {last.speedup:.2f}x the dense network")
    return Outcome({f"speedup_{n}": v for n, v in speedups.items()})


def _built_records(out: Path) -> Iterator[Record]:
    """Engines for GPUs are recorded as built, with why they have no times."""
    listed = out / ENGINES
    for built in json.loads(listed.read_text(encoding="utf-8")) if listed.is_file() else []:
        yield Record(
            name=f"distilled-{built['precision']}-rtx-{built['target']}",
            model="student",
            runtime="tensorrt_rtx",
            precision=built["precision"],
            batch=1,
            status="built",
            reason=f"built ahead of time for {built['target']}; times are taken on such a GPU",
            file_bytes=built["bytes"],
        )


def _bundle(work: Workspace, view: StageView) -> Outcome:
    """Packs what a product needs, and a few test images to try it on."""
    from deploy.bundle import write_bundle

    recipe, out = work.recipe, work.out
    bench = Bench.from_file(out / "bench.json")
    variants = {v.precision: v for v in _variants(recipe) if v.model == "student"}
    records = {r.name: r for r in bench.records}
    write_bundle(
        out / "bundle",
        models={p: out / v.onnx for p, v in variants.items()},
        default=recipe.deploy.ship,
        preprocessing=Preprocessing(**recipe.preprocessing.model_dump()),
        classes=work.target.classes,
        metrics={
            "test_images": work.ledger.test_images,
            "test_accuracy": {p: records[v.name].accuracy for p, v in variants.items()},
        },
        latency={
            "machine": bench.machine,
            "settings": bench.settings,
            "median_ms": {p: records[v.name].median_ms for p, v in variants.items()},
            "ratio_to_dense": {p: records[v.name].ratio_to_dense for p, v in variants.items()},
        },
        provenance={
            "recipe": recipe.name,
            "seed": recipe.seed,
            "model": recipe.model.factory,
            "weights": _weights_name(recipe),
            "calibration_images": recipe.deploy.calibration_images,
        },
    )
    _write_samples(work)
    size = sum(f.stat().st_size for f in (out / "bundle").iterdir())
    view.notes.append(f"{size / 1e6:.2f} MB, ships {recipe.deploy.ship}")
    return Outcome({"bytes": float(size)})


def _weights_name(recipe: Recipe) -> str:
    """Where the weights came from, without this machine's folders."""
    if recipe.source is not None:
        return f"pretrained on {recipe.source.data.kind}"
    return Path(recipe.model.weights).name if recipe.model.weights else "random"


def _write_samples(work: Workspace) -> None:
    """The first test image of each class, to try the bundle on."""
    folder = work.out / "samples"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    split = work.target.splits["test"]
    labels = split.labels.tolist()
    prefers_colour = work.recipe.preprocessing.mode == "RGB"
    for label, name in enumerate(work.target.classes[:10]):
        if label in labels:
            safe = "".join(c if c.isalnum() or c in "-_" else "_" for c in name)
            file = folder / f"{safe}.png"
            file = folder / f"{safe}-{label}.png" if file.exists() else file
            split.images[labels.index(label)].convert("RGB" if prefers_colour else "L").save(file)


# Latency as a budget --------------------------------------------------------------------------------------


def _measure(work: Workspace) -> Callable[[nn.Module], float]:
    """A function from a network to its latency as a share of the dense one's, on ONNX Runtime."""
    settings = work.recipe.deploy

    def share(model: nn.Module) -> float:
        with TemporaryDirectory() as folder, ExitStack() as stack:
            engines = []
            for name, network in (("dense", work.load("teacher")), ("cut", model)):
                path = export_onnx(network, work.example, Path(folder) / f"{name}.fp32.onnx")
                engine = stack.enter_context(load_engine(path, threads=settings.threads))
                engine.name = name
                engines.append(engine)
            (name,) = tuple(engines[0].inputs)
            image = work.target.splits["val"].inputs(0, 1).numpy()
            records = deploy.benchmark(engines, {name: image}, reference="dense", rounds=settings.rounds)
        ratio = records[1].ratio_to_dense
        assert ratio is not None
        return ratio

    return share
