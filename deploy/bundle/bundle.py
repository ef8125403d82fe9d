"""Load a bundle, one folder with all that prediction needs, and predict: every file hashed, no pickle, no code."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Self

import numpy as np
from PIL import Image, ImageOps

from deploy.bundle.decoded import outputs_of, probabilities
from deploy.bundle.engines import load_best
from deploy.bundle.fitting import check_finite, check_outputs
from deploy.bundle.fitting import check_fit as _check_fit
from deploy.bundle.inputs import InputReader
from deploy.bundle.manifest import Manifest
from deploy.bundle.signed import Trust, read_trusted
from deploy.engines.base import Engine
from deploy.engines.cores import over_cores
from deploy.errors import DeployError
from deploy.processing import preprocess
from deploy.processing.postprocess import DetectionDecoder, SegmentationDecoder

_MAX_BATCH = 32
_FIRST = "the first of several frames or pages"
_UNSEEN = 255  # in a mask: a pixel that the network did not see


class Bundle(Engine):
    """A verified bundle: it runs like the engine that it holds, and predicts what images show.

    Attributes:
        classes: their names, in the order of the network's outputs.
        preprocessing: how an image becomes the network's input.
        manifest: everything else that the bundle states.
        why: which file runs on which runtime, why that one, and what was passed over.
    """

    def __init__(self, folder: Path, manifest: Manifest, engine: Engine, why: str = "") -> None:
        self.manifest = manifest
        self.why = why
        self.classes = manifest.classes
        self.preprocessing = manifest.preprocessing
        self._outputs = outputs_of(folder, manifest)
        self._reader = InputReader(manifest.inputs, manifest.preprocessing) if manifest.inputs else None
        self._engine = engine
        self.name = folder.resolve().name
        self.runtime = engine.runtime
        self.precision = engine.precision
        self.inputs = engine.inputs
        self.outputs = engine.outputs
        self.path = engine.path
        # A TensorRT engine takes no larger batch than it was built for, and some files take only single images.
        single = any(spec.shape[:1] == (1,) for spec in engine.inputs.values())
        single = single or (self._reader is not None and not self._reader.stacks)
        self._batch = 1 if single else min(_MAX_BATCH, getattr(engine, "profile", (1, 1, _MAX_BATCH))[2])

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        precision: str | None = None,
        threads: int = 1,
        runtime: str | None = None,
        trust: Trust = Trust(),  # noqa: B008 - frozen
    ) -> Self:
        """Verify every file of the bundle at ``path`` and load what runs it best on this machine.

        First comes an engine in its folder ``engines`` that was built for this machine's GPU, then ONNX Runtime's
        CUDA provider where it starts, then the CPU; ``why`` says which was taken and for what reason.

        Args:
            path: the folder.
            precision: which model; by default the one that the bundle prefers, or that of an engine for the GPU here.
            threads: how many threads one run may use on a CPU; 0 takes as many as cores may be used here.
            runtime: a key of ``deploy.engines.ENGINES``; by default the best here.
            trust: whose signature the bundle and its engines need.

        Raises:
            DeployError: the folder is no bundle, a file of it is missing or altered, its parts do not fit together,
                it is not signed as asked, has expired or is too old, or nothing in it runs as asked.
            MissingDependency: the runtime asked for, or every one, is not installed or finds no GPU.
        """
        folder = Path(path)
        manifest = read_trusted(folder, trust)
        engine, why = load_best(folder, manifest, precision, runtime, threads, keys=trust.engine_keys())
        try:
            _check_fit(folder, manifest, engine)
        except DeployError:
            engine.close()
            raise
        crowded = over_cores(threads)
        return cls(folder, manifest, engine, why if crowded is None else f"{why}; {crowded}")

    def predict(
        self, images: Sequence[str | Path | Image.Image | Mapping[str, Any]], *, top: int = 5
    ) -> list[dict[str, Any]]:
        """Predict what ``images``, files or Pillow images, show.

        Args:
            images: for a network with several inputs (``manifest.inputs``) rows: mappings from their names to a file
                or a Pillow image, or to numbers.
            top: how many classes are told.

        Returns:
            For each image its ``file`` (None where it has none), and for classification the ``class``, ``index`` and
            ``probability`` of the likeliest class, and ``top``: the ``top`` likeliest classes as such triples. For
            detection ``boxes``, likeliest first, each with ``class``, ``index``, ``score`` and ``box`` (left, top,
            right, bottom in pixels of the upright image). For segmentation ``mask``, uint8 (height, width) of the
            upright image: the index of each pixel's class, 255 where the network saw nothing. A ``note`` says where a
            file holds several frames or pages, of which the first was read.

        Raises:
            DeployError: an image cannot be read, a row does not fit the inputs, or the network returns what is no
                prediction, such as NaN.
        """
        if isinstance(images, str | Path | Image.Image | Mapping):
            raise DeployError(f"predict takes a list of images and was given {images!r}; put it into one: [...].")
        if top < 1:
            raise DeployError(f"top is {top}; ask for 1 class or more.")
        found: list[dict[str, Any]] = []
        for start in range(0, len(images), self._batch):
            part = images[start : start + self._batch]
            opened, feeds = self._feeds(part)
            outputs = self.run(feeds)
            check_outputs(self.name, self.manifest, outputs, len(part))
            rows = self._interpret(outputs, opened, top)
            for image, upright, row in zip(part, opened, rows, strict=True):
                said = {"note": _FIRST} if upright.info.get(preprocess.SEVERAL) else {}
                shown: Any = image if self._reader is None else self._reader.main_image(image)
                found.append({"file": _filename(shown), **row, **said})
        return found

    def _feeds(self, part: Sequence[Any]) -> tuple[list[Image.Image], dict[str, np.ndarray]]:
        """Return the images that answers are about, and what one run reads."""
        if self._reader is not None:
            return self._reader.feeds(part)
        (name,) = self.inputs
        if any(isinstance(image, Mapping) for image in part):
            raise DeployError(f"{self.name} reads one image and was given a row; give images.")
        opened = [self._open(image) for image in part]
        return opened, {name: np.stack([self.preprocessing(image) for image in opened])}

    def _open(self, image: str | Path | Image.Image) -> Image.Image:
        return image if isinstance(image, Image.Image) else self.preprocessing.load(Path(image))

    def _interpret(
        self, outputs: dict[str, np.ndarray], images: Sequence[Image.Image], top: int
    ) -> list[dict[str, Any]]:
        decoder = self.manifest.postprocessing
        if isinstance(decoder, DetectionDecoder):
            visible = [self.preprocessing.visible_box(image) for image in images]
            decoded = decoder(*(outputs[name] for name in decoder.OUTPUTS))
            sizes = [ImageOps.exif_transpose(image).size for image in images]
            rows = zip(decoded, visible, sizes, strict=True)
            return [self._boxes(one, area, decoder.size, upright) for one, area, upright in rows]
        values = next(iter(outputs.values()))
        if isinstance(decoder, SegmentationDecoder):
            if decoder.in_graph and not np.isin(values, np.arange(len(self.classes))).all():
                raise DeployError(f"{self.name} finds classes that do not exist; make the bundle again.")
            return [{"mask": self._mask(decoder, row[None], image)} for row, image in zip(values, images, strict=True)]
        return [self._top_classes(row, top) for row in values]

    def _boxes(
        self,
        found: dict[str, np.ndarray],
        visible: tuple[float, float, float, float],
        size: tuple[int, int],
        upright: tuple[int, int],
    ) -> dict[str, Any]:
        left, top, right, bottom = visible
        scale = np.asarray([(right - left) / size[1], (bottom - top) / size[0]] * 2)
        places = found["boxes"] * scale + np.asarray([left, top] * 2)
        if self.preprocessing.resize == "letterbox":  # a box may reach into the padding
            places = places.clip(0, [*upright, *upright])
        if not np.isfinite(places).all() or not np.isin(found["labels"], np.arange(len(self.classes))).all():
            raise DeployError(f"{self.name} finds boxes or classes that do not exist; make the bundle again.")
        return {
            "boxes": [
                {"class": self.classes[label], "index": int(label), "score": float(score), "box": box.tolist()}
                for label, score, box in zip(found["labels"], found["scores"], places, strict=True)
            ]
        }

    def _mask(self, decoder: SegmentationDecoder, values: np.ndarray, image: Image.Image) -> np.ndarray:
        upright = ImageOps.exif_transpose(image)
        left, top, right, bottom = (round(edge) for edge in self.preprocessing.visible_box(image))
        if self.preprocessing.resize == "letterbox":  # the padding is no part of the image
            seen = decoder(values, (bottom - top, right - left))[0]
            return seen[max(-top, 0) :, max(-left, 0) :][: upright.height, : upright.width]
        mask = np.full((upright.height, upright.width), _UNSEEN, np.uint8)
        if left < right and top < bottom:  # of a tiny image less than one pixel may be visible
            mask[top:bottom, left:right] = decoder(values, (bottom - top, right - left))[0]
        return mask

    def close(self) -> None:
        self._engine.close()

    def _run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return self._engine._run(feeds)  # its inputs are this bundle's, and checked

    def run_apart(self, feeds: Mapping[str, np.ndarray]) -> tuple[float, float, float] | None:
        """Return the milliseconds of the parts of a run on a graphics card; see ``Engine.run_apart``."""
        return self._engine.run_apart(feeds)

    def _top_classes(self, logits: np.ndarray, top: int) -> dict[str, Any]:
        check_finite(self.name, logits)
        found = probabilities(logits, self._outputs, self.manifest.outputs is not None, self.name)
        order = np.argsort(-found, kind="stable")[:top].tolist()
        ranked = [{"class": self.classes[i], "index": i, "probability": float(found[i])} for i in order]
        return {**ranked[0], "top": ranked}


def load(
    path: str | Path,
    *,
    precision: str | None = None,
    threads: int = 1,
    runtime: str | None = None,
    trusted_key: str | Path | None = None,
    engine_key: str | Path | None = None,
    min_version: int | None = None,
    now: datetime | None = None,
) -> Bundle:
    """Verify the bundle at ``path`` and load what runs it best on this machine; see ``Bundle.load`` and ``Trust``."""
    trust = Trust(trusted_key, engine_key, min_version, now)
    return Bundle.load(path, precision=precision, threads=threads, runtime=runtime, trust=trust)


def _filename(image: str | Path | Image.Image) -> str | None:
    return getattr(image, "filename", None) or None if isinstance(image, Image.Image) else str(image)
