"""The stages of a run, in order: one tuple, which nothing else in the tree repeats."""

from __future__ import annotations

from compress.artifact import WEIGHTS
from compress.recipe.schema import Recipe
from compress.run.sensitivity import SENSITIVITY
from compress.run.stages import bundle, distill, export, measure, prune, qat, sparse, train
from compress.run.stages.base import Stage
from compress.run.variants import AWARE, ENGINES, PARITY, variants_of
from compress.run.workspace import saved_in

__all__ = ["STAGES", "Stage"]


def _network(name: str) -> tuple[str, str]:
    """Return the files of a saved network."""
    return f"{saved_in(name)}/model.json", f"{saved_in(name)}/{WEIGHTS}"


def _onnx(recipe: Recipe) -> tuple[str, ...]:
    made = [variant.onnx for variant in variants_of(recipe)]
    # TensorRT's int8 file lies beside the one of the other runtimes.
    return PARITY, *made, *(name.replace(".int8.onnx", ".int8.trt.onnx") for name in made if ".int8." in name)


def _always(recipe: Recipe) -> bool:
    return True


def _deploys(recipe: Recipe) -> bool:
    return recipe.deploy is not None


def _sparse_teacher(recipe: Recipe) -> bool:
    """Tell whether the teacher is thinned before the student is cut from it."""
    return recipe.distill.teacher == "sparse"


def _read_by_prune(recipe: Recipe) -> tuple[str, ...]:
    """Between rounds the network learns as ``distill`` says, and a latency is timed as ``deploy`` says."""
    rounds = ("distill",) if recipe.prune.rounds > 1 else ("distill.reuse_classifier",)
    timed = ("deploy",) if recipe.prune.budget.latency is not None else ()
    return "prune", "order", "distill.teacher", *rounds, *timed


STAGES: tuple[Stage, ...] = (
    Stage(
        "pretrain",
        "Pretrain on the source domain",
        train.pretrain,
        lambda recipe: (train.PRETRAINED,),
        "all",
        lambda recipe: recipe.source is not None,
    ),
    Stage(
        "transfer",
        "Fine-tune on the target: the teacher",
        train.transfer,
        lambda recipe: _network("teacher"),
        "all",
        _always,
        lambda recipe: ("transfer",),
    ),
    Stage(
        "twin",
        "Train the teacher's twin from scratch",
        train.twin,
        lambda recipe: _network("twin"),
        "all",
        lambda recipe: recipe.twin,
    ),
    Stage(
        "thin",
        "Thin the teacher before it teaches",
        sparse.thin,
        lambda recipe: (*_network("sparse"), *sparse.outputs(recipe)),
        "all",
        _sparse_teacher,
        lambda recipe: ("sparse",) if _sparse_teacher(recipe) else (),
    ),
    Stage(
        "prune",
        "Prune whole channels and prove the cut",
        prune.cut,
        lambda recipe: (*_network("pruned"), *((SENSITIVITY,) if recipe.prune.sensitivity else ())),
        "all",
        _always,
        _read_by_prune,
    ),
    Stage(
        "distill",
        "Distil the student from the teacher",
        distill.distil,
        lambda recipe: _network("student"),
        "all",
        _always,
        lambda recipe: ("distill",),
    ),
    Stage(
        "finetuned",
        "Fine-tune it without a teacher",
        distill.finetuned,
        lambda recipe: _network("finetuned"),
        "all",
        lambda recipe: "finetuned" in recipe.distill.compare,
    ),
    Stage(
        "scratch",
        "Train the small network from scratch",
        distill.scratch,
        lambda recipe: _network("scratch"),
        "all",
        lambda recipe: "scratch" in recipe.distill.compare,
    ),
    Stage(
        "scratch_e",
        "Train it from scratch for the large network's epochs",
        distill.scratch_e,
        lambda recipe: _network("scratch_e"),
        "all",
        lambda recipe: "scratch_e" in recipe.distill.compare,
    ),
    Stage(
        "scratch_b",
        "Train it from scratch by the large network's computation",
        distill.scratch_b,
        lambda recipe: _network("scratch_b"),
        "all",
        lambda recipe: "scratch_b" in recipe.distill.compare,
    ),
    Stage(
        "sparse",
        "Set single weights to zero",
        sparse.thin,
        lambda recipe: (*_network("sparse"), *sparse.outputs(recipe)),
        "all",
        lambda recipe: recipe.sparse is not None and not _sparse_teacher(recipe),
        lambda recipe: ("sparse",),
    ),
    Stage(
        AWARE,
        "Fine-tune the student for int8",
        qat.train_for_int8,
        lambda recipe: _network(AWARE),
        "all",
        lambda recipe: recipe.deploy is not None and recipe.deploy.qat is not None,
        lambda recipe: ("deploy.qat",),
    ),
    Stage(
        "export",
        "Lower to ONNX and check parity",
        export.export,
        _onnx,
        "first",
        _deploys,
        lambda recipe: ("deploy",),
    ),
    Stage(
        "build",
        "Build TensorRT-RTX engines",
        export.build,
        lambda recipe: (ENGINES,),
        "first",
        lambda recipe: recipe.deploy is not None and bool(recipe.deploy.rtx_targets),
        # The automatic operator set depends on what the files are for.
        lambda recipe: () if recipe.deploy is not None and recipe.deploy.opset == "auto" else ("deploy.rtx_targets",),
    ),
    Stage("test", "Measure accuracy on the test split", measure.test, lambda recipe: (), "first", _always),
    Stage(
        "bench",
        "Measure latency, interleaved",
        measure.bench,
        lambda recipe: ("bench.json",),
        "first",
        _deploys,
        lambda recipe: ("deploy.rounds", "deploy.ship"),
    ),
    Stage(
        "bundle",
        "Pack the bundle",
        bundle.bundle,
        lambda recipe: ("bundle/manifest.json",),
        "first",
        _deploys,
        lambda recipe: ("name", "model.licence"),
    ),
)
"""Every stage, in the order in which a run goes through those that its recipe wants."""
