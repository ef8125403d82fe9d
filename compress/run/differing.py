"""The test images on which student and teacher differ most: noted in the one evaluation, shown by the report."""

from __future__ import annotations

import hashlib
import io
import shutil
from pathlib import Path

import torch
from PIL import ImageOps
from torch import Tensor

from compress.data.files import FileImages
from compress.data.images import Batch, Split
from compress.run.ledger import DifferingImage, DifferingImages
from compress.run.workspace import Workspace

FOLDER = "differing"
"""The folder, in that of the run, that holds the pictures: ``0.png`` is of the first image in the ledger."""
SHOWN = 8
SIDE = 96


class TopAnswers:
    """What a classifier answers to each image of a split, in its order: the class and the probability of it.

    Args:
        asked: int64 (N,), of each image a class whose probability is wanted too, such as another network's answer.
    """

    def __init__(self, asked: Tensor | None = None) -> None:
        self._asked = asked
        self._parts: list[tuple[Tensor, ...]] = []

    def add(self, predictions: Tensor, batch: Batch) -> None:
        """Note logits (N, classes) of the next batch; ``evaluate`` calls it."""
        shares = predictions.float().softmax(1).cpu()
        found, answers = shares.max(1)
        asked = answers if self._asked is None else self._asked[batch.index.cpu()]
        self._parts.append((answers, found, shares.gather(1, asked[:, None])[:, 0]))

    @property
    def classes(self) -> Tensor:
        """The answers, int64 (N,)."""
        return torch.cat([part[0] for part in self._parts])

    @property
    def probabilities(self) -> Tensor:
        """The probability of each answer, float32 (N,)."""
        return torch.cat([part[1] for part in self._parts])

    @property
    def of_asked(self) -> Tensor:
        """The probability of the class that was asked for, else of the answer, float32 (N,)."""
        return torch.cat([part[2] for part in self._parts])


def by_class(answers: Tensor, split: Split, classes: tuple[str, ...]) -> dict[str, float]:
    """Return the share of each class's test images that is answered rightly, as ``accuracy_CLASS``."""
    labels = split.labels.cpu()
    shares = {}
    for index, name in enumerate(classes):
        own = labels == index
        if own.any():  # a class without a test image has no such share
            shares[f"accuracy_{name}"] = float((answers[own] == index).double().mean())
    return shares


def note_differing(work: Workspace, teacher: TopAnswers, student: TopAnswers) -> DifferingImages:
    """Write a picture of each of the images that differ most and return what the ledger keeps of them.

    Of the images that are answered differently, those come first of which the student finds the teacher's answer less
    probable than the teacher does by the most; of equals the first of the split.

    Args:
        work: the run, whose test split was answered.
        teacher: its answers.
        student: its answers, which were asked for the teacher's classes.
    """
    split, classes = work.target.splits["test"], work.target.classes
    differs = (teacher.classes != student.classes).nonzero()[:, 0]
    gap = (teacher.probabilities.double() - student.of_asked.double())[differs]
    # What is not finite is no probability; it comes last and is not shown.
    order = torch.argsort(gap.nan_to_num(nan=-2.0), descending=True, stable=True)
    chosen = [int(i) for i in differs[order][gap[order].isfinite()][:SHOWN]]
    folder = work.out / FOLDER
    shutil.rmtree(folder, ignore_errors=True)
    mode = "RGB" if work.recipe.preprocessing.mode == "RGB" else "L"
    images = []
    for place, index in enumerate(chosen):
        picture = _picture(split, index, mode)
        folder.mkdir(exist_ok=True)
        (folder / f"{place}.png").write_bytes(picture)
        images.append(
            DifferingImage(
                index=index,
                file=_file(split, index, getattr(work.recipe.target, "path", None)),
                label=classes[int(split.labels[index])],
                teacher=classes[int(teacher.classes[index])],
                teacher_probability=float(teacher.probabilities[index]),
                student=classes[int(student.classes[index])],
                student_probability=float(student.probabilities[index]),
                picture=hashlib.sha256(picture).hexdigest(),
            )
        )
    return DifferingImages(total=len(differs), images=tuple(images))


def _picture(split: Split, index: int, mode: str) -> bytes:
    """Return an image as PNG of at most 96 x 96 pixels, upright."""
    image = ImageOps.exif_transpose(split.images[index]).convert(mode)
    image.thumbnail((SIDE, SIDE))
    buffer = io.BytesIO()
    # Nothing but the pixels: a place or a name in the file's own notes is nobody's business here.
    image.info = {}
    image.save(buffer, "PNG")
    return buffer.getvalue()


def _file(split: Split, index: int, root: str | None) -> str | None:
    """Return an image's file, relative to the data set; None where it is made from none."""
    if not isinstance(split.images, FileImages):
        return None
    path = split.images.paths[index]
    inside = root is not None and path.is_relative_to(Path(root))
    name = path.relative_to(Path(root)).as_posix() if inside and root is not None else path.name
    # A name that is no UTF-8 could not be written to the ledger.
    return name.encode(errors="backslashreplace").decode()
