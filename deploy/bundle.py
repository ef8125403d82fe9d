"""A bundle: one folder with everything that prediction needs, every file of it hashed. No pickle, no code."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from PIL import Image

from deploy import preprocess
from deploy.engines import load_engine
from deploy.engines.base import Engine
from deploy.errors import DeployError
from deploy.manifest import Manifest, read_manifest, write_bundle

__all__ = ["Bundle", "load", "write_bundle"]

_BATCH = 32


class Bundle(Engine):
    """A verified bundle; runs as the engine it holds and predicts classes of images.

    Attributes:
        classes: their names, in the order of the network's outputs.
        preprocessing: how an image becomes the network's input.
        manifest: everything else the bundle says about itself.
    """

    def __init__(self, folder: Path, manifest: Manifest, engine: Engine) -> None:
        self.manifest = manifest
        self.classes = manifest.classes
        self.preprocessing = manifest.preprocessing
        self._engine = engine
        self.name = folder.resolve().name
        self.runtime = engine.runtime
        self.precision = engine.precision
        self.inputs = engine.inputs
        self.outputs = engine.outputs
        self.path = engine.path

    @classmethod
    def load(
        cls, path: str | Path, *, precision: str | None = None, threads: int = 1, runtime: str | None = None
    ) -> Self:
        """Verify the bundle at ``path``, every file of it, and load one of its models.

        Args:
            path: the folder.
            precision: which model; by default the one the bundle prefers.
            threads: how many threads one run may use; 0 lets the runtime choose.
            runtime: a key of ``deploy.engines.ENGINES``; by default the file's ending decides.

        Raises:
            DeployError: the folder is no bundle, a file of it is missing or altered, or its parts do not fit.
        """
        folder = Path(path)
        manifest = read_manifest(folder)
        chosen = manifest.default if precision is None else precision
        if chosen not in manifest.models:
            raise DeployError(f"{folder} has no {chosen} model; it has {', '.join(sorted(manifest.models))}.")
        engine = load_engine(folder / manifest.models[chosen].file, threads=threads, runtime=runtime)
        try:
            _check_fit(folder, manifest, engine)
        except DeployError:
            engine.close()
            raise
        return cls(folder, manifest, engine)

    def predict(self, images: Sequence[str | Path | Image.Image], *, top: int = 5) -> list[dict[str, Any]]:
        """Classify ``images``, files or Pillow images.

        Returns:
            For each image ``file`` (None where it has none), ``class``, ``index`` and ``probability`` of the
            likeliest class, and ``top``: up to ``top`` of these three, likeliest first.

        Raises:
            DeployError: the bundle is not for classification, or an image cannot be read.
        """
        if self.manifest.task != "classification":
            raise DeployError(f"{self.name} is for {self.manifest.task}; predict knows only classification.")
        if top < 1:
            raise DeployError(f"top is {top}; ask for 1 class or more.")
        (name,) = self.inputs
        found: list[dict[str, Any]] = []
        for start in range(0, len(images), _BATCH):
            part = images[start : start + _BATCH]
            arrays = [self.preprocessing(_open(image)) for image in part]
            logits = next(iter(self.run({name: np.stack(arrays)}).values()))
            found += [{"file": _file(image), **self._ranked(row, top)} for image, row in zip(part, logits, strict=True)]
        return found

    def close(self) -> None:
        self._engine.close()

    def _run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return self._engine.run(feeds)

    def _ranked(self, logits: np.ndarray, top: int) -> dict[str, Any]:
        shifted = np.exp(logits.astype(np.float64) - logits.max())
        probabilities = shifted / shifted.sum()
        order = np.argsort(-probabilities, kind="stable")[:top].tolist()
        ranked = [{"class": self.classes[i], "index": i, "probability": float(probabilities[i])} for i in order]
        return {**ranked[0], "top": ranked}


def load(path: str | Path, *, precision: str | None = None, threads: int = 1, runtime: str | None = None) -> Bundle:
    """Verify and load the bundle at ``path``; see :meth:`Bundle.load`."""
    return Bundle.load(path, precision=precision, threads=threads, runtime=runtime)


def _check_fit(folder: Path, manifest: Manifest, engine: Engine) -> None:
    """Refuse a bundle whose preprocessing or classes are not those of its network."""
    inputs, outputs = list(engine.inputs.values()), list(engine.outputs.values())
    want = manifest.preprocessing.shape
    fits = len(inputs) == 1 and all(a is None or a == b for a, b in zip(inputs[0].shape[1:], want, strict=False))
    if not fits or len(inputs[0].shape) != 1 + len(want):
        raise DeployError(
            f"{folder} prepares images as {list(want)} but its network takes {', '.join(map(str, inputs))}; "
            "make the bundle again."
        )
    last = outputs[0].shape[-1] if outputs[0].shape else None
    if manifest.task == "classification" and last != len(manifest.classes):
        raise DeployError(
            f"{folder} names {len(manifest.classes)} classes but its network gives {outputs[0]}; make the bundle again."
        )


def _open(image: str | Path | Image.Image) -> Image.Image:
    return image if isinstance(image, Image.Image) else preprocess.load(Path(image))


def _file(image: str | Path | Image.Image) -> str | None:
    return getattr(image, "filename", None) or None if isinstance(image, Image.Image) else str(image)
