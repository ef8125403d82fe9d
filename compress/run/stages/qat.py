"""The stage that fine-tunes the student for int8, between distilling and lowering."""

from __future__ import annotations

import torch

from compress import artifact
from compress.run.progress import StageView
from compress.run.stages import train
from compress.run.stages.export import calibration
from compress.run.stages.train import Outcome
from compress.run.variants import AWARE
from compress.run.workspace import Workspace
from compress.train.fake_quantize import rounded
from compress.train.ranks import once


def aware(work: Workspace, view: StageView) -> Outcome:
    """Distils the student some more with rounded weights and activations; the int8 file is made from what comes out."""
    settings = work.deploy.qat
    assert settings is not None
    # Statistics stay what they are: the file that is quantised has them folded into the weights.
    update = {"epochs": settings.epochs, "lr": settings.lr, "training_flops": None, "batchnorm": "frozen"}
    if work.target.task == "classification":
        update["reuse_classifier"] = False  # the student's own has learned since
    recipe = work.recipe.distill.model_copy(update=update)
    student = work.load("student")
    networks, seed = (work.load("teacher"), student), work.recipe.seed + 5
    plan = artifact.describe(work.folder("pruned")).plan
    assert plan is not None
    images = [torch.from_numpy(image)[None] for image in calibration(work)]
    with rounded(student, images):
        result, flops, notes = train.taught(work, AWARE, recipe, networks, plan, seed, view.advance)
    student.requires_grad_(True)
    once(lambda: str(artifact.save(student, work.folder(AWARE), artifact.describe(work.folder("student")))))
    view.notes.append(train.on_validation(work, result))
    return Outcome({"val_accuracy": result.val_accuracy}, flops, notes)
