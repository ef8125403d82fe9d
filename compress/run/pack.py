"""The last stage: the bundle, and a few test images to try it on."""

from __future__ import annotations

import shutil
from pathlib import Path

from compress.recipe import Recipe
from compress.run.variants import variants_of
from compress.stages import Outcome
from compress.ui import StageView
from compress.workspace import Workspace
from deploy.lowering import lowered
from deploy.preprocess import Preprocessing
from deploy.records import Bench


def bundle(work: Workspace, view: StageView) -> Outcome:
    """Packs what a product needs, and a few test images to try it on."""
    from deploy.bundle import write_bundle

    recipe, out = work.recipe, work.out
    bench = Bench.from_file(out / "bench.json")
    variants = {v.precision: v for v in variants_of(recipe) if v.model == "student"}
    records = {r.name: r for r in bench.records}
    write_bundle(
        out / "bundle",
        models={p: out / v.onnx for p, v in variants.items()},
        default=recipe.deploy.ship,
        preprocessing=Preprocessing(**recipe.preprocessing.model_dump()),
        classes=work.target.classes,
        task=work.target.task,
        postprocessing=lowered(work.load("student"), work.target.task, work.example)[2],
        metrics={
            "test_images": work.ledger.test_images,
            "metric": work.ledger.metric,
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
    """The first test image of each class, or the first few where an image holds many, to try the bundle on."""
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
