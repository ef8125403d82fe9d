"""The stage that fine-tunes the student for int8, between distilling and lowering."""

from __future__ import annotations

import torch

from compress import artifact, stages
from compress.qat import rounded
from compress.run.lower import calibration
from compress.run.variants import AWARE
from compress.stages import Outcome
from compress.train.ranks import once
from compress.ui import StageView
from compress.workspace import Workspace


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
        result, flops, notes = stages.taught(work, AWARE, recipe, networks, plan, seed, view.advance)
    student.requires_grad_(True)
    once(lambda: str(artifact.save(student, work.folder(AWARE), artifact.describe(work.folder("student")))))
    view.notes.append(stages.on_validation(work, result))
    return Outcome({"val_accuracy": result.val_accuracy}, flops, notes)
