"""The stages that measure: accuracy on the test split, latency of every engine."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import deploy
from compress.files import read_bytes, write_text
from compress.run.calibration import calibration_images
from compress.run.differing import TopAnswers, by_class, note_differing
from compress.run.evaluation import accuracy_of_file
from compress.run.latency import LatencyJob, after_training, timed_by_runtime, timed_precision
from compress.run.ledger import ModelEntry, Outcome
from compress.run.progress import StageView
from compress.run.reliability import reliability
from compress.run.variants import ENGINES, PARITY, Variant, variants_of
from compress.run.workspace import Workspace
from compress.train import TASKS, evaluate
from deploy.bench.conditions import noisy_line
from deploy.bench.records import Bench, Record
from deploy.bench.shipping import EQUAL, Runtime, ShipDecision, choose
from deploy.engines import load_engine
from deploy.engines.cores import over_cores


def test(work: Workspace, view: StageView) -> Outcome:
    """Measure, once, every network on the test split, and every engine that is not a network's own fp32."""
    split, task = work.target.splits["test"], TASKS[work.target.task]
    metrics: dict[str, float] = {}
    models: list[ModelEntry] = []
    classifies, known = task.name == "classification", dict[str, TopAnswers]()
    lowered = [v for v in variants_of(work.recipe) if v.precision != "fp32"]
    total = len(work.ledger.models) + len(lowered)
    for entry in work.ledger.models:
        view.advance(len(metrics), total, entry.title)
        # The student is asked about the teacher's answers in the same evaluation: the split is read for no other.
        answers = TopAnswers(asked=known["teacher"].classes if classifies and "teacher" in known else None)
        seen = answers.add if classifies else None
        found = evaluate(work.load(entry.name), work.target, "test", work.fabric, seen=seen)
        metrics[entry.name] = found[task.selects]
        filled: dict[str, Any] = {"test_accuracy": found[task.selects], "test_metrics": found}
        if classifies:
            known[entry.name] = answers
            filled["test_metrics"] = found | by_class(answers.classes, split, work.target.classes)
            filled |= {"test_correct": round(found["top1"] * len(split)), "test_total": len(split)}
            filled |= {"test_reliability": reliability(answers, split.labels)}
        models.append(entry.model_copy(update=filled))
    for variant in lowered:
        view.advance(len(metrics), total, f"{variant.model} {variant.precision}")
        metrics[variant.name] = accuracy_of_file(work, work.out / variant.onnx, "test")
    view.notes.append(
        f"teacher {100 * metrics['teacher']:.1f} %, student {100 * metrics['student']:.1f} % "
        f"{task.title} on {len(split)} test images"
    )
    differing = note_differing(work, known["teacher"], known["student"]) if classifies else None
    return Outcome(metrics=metrics, models=tuple(models), differing=differing)


def bench(work: Workspace, view: StageView) -> Outcome:
    """Time every engine against the dense teacher in one sitting, write ``bench.json`` and decide what ships."""
    recipe, settings = work.recipe, work.deploy
    variants = variants_of(recipe)
    records = _timed(work, view, variants)
    shipping, refused = decide(work)
    if shipping.runtime != "onnxruntime":
        # What runs first is what the report and the terminal tell of.
        records += _timed(work, view, variants, shipping.runtime)
    timed = Bench(
        name=recipe.name,
        settings={
            "threads": settings.threads,
            "batch": 1,
            "rounds": settings.rounds,
            "pruning_kernels": work.ledger.kernels,
        },
        records=(*records, *_built_records(work.out)),
    )
    write_text(work.out / "bench.json", timed.to_json())
    metrics = {f"speedup_{r.name}": r.speedup or 0.0 for r in records}
    named = next(v.name for v in variants if v.model == "student" and v.precision == shipping.precision)
    shown = next(r for r in reversed(records) if r.name in (named, f"{named}-{shipping.runtime}"))
    times = f"{shown.min_ms:.2f} ms at best, {shown.median_ms:.2f} median"
    view.notes.append(f"{shown.name}: {times}, {shown.speedup:.2f}x the dense network")
    noise = None if shown.conditions is None else shown.conditions.noise()
    crowded = over_cores(settings.threads)
    said = (crowded, None if noise is None else noisy_line(noise))
    notes = (f"The bundle {shipping}", *refused, *(one for one in said if one is not None))
    plan: dict[str, Any] | None = None
    if recipe.prune.budget.latency is not None and recipe.prune.latency_table is None:
        job = LatencyJob(recipe, work.target.task, work.example, calibration_images(work)[:4], advance=view.advance)
        shipped = next(v for v in variants if v.model == "student" and v.precision == shipping.precision)
        found = after_training(job, work.load("teacher"), work.out / shipped.onnx)
        metrics |= {"latency_share": found["share"], "latency_asked": found["asked"]}
        notes, plan = (*notes, found["said"]), {**(work.ledger.plan or {}), "latency": found}
    return Outcome(metrics=metrics, shipping=shipping, notes=notes, plan=plan)


