"""The stage that fine-tunes the student for int8, between distilling and lowering."""

from __future__ import annotations

import torch

from compress import artifact
from compress.run.calibration import calibration_images
from compress.run.ledger import Outcome
from compress.run.progress import StageView
from compress.run.training import DistillJob, distil_student, on_validation
from compress.run.variants import AWARE
from compress.run.workspace import Workspace
from compress.train.fake_quantize import rounded
from compress.train.ranks import once


def train_for_int8(work: Workspace, view: StageView) -> Outcome:
    """Distil the student further with rounded weights and activations; the int8 file is made from the result."""
    settings = work.deploy.qat
    assert settings is not None
    # Statistics stay what they are: the file that is quantised has them folded into the weights.
    update = {"epochs": settings.epochs, "lr": settings.lr, "training_flops": None, "batchnorm": "frozen"}
    if work.target.task == "classification":
        update["reuse_classifier"] = False  # the student's own has learned since
    recipe = work.recipe.distill.model_copy(update=update)
    student = work.load("student")
    # What it begins with has not learned for int8; that file is made without this stage.
    job = DistillJob(AWARE, recipe, work.load("teacher"), student, work.plan(), work.recipe.seed + 5, from_start=False)
    images = [torch.from_numpy(image)[None] for image in calibration_images(work)]
    with rounded(student, images):
        result = distil_student(work, job, view.advance)
    student.requires_grad_(True)
    once(lambda: str(artifact.save(student, work.folder(AWARE), artifact.describe(work.folder("student")))))
    view.notes.append(on_validation(work, result.fit))
    return Outcome(
        metrics={"val_accuracy": result.fit.val_accuracy}, training_flops=result.training_flops, notes=result.notes
    )
