"""Before anything is written: the whole request is checked, then the folder is made or taken up."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from pydantic import ValidationError

import cpp_ext
from compress import data
from compress.data import ImageData, ImageReader
from compress.data.fingerprint import data_hash
from compress.data.geometry import Geometry
from compress.errors import ImageError, RecipeError
from compress.files import write_text
from compress.recipe.schema import Recipe
from compress.run.ledger import Ledger
from compress.run.order import check_order
from compress.run.origin import source_commit
from compress.run.preflight import alone, check_model, check_source, going_on, stored, sweep, what_changed
from compress.run.progress import Ui
from compress.run.standing import first_touched
from compress.run.transfer import teacher_of
from compress.run.variants import exporting
from compress.run.workspace import Workspace
from compress.train import TASKS
from compress.train.checkpoint import differences, made_by
from compress.train.log import check_tensorboard
from compress.validation import explain
from deploy.engines.tensorrt.building import import_api, targets
from deploy.environment import machine_info, versions_info
from deploy.errors import DeployError, MissingDependency
from deploy.exporting.lowering import lower
from deploy.exporting.torch_to_onnx import check_free_size
from deploy.onnx.opsets import opset_for
from deploy.processing import preprocess
from deploy.processing.preprocess import Preprocessing


def _check_lowering(recipe: Recipe, target: ImageData) -> None:
    """Check before any training that the network can be split for its ONNX file as the recipe asks."""
    if recipe.deploy is None:
        return
    _check_targets(recipe.deploy.rtx_targets)
    inside, settings = recipe.deploy.in_graph, exporting(recipe.deploy)
    opset_for(settings["runtimes"], settings["opset"])
    if inside and target.task == "classification":
        raise RecipeError("deploy.in_graph is true, but a classifier has nothing to take into the graph; leave it out.")
    if target.task != "classification" or recipe.deploy.dynamic_size:
        example = target.example(2)
        module = lower(teacher_of(recipe, target), target.task, example, in_graph=inside).module
        if recipe.deploy.dynamic_size:
            check_free_size(module, example)


def _check_targets(asked: Sequence[str]) -> None:
    """Check before any training that the builder, where there is one, knows the GPUs that engines are asked for."""
    try:
        known = targets(import_api("tensorrt_rtx")) if asked else list(asked)
    except MissingDependency:  # the stage that builds says so and goes on
        return
    for target in asked:
        if target not in known:
            raise RecipeError(f"deploy.rtx_targets: TensorRT-RTX cannot build for {target}; name {', '.join(known)}.")


def prepare(recipe: Recipe, out: Path, resume: bool) -> Workspace:
    """Check the whole request, then make the folder or take up the one that is there.

    Raises:
        NiwakiError, DeployError: one sentence about what cannot be used; nothing was written then.
    """
    resuming = going_on(recipe, out, resume)
    check_tensorboard(recipe.tensorboard)
    reader, target = read_data(recipe)
    if resuming:
        if stored(out, recipe) != recipe:
            check_model(recipe, target)
            _check_lowering(recipe, target)
        return Workspace(recipe, out, reader, target, Ledger.read(out / "ledger.json"))
    kernels = cpp_ext.kernels_in_use()
    check_model(recipe, target)
    _check_lowering(recipe, target)
    ledger = Ledger(
        name=recipe.name,
        seed=recipe.seed,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        kernels=kernels if kernels == "reference" else f"{kernels}, {cpp_ext.instruction_set()}",
        machine={**machine_info(), "threads": torch.get_num_threads()},
        versions=versions_info(),
        task=target.task,
        metric=TASKS[target.task].title,
        classes=target.classes,
        test_images=len(target.splits["test"]),
        made_by=made_by(),
        commit=source_commit(),
        data_sha256=data_hash(target),
    )
    work = Workspace(recipe, out, reader, target, ledger)
    if recipe.source is not None:
        check_source(recipe, work.source)
        check_order(work)
    out.mkdir(parents=True, exist_ok=True)
    with alone(out):
        # Another process may have begun a run here while this one checked its own.
        if going_on(recipe, out, resume=False):
            raise RecipeError(f"The folder {out} now holds a run; choose another --out.")
        (out / "checkpoints").mkdir(exist_ok=True)
        write_text(out / "recipe.yaml", recipe.to_yaml())
        work.write_ledger()
        work.log("start", name=recipe.name, seed=recipe.seed)
    return work


def take_up(work: Workspace, ui: Ui) -> None:
    """Bring a resumed run up to what is asked and used now; this process holds the folder."""
    sweep(work.out)
    work.ledger = Ledger.read(work.out / "ledger.json")  # another process may have gone on since it was first read
    was = stored(work.out, work.recipe)
    if was is not None and was != work.recipe:
        said = what_changed(was, work.recipe)
        ui.line(said)
        work.log("changed", why=said)
        place = first_touched(was, work.recipe)
        if place is not None:
            if place <= len(work.ledger.stages):
                work.forget_trainings()
            # Before the recipe: whoever is killed in between finds the change again.
            work.take_back(min(place, len(work.ledger.stages)))
            work.write_ledger()
        write_text(work.out / "recipe.yaml", work.recipe.to_yaml())
    # Said once, however often the run is resumed so.
    new = tuple(note for note in differences(work.ledger.made_by) if note not in work.ledger.notes)
    if new:
        ui.line(" ".join(new))
        work.log("resume", notes=new)
        work.note(new)


def _loaded(given: Any, read: Callable[[Any], Image.Image] = preprocess.load) -> Image.Image:
    """Read a file, or take an image, as the bundle does; raise ImageError for what may be left out of a data set."""
    try:
        return read(given)
    except DeployError as error:
        raise ImageError(str(error)) from None


def _seen(preprocessing: Preprocessing, image: Image.Image) -> Geometry:
    """Return what masks and boxes have to follow."""
    return Geometry(preprocessing.visible_box(image), preprocessing.size)


def reader_of(preprocessing: Preprocessing) -> ImageReader:
    """Return how images become inputs, by the functions that a bundle uses."""
    load, show = (partial(_loaded, read=read) for read in (preprocessing.load, preprocessing.show))
    return ImageReader(load, preprocessing, partial(_seen, preprocessing), show)


def join(recipe: Recipe, out: Path) -> Workspace:
    """Return what the other processes of a run work with, once the first one has prepared the folder."""
    reader, target = read_data(recipe)
    return Workspace(recipe, out, reader, target, Ledger.read(out / "ledger.json"))


def read_data(recipe: Recipe) -> tuple[ImageReader, ImageData]:
    """Read the target data that a recipe names; raise RecipeError or DataError where it cannot be used."""
    try:
        preprocessing = Preprocessing(**recipe.preprocessing.model_dump())
    except ValidationError as error:
        raise RecipeError(f"{explain(error, under='preprocessing')}; change it in the recipe.") from None
    reader = reader_of(preprocessing)
    target = data.load(recipe.target, reader, recipe.seed)
    if "test" not in target.splits:
        raise RecipeError("target.kind rendered_digits has no test split; use it under source, not under target.")
    return reader, target
