"""The stages that measure: accuracy on the test split, latency of every engine, latency as a budget."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import nn

import deploy
from compress.files import write_text
from compress.run.progress import StageView
from compress.run.stages.train import Outcome
from compress.run.variants import ENGINES, PARITY, exporting, lowered_of, variants_of
from compress.run.workspace import Workspace
from compress.train import TASKS, evaluate
from compress.train.ranks import measured_alone
from deploy.bench.records import Bench, Record
from deploy.engines import load_engine
from deploy.exporting.torch_to_onnx import export_onnx

EVALUATION_BATCH = 64
OPENVINO_SHARE = "openvino_time_of_onnxruntime"


def test(work: Workspace, view: StageView) -> Outcome:
    """Touches the test split, once, with every network and every engine that is not a network's own fp32."""
    split, task = work.target.splits["test"], TASKS[work.target.task]
    metrics: dict[str, float] = {}
    lowered = [v for v in variants_of(work.recipe) if v.precision != "fp32"]
    total = len(work.ledger.models) + len(lowered)
    for entry in work.ledger.models:
        view.advance(len(metrics), total, entry.title)
        found = evaluate(work.load(entry.name), work.target, "test", work.fabric)
        metrics[entry.name] = found[task.selects]
        filled: dict[str, Any] = {"test_accuracy": found[task.selects], "test_metrics": found}
        if task.name == "classification":
            filled |= {"test_correct": round(found["top1"] * len(split)), "test_total": len(split)}
        work.ledger = work.ledger.with_model(entry.model_copy(update=filled))
    for variant in lowered:
        view.advance(len(metrics), total, f"{variant.model} {variant.precision}")
        with load_engine(work.out / variant.onnx, threads=torch.get_num_threads()) as engine:
            metrics[variant.name] = measured(work, engine, "test")[task.selects]
    view.notes.append(
        f"teacher {100 * metrics['teacher']:.1f} %, student {100 * metrics['student']:.1f} % "
        f"{task.title} on {len(split)} test images"
    )
    return Outcome(metrics)


def measured(work: Workspace, engine: deploy.Engine, split: str) -> dict[str, float]:
    """The task's metrics of an engine of the student on one split, through the bundle's own postprocessing."""
    task, student = TASKS[work.target.task], work.load("student")
    _, _, postprocessing = lowered_of(work, student)
    metrics = task.metrics(work.target.classes)
    measured_alone(metrics)
    (name,) = tuple(engine.inputs)
    for batch in work.target.splits[split].batches(EVALUATION_BATCH):
        outputs = engine.run({name: batch.images.numpy()})
        metrics.update(task.read(outputs, postprocessing), batch.targets)
    return metrics.compute()


def bench(work: Workspace, view: StageView) -> Outcome:
    """Times every engine against the dense teacher in one sitting and writes `bench.json`."""
    recipe, out = work.recipe, work.out
    variants = variants_of(recipe)
    accuracy = next(s.metrics for s in work.ledger.stages if s.name == "test")
    checked = json.loads((out / PARITY).read_text(encoding="utf-8"))
    image = work.target.splits["val"].inputs(0, 1).numpy()
    with ExitStack() as stack:
        engines = []
        for variant in variants:
            engine = stack.enter_context(load_engine(out / variant.onnx, threads=work.deploy.threads))
            engine.name = variant.name
            engines.append(engine)
        (name,) = tuple(engines[0].inputs)
        records = deploy.benchmark(
            engines,
            {name: image},
            reference="dense",
            rounds=work.deploy.rounds,
            progress=lambda done, total: view.advance(done, total, "rounds"),
        )
    filled = [
        Record.model_validate(
            record.model_dump()
            | {
                "model": variant.model,
                "accuracy": accuracy[variant.model if variant.precision == "fp32" else variant.name],
                "parity": checked[variant.name],
                "held": variant.held,
            }
        )
        for record, variant in zip(records, variants, strict=True)
    ]
    bench = Bench(
        name=recipe.name,
        settings={
            "threads": work.deploy.threads,
            "batch": 1,
            "rounds": work.deploy.rounds,
            "pruning_kernels": work.ledger.kernels,
        },
        records=(*filled, *_built_records(out)),
    )
    write_text(out / "bench.json", bench.to_json())
    metrics = {f"speedup_{r.name}": r.speedup or 0.0 for r in filled}
    shipped = next(v for v in variants if v.model == "student" and v.precision == work.deploy.ship)
    if (share := openvino_share(out / shipped.onnx, image, work.deploy.threads, work.deploy.rounds)) is not None:
        metrics[OPENVINO_SHARE] = share
    last = filled[-1]
    view.notes.append(f"{last.name}: {last.median_ms:.2f} ms, {last.speedup:.2f}x the dense network")
    return Outcome(metrics)


def openvino_share(path: Path, image: np.ndarray, threads: int, rounds: int) -> float | None:
    """OpenVINO's time of ONNX Runtime's, medians of rounds in turns; None where it is not installed."""
    if find_spec("openvino") is None:
        return None
    with ExitStack() as stack:
        engines = []
        for runtime in ("onnxruntime", "openvino"):
            engine = stack.enter_context(load_engine(path, runtime=runtime, threads=threads))
            engine.name = runtime
            engines.append(engine)
        (name,) = tuple(engines[0].inputs)
        return deploy.benchmark(engines, {name: image}, reference="onnxruntime", rounds=rounds)[1].ratio_to_dense


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


def share_of_dense(work: Workspace) -> Callable[[nn.Module], float]:
    """A function from a network to its latency as a share of the dense one's, on ONNX Runtime."""

    def share(model: nn.Module) -> float:
        settings = work.deploy
        with TemporaryDirectory() as folder, ExitStack() as stack:
            engines = []
            for name, network in (("dense", work.load("teacher")), ("cut", model)):
                module, outputs, _ = lowered_of(work, network)
                path = Path(folder) / f"{name}.fp32.onnx"
                export_onnx(module, work.example, path, output_name=outputs, **exporting(settings))
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
