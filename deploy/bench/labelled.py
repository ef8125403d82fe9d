"""Measure the accuracy of a classifier on a folder of labelled images, by what its file or bundle says of itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from deploy.bundle.bundle import Bundle
from deploy.engines.base import Engine
from deploy.errors import DeployError
from deploy.onnx.metadata import Metadata
from deploy.processing.files import SUFFIXES
from deploy.processing.preprocess import Preprocessing

_BATCH = 16


def accuracy_on(engine: Engine, path: Path, folder: Path) -> tuple[float, int] | None:
    """Return the share of the images that ``engine`` gets right, and how many there are; None where none has a label.

    Args:
        engine: of a classifier.
        path: what it was opened from, a file or a bundle's folder.
        folder: one folder of images for each class, by the classes' names. One without any of the classes has images
            without labels; so has any for a network that does not name its classes and how images are prepared, or is
            no classifier.

    Raises:
        DeployError: an image cannot be read, or the network gives no scores of classes.
    """
    said = _said_by(engine, path)
    if said is None:
        return None
    classes, preprocessing = said
    labelled = [
        (image, index)
        for index, name in enumerate(classes)
        for image in sorted((folder / name).glob("*") if _plain(name) else ())
        if image.suffix.lower() in SUFFIXES
    ]
    if not labelled:
        return None
    right = 0
    single = any(spec.shape[:1] == (1,) for spec in engine.inputs.values())
    step = 1 if single else _BATCH
    for start in range(0, len(labelled), step):
        part = labelled[start : start + step]
        right += _right(engine, preprocessing, [image for image, _ in part], [index for _, index in part])
    return right / len(labelled), len(labelled)


def _plain(name: str) -> bool:
    return name not in ("", ".", "..") and not set(name) & {"/", "\\", "\0"}


def _said_by(engine: Engine, path: Path) -> tuple[tuple[str, ...], Preprocessing] | None:
    if isinstance(engine, Bundle):
        return (engine.classes, engine.preprocessing) if engine.manifest.task == "classification" else None
    said = Metadata.from_file(path) if path.suffix == ".onnx" else Metadata()
    return None if said.classes is None or said.preprocessing is None else (said.classes, said.preprocessing)


def _right(engine: Engine, preprocessing: Preprocessing, images: list[Path], labels: list[int]) -> int:
    if isinstance(engine, Bundle):
        return sum(row["index"] == label for row, label in zip(engine.predict(images, top=1), labels, strict=True))
    (name,) = engine.inputs
    outputs = engine.run({name: np.stack([preprocessing(preprocessing.load(image)) for image in images])})
    scores = next(iter(outputs.values()))
    if scores.ndim != 2:
        raise DeployError(
            f"{engine.name} gives {list(scores.shape)}, not scores of classes; --data is for classifiers."
        )
    return int((scores.argmax(axis=1) == np.asarray(labels)).sum())
