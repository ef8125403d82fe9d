"""The last stage: the bundle, and a few test images to try it on."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from torchvision.models import get_model_weights

from compress.artifact import WEIGHTS
from compress.recipe.schema import Recipe
from compress.run.calibration import calibration_images
from compress.run.ledger import Outcome
from compress.run.progress import StageView
from compress.run.stages.measure import decide
from compress.run.variants import lowered_of, variants_of
from compress.run.workspace import Workspace
from deploy.bench.records import Bench
from deploy.bundle.calibration_summary import Calibration
from deploy.bundle.manifest import Weights
from deploy.files import sha256
from deploy.processing.preprocess import Preprocessing


def bundle(work: Workspace, view: StageView) -> Outcome:
    """Pack what a product needs, and a few test images to try it on."""
    from deploy.bundle.writing import BundleSpec, write_bundle

    recipe, out = work.recipe, work.out
    bench = Bench.from_file(out / "bench.json")
    variants = {v.precision: v for v in variants_of(recipe) if v.model == "student"}
    records = {r.name: r for r in bench.records}
    int8, signed = out / "deploy/student.int8.onnx", out / "deploy/student.int8.trt.onnx"
    shipping = work.ledger.shipping or decide(work)[0]  # ledgers of earlier versions hold no decision
    # Of the runtime that runs it first, where that was timed by itself.
    times = {p: records.get(f"{v.name}-{shipping.runtime}", records[v.name]) for p, v in variants.items()}
    write_bundle(
        out / "bundle",
        BundleSpec(
            models={p: out / v.onnx for p, v in variants.items()},
            default=shipping.precision,
            preprocessing=Preprocessing(**recipe.preprocessing.model_dump()),
            classes=work.target.classes,
            task=work.target.task,
            postprocessing=lowered_of(work, work.load("student")).postprocessing,
            metrics={
                "test_images": work.ledger.test_images,
                "metric": work.ledger.metric,
                "test_accuracy": {p: records[v.name].accuracy for p, v in variants.items()},
            },
            latency={
                "machine": bench.machine,
                "settings": bench.settings,
                "median_ms": {p: times[p].median_ms for p in variants},
                "ratio_to_dense": {p: times[p].ratio_to_dense for p in variants},
                "shipping": str(shipping),
            },
            provenance={"recipe": recipe.name, "seed": recipe.seed, "model": recipe.model.factory},
            cpu_runtime=shipping.runtime,
            tensorrt={"int8": signed} if "int8" in variants and signed.is_file() else {},
            calibration=Calibration.of(calibration_images(work), recipe.seed, int8) if "int8" in variants else None,
            licence=recipe.model.licence,
            weights=_weights(recipe),
        ),
    )
    _write_samples(work)
    size = sum(f.stat().st_size for f in (out / "bundle").iterdir())
    view.notes.append(f"{size / 1e6:.2f} MB, ships {shipping.precision}")
    return Outcome(metrics={"bytes": float(size)}, shipping=shipping)


def _weights(recipe: Recipe) -> Weights:
    """Return where the weights came from, without this machine's folders."""
    named = recipe.model.weights
    if named is None:
        return Weights(source="random" if recipe.source is None else f"pretrained on {recipe.source.data.kind}")
    if named != "DEFAULT":
        file = Path(named, WEIGHTS) if Path(named).is_dir() else Path(named)
        return Weights(source=Path(named).name, sha256=sha256(file) if file.is_file() else None)
    known = get_model_weights(recipe.model.factory.partition(":")[2]).DEFAULT
    file = Path(torch.hub.get_dir(), "checkpoints", Path(known.url).name)
    return Weights(source=f"torchvision {known} ({file.name})", sha256=sha256(file) if file.is_file() else None)


def _write_samples(work: Workspace) -> None:
    """Write the first test image of each class, or the first few where an image holds many, to try the bundle on."""
    folder = work.out / "samples"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    split = work.target.splits["test"]
    mode = "RGB" if work.recipe.preprocessing.mode == "RGB" else "L"
    if work.target.task != "classification":
        for index in range(min(4, len(split))):
            split.sample(index)[0].convert(mode).save(folder / f"{index}.png")
        return
    labels = split.labels.tolist()
    for label, name in enumerate(work.target.classes[:10]):
        if label in labels:
            safe = "".join(c if c.isalnum() or c in "-_" else "_" for c in name)
            file = folder / f"{safe}.png"
            file = folder / f"{safe}-{label}.png" if file.exists() else file
            split.images[labels.index(label)].convert(mode).save(file)