def decide(work: Workspace) -> tuple[ShipDecision, tuple[str, ...]]:
    """Time the student's files on every runtime here and choose what ships, or keep to what the recipe asks for.

    The second value has a sentence for each runtime that refuses them.
    """
    settings = work.deploy
    files = {
        v.precision: (work.out / v.onnx, work.ledger.figure(f"val_accuracy_{v.name}"))
        for v in variants_of(work.recipe)
        if v.model == "student"
    }
    image = work.target.splits["val"].inputs(0, 1).numpy()
    timed, refused = timed_by_runtime(files, image, settings.threads, settings.rounds)
    drop = EQUAL if settings.accuracy_drop is None else settings.accuracy_drop
    # A latency was asked for, and the network cut, in one precision: that one ships.
    asked = settings.ship if work.recipe.prune.budget.latency is None else timed_precision(settings)
    runtime = settings.runtime if "runtime" in settings.model_fields_set else None
    return choose(timed, asked, max_drop=drop, runtime=runtime), refused


def _timed(
    work: Workspace, view: StageView, variants: Sequence[Variant], runtime: Runtime = "onnxruntime"
) -> list[Record]:
    """Time all engines in turns.

    Those of ONNX Runtime have the engine's test accuracy and its parity with torch, which were measured through it. Of
    another runtime, whose name they end in, there are times alone, which a gate shows and does not hold: the next run
    may have chosen the other one.
    """
    ending = "" if runtime == "onnxruntime" else f"-{runtime}"
    checked = json.loads(read_bytes(work.out / PARITY))
    with ExitStack() as stack:
        engines = []
        for variant in variants:
            path = work.out / variant.onnx
            engine = stack.enter_context(load_engine(path, threads=work.deploy.threads, runtime=runtime))
            engine.name = variant.name + ending
            engines.append(engine)
        (name,) = tuple(engines[0].inputs)
        records = deploy.benchmark(
            engines,
            {name: work.target.splits["val"].inputs(0, 1).numpy()},
            reference=f"dense{ending}",
            rounds=work.deploy.rounds,
            progress=lambda done, total: view.advance(done, total, "rounds"),
        )
    if ending:
        return [
            record.model_copy(update={"model": variant.model, "held": False})
            for record, variant in zip(records, variants, strict=True)
        ]
    known = [
        {"model": v.model, "accuracy": _test_accuracy(work, v), "parity": checked[v.name], "held": v.held}
        for v in variants
    ]
    pairs = zip(records, known, strict=True)
    return [Record.model_validate(record.model_dump() | more) for record, more in pairs]


def _test_accuracy(work: Workspace, variant: Variant) -> float | None:
    """Return what the test measured: a network's own in fp32, the engine's in a lower precision."""
    if variant.precision == "fp32":
        return work.ledger.model(variant.model).test_accuracy
    return work.ledger.figure(variant.name)


def _built_records(out: Path) -> Iterator[Record]:
    """Record the engines for GPUs as built, with the reason why they have no times."""
    listed = out / ENGINES
    for built in json.loads(read_bytes(listed)) if listed.is_file() else []:
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
