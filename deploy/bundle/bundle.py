"""A bundle: one folder with everything that prediction needs, every file of it hashed. No pickle, no code."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from PIL import Image, ImageOps

from deploy.bundle.building import choose
from deploy.bundle.manifest import Manifest, read_manifest, write_bundle
from deploy.engines.base import Engine
from deploy.errors import DeployError
from deploy.processing import preprocess
from deploy.processing.postprocess import Detection, Segmentation

__all__ = ["Bundle", "load", "write_bundle"]

_BATCH = 32
_UNSEEN = 255


class Bundle(Engine):
    """A verified bundle; runs as the engine it holds and predicts what images show.

    Attributes:
        classes: their names, in the order of the network's outputs.
        preprocessing: how an image becomes the network's input.
        manifest: everything else the bundle says about itself.
        why: which file runs by which runtime, why that one, and what was passed over.
    """

    def __init__(self, folder: Path, manifest: Manifest, engine: Engine, why: str = "") -> None:
        self.manifest = manifest
        self.why = why
        self.classes = manifest.classes
        self.preprocessing = manifest.preprocessing
        self._engine = engine
        self.name = folder.resolve().name
        self.runtime = engine.runtime
        self.precision = engine.precision
        self.inputs = engine.inputs
        self.outputs = engine.outputs
        self.path = engine.path
        # An engine of TensorRT takes no more images at once than it was built for, some files one alone.
        alone = any(spec.shape[:1] == (1,) for spec in engine.inputs.values())
        self._batch = 1 if alone else min(_BATCH, getattr(engine, "profile", (1, 1, _BATCH))[2])

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        precision: str | None = None,
        threads: int = 1,
        runtime: str | None = None,
        trusted_key: str | Path | None = None,
    ) -> Self:
        """Verify the bundle at ``path``, every file of it, and load what runs it best on this machine.

        That is an engine in its folder ``engines`` that was built for the GPU here, else ONNX Runtime's CUDA
        provider where it starts, else the CPU; ``why`` tells which and for what reason.

        Args:
            path: the folder.
            precision: which model; by default the one the bundle prefers, or the one of the engine for the GPU here.
            threads: how many threads one run may use on a CPU; 0 lets the runtime choose.
            runtime: a key of ``deploy.engines.ENGINES``; by default the best here.
            trusted_key: a PEM file with an Ed25519 public key, whose owner has to have signed the bundle.

        Raises:
            DeployError: the folder is no bundle, a file of it is missing or altered, its parts do not fit, it is not
                signed as asked, or nothing in it runs as asked.
            MissingDependency: the runtime that was asked for, or every one, is not installed or finds no GPU.
        """
        folder = Path(path)
        manifest = read_manifest(folder, trusted_key=None if trusted_key is None else Path(trusted_key))
        engine, why = choose(folder, manifest, precision, runtime, threads, signed=trusted_key is not None)
        try:
            _check_fit(folder, manifest, engine)
        except DeployError:
            engine.close()
            raise
        return cls(folder, manifest, engine, why)

    def predict(self, images: Sequence[str | Path | Image.Image], *, top: int = 5) -> list[dict[str, Any]]:
        """What the network finds in ``images``, files or Pillow images.

        Returns:
            For each image ``file`` (None where it has none) and, for classification, ``class``, ``index`` and
            ``probability`` of the likeliest class, and ``top``: up to ``top`` of these three, likeliest first. For
            detection ``boxes``, likeliest first: ``class``, ``index``, ``score`` and ``box`` (left, top, right,
            bottom in pixels of the upright image). For segmentation ``mask``, uint8 (height, width) of the upright
            image: the index of each pixel's class, 255 where the network saw nothing.

        Raises:
            DeployError: an image cannot be read, or the network gives what is no prediction, such as NaN.
        """
        if isinstance(images, str | Path | Image.Image):
            raise DeployError(f"predict takes a list of images and was given {images!r}; put it into one: [image].")
        if top < 1:
            raise DeployError(f"top is {top}; ask for 1 class or more.")
        (name,) = self.inputs
        found: list[dict[str, Any]] = []
        for start in range(0, len(images), self._batch):
            part = images[start : start + self._batch]
            opened = [_open(image) for image in part]
            outputs = self.run({name: np.stack([self.preprocessing(image) for image in opened])})
            self._check_outputs(outputs, len(part))
            rows = self._interpreted(outputs, opened, top)
            found += [{"file": _file(image), **row} for image, row in zip(part, rows, strict=True)]
        return found

    def _check_outputs(self, outputs: Mapping[str, np.ndarray], images: int) -> None:
        """Refuse what is no prediction: NaN, infinite boxes or masks, an odd shape where the file left it open."""
        for name, wanted in _outputs(self.manifest, list(outputs)).items():
            values = outputs[name]
            if not _alike(values.shape, (images, *wanted)) or 0 in values.shape[1:]:
                raise DeployError(
                    f"{self.name} gives {name!r} as {list(values.shape)} for {images} images; make the bundle again."
                )
            if values.dtype.kind == "f" and not np.isfinite(values).all():
                what = "NaN" if np.isnan(values).any() else "infinity"
                if what == "NaN" or self.manifest.postprocessing is not None:
                    raise DeployError(
                        f"{self.name} gives {what} in {name!r}; take another precision or make the bundle again."
                    )

    def _interpreted(
        self, outputs: dict[str, np.ndarray], images: Sequence[Image.Image], top: int
    ) -> list[dict[str, Any]]:
        after = self.manifest.postprocessing
        if isinstance(after, Detection):
            seen = [self.preprocessing.seen(image) for image in images]
            decoded = after(*(outputs[name] for name in after.OUTPUTS))
            return [self._boxes(one, area, after.size) for one, area in zip(decoded, seen, strict=True)]
        values = next(iter(outputs.values()))
        if isinstance(after, Segmentation):
            if after.in_graph and not np.isin(values, np.arange(len(self.classes))).all():
                raise DeployError(f"{self.name} finds classes that do not exist; make the bundle again.")
            return [{"mask": self._mask(after, row[None], image)} for row, image in zip(values, images, strict=True)]
        return [self._ranked(row, top) for row in values]

    def _boxes(
        self, found: dict[str, np.ndarray], seen: tuple[float, float, float, float], size: tuple[int, int]
    ) -> dict[str, Any]:
        left, up, right, down = seen
        scale = np.asarray([(right - left) / size[1], (down - up) / size[0]] * 2)
        places = found["boxes"] * scale + np.asarray([left, up] * 2)
        if not np.isfinite(places).all() or not np.isin(found["labels"], np.arange(len(self.classes))).all():
            raise DeployError(f"{self.name} finds boxes or classes that do not exist; make the bundle again.")
        return {
            "boxes": [
                {"class": self.classes[label], "index": int(label), "score": float(score), "box": box.tolist()}
                for label, score, box in zip(found["labels"], found["scores"], places, strict=True)
            ]
        }

    def _mask(self, after: Segmentation, values: np.ndarray, image: Image.Image) -> np.ndarray:
        upright = ImageOps.exif_transpose(image)
        left, up, right, down = (round(edge) for edge in self.preprocessing.seen(image))
        mask = np.full((upright.height, upright.width), _UNSEEN, np.uint8)
        if left < right and up < down:  # of a picture of a few pixels less than one may be seen
            mask[up:down, left:right] = after(values, (down - up, right - left))[0]
        return mask

    def close(self) -> None:
        self._engine.close()

    def _run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return self._engine.run(feeds)

    def _ranked(self, logits: np.ndarray, top: int) -> dict[str, Any]:
        if not np.isfinite(logits.max()):
            raise DeployError(f"{self.name} gives infinity; take another precision or make the bundle again.")
        shifted = np.exp(logits.astype(np.float64) - logits.max())
        probabilities = shifted / shifted.sum()
        order = np.argsort(-probabilities, kind="stable")[:top].tolist()
        ranked = [{"class": self.classes[i], "index": i, "probability": float(probabilities[i])} for i in order]
        return {**ranked[0], "top": ranked}


def load(
    path: str | Path,
    *,
    precision: str | None = None,
    threads: int = 1,
    runtime: str | None = None,
    trusted_key: str | Path | None = None,
) -> Bundle:
    """Verify the bundle at ``path`` and load what runs it best on this machine; see :meth:`Bundle.load`."""
    return Bundle.load(path, precision=precision, threads=threads, runtime=runtime, trusted_key=trusted_key)


def _check_fit(folder: Path, manifest: Manifest, engine: Engine) -> None:
    """Refuse a bundle whose preprocessing or classes are not those of its network."""
    inputs, outputs = list(engine.inputs.values()), list(engine.outputs.values())
    want = manifest.preprocessing.shape
    fits = len(inputs) == 1 and inputs[0].dtype == "float32" and _alike(inputs[0].shape, (None, *want))
    if not fits:
        raise DeployError(
            f"{folder} prepares images as float32 {list(want)} but its network takes "
            f"{', '.join(map(str, inputs)) or 'nothing'}; make the bundle again."
        )
    if inputs[0].shape[0] not in (None, 1):
        raise DeployError(f"{folder} takes {inputs[0].shape[0]} images at once, always; export it with a free batch.")
    after = manifest.postprocessing
    if isinstance(after, Detection):
        _check_detector(folder, manifest, engine, after)
        return
    found = outputs[0] if outputs else "nothing"
    if isinstance(found, str) or not _alike(found.shape, (None, *_outputs(manifest, [""])[""])):
        raise DeployError(
            f"{folder} is for {manifest.task} and names {len(manifest.classes)} classes but its network gives {found}; "
            "make the bundle again."
        )


def _check_detector(folder: Path, manifest: Manifest, engine: Engine, after: Detection) -> None:
    want = after.shapes(len(manifest.classes))
    shapes = {name: spec.shape[1:] for name, spec in engine.outputs.items()}
    if set(shapes) != set(want) or not all(_alike(shapes[name], want[name]) for name in want):
        raise DeployError(
            f"{folder} decodes {want} for {len(manifest.classes)} classes but its network gives {shapes}; "
            "make the bundle again."
        )


def _outputs(manifest: Manifest, names: Sequence[str]) -> dict[str, tuple[int | None, ...]]:
    """The shape without the batch of each output that a prediction is read from; what is not boxes is the first."""
    after, known = manifest.postprocessing, len(manifest.classes)
    if isinstance(after, Detection):
        return dict(after.shapes(known))
    if isinstance(after, Segmentation):
        return {names[0]: (None, None) if after.in_graph else (known, None, None)}
    return {names[0]: (known,)}


def _alike(found: tuple[int | None, ...], want: tuple[int | None, ...]) -> bool:
    return len(found) == len(want) and all(None in (a, b) or a == b for a, b in zip(found, want, strict=True))


def _open(image: str | Path | Image.Image) -> Image.Image:
    return image if isinstance(image, Image.Image) else preprocess.load(Path(image))


def _file(image: str | Path | Image.Image) -> str | None:
    return getattr(image, "filename", None) or None if isinstance(image, Image.Image) else str(image)
