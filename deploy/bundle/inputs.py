"""State what a network with several inputs reads, images and tensors beside them, and make its feeds of a row of each.

A row is a mapping from the names of the inputs to what each takes: a file or a Pillow image, or numbers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, field_validator

from deploy.engines.base import TensorSpec
from deploy.errors import DeployError
from deploy.processing.preprocess import Preprocessing

MOST_INPUTS = 64
_MOST_NUMBERS = 1 << 24  # of one row of one input: 64 MB in float32
_STRICT = ConfigDict(frozen=True, extra="forbid")
Dtype = Literal["float32", "float16", "float64", "int64", "int32", "int8", "uint8", "bool"]
InputName = Annotated[str, Field(min_length=1, max_length=255, pattern=r"^[^\x00-\x1f\x7f]+$")]


class ImageInput(BaseModel):
    """An input that reads an image, prepared by ``preprocessing``; None takes that of the bundle."""

    model_config = _STRICT

    kind: Literal["image"] = "image"
    preprocessing: Preprocessing | None = None


class TensorInput(BaseModel):
    """An input that reads numbers.

    Attributes:
        dtype: their type.
        shape: of one row, without the batch; None where a size is free.
        batch: whether the network takes as many rows of it as images in one run; False for what it takes once.
    """

    model_config = _STRICT

    kind: Literal["tensor"] = "tensor"
    dtype: Dtype
    shape: tuple[Annotated[int, Field(ge=1, le=_MOST_NUMBERS)] | None, ...] = Field(max_length=8)
    batch: bool = True

    @field_validator("shape")
    @classmethod
    def _check_count(cls, value: tuple[int | None, ...]) -> tuple[int | None, ...]:
        if math.prod(size or 1 for size in value) > _MOST_NUMBERS:
            raise ValueError(f"shape is {value}; one row holds at most {_MOST_NUMBERS} numbers")
        return value

    @property
    def stacks(self) -> bool:
        """Whether several rows go into one run."""
        return self.batch and None not in self.shape

    def array(self, name: str, value: Any) -> np.ndarray:
        """Return one row of it, of ``shape``.

        Raises:
            DeployError: ``value`` holds no numbers, or others than this type holds, or has another shape.
        """
        try:
            given = np.asarray(value)
        except ValueError as error:  # lists of different lengths
            raise DeployError(f"Input {name!r} was given rows of different lengths; {self._wanted()}.") from error
        wanted, shape = np.dtype(self.dtype), list(given.shape)
        kinds = {"f": "fiu", "b": "b"}.get(wanted.kind, "iu")
        if given.dtype.kind not in kinds:
            shown = value if isinstance(value, str | int | float | bool | None) else given.dtype.name
            raise DeployError(f"Input {name!r} was given {str(shown)[:80]!r}; {self._wanted()}.")
        if len(shape) != len(self.shape) or any(w not in (None, s) for w, s in zip(self.shape, shape, strict=True)):
            raise DeployError(f"Input {name!r} was given the shape {shape}; {self._wanted()}.")
        if 0 in shape or given.size > _MOST_NUMBERS:
            raise DeployError(f"Input {name!r} was given {given.size} numbers; give 1 to {_MOST_NUMBERS}.")
        if wanted.kind in "iu" and (given.min() < np.iinfo(wanted).min or given.max() > np.iinfo(wanted).max):
            raise DeployError(f"Input {name!r} was given {given.min()} to {given.max()}; {self._wanted()}.")
        with np.errstate(over="ignore"):
            found = given.astype(wanted)
        if found.dtype.kind == "f" and not np.isfinite(found).all():
            raise DeployError(
                f"Input {name!r} was given numbers that are not finite in {self.dtype}; give finite numbers."
            )
        return found

    def _wanted(self) -> str:
        sizes = ", ".join("any" if size is None else str(size) for size in self.shape)
        return f"give {self.dtype}[{sizes}]"


BundleInput = Annotated[ImageInput | TensorInput, Field(discriminator="kind")]


class InputReader:
    """Makes a network's feeds of rows.

    Args:
        inputs: what each input reads, of which one at least is an image.
        preprocessing: of images that state none.
    """

    def __init__(self, inputs: Mapping[str, ImageInput | TensorInput], preprocessing: Preprocessing) -> None:
        self.inputs = dict(inputs)
        self._preprocessing = preprocessing
        self.main = next(name for name, one in inputs.items() if isinstance(one, ImageInput))

    @property
    def stacks(self) -> bool:
        """Whether several rows go into one run."""
        return all(isinstance(one, ImageInput) or one.stacks for one in self.inputs.values())

    def main_image(self, row: Any) -> Any:
        """Return what a row gives for the first image, by which its answer is named; None where it gives none."""
        return row.get(self.main) if isinstance(row, Mapping) else None

    def feeds(self, rows: Sequence[Any]) -> tuple[list[Image.Image], dict[str, np.ndarray]]:
        """Return the first image of each row, upright or not, and the feeds of one run.

        Args:
            rows: mappings; one alone where they do not stack.

        Raises:
            DeployError: a row lacks an input or has another, an image cannot be read, or numbers do not fit.
        """
        found: dict[str, list[np.ndarray]] = {name: [] for name in self.inputs}
        opened: list[Image.Image] = []
        for row in rows:
            self._check(row)
            for name, one in self.inputs.items():
                if isinstance(one, TensorInput):
                    found[name].append(one.array(name, row[name]))
                    continue
                prepare = one.preprocessing or self._preprocessing
                image = _opened(name, row[name], prepare)
                found[name].append(prepare(image))
                if name == self.main:
                    opened.append(image)
        return opened, {name: self._joined(name, arrays) for name, arrays in found.items()}

    def _check(self, row: Any) -> None:
        if not isinstance(row, Mapping):
            raise DeployError(
                f"A row is a {type(row).__name__}, and the network reads {', '.join(self.inputs)}; give a mapping from "
                "these names."
            )
        if set(row) != set(self.inputs):
            raise DeployError(
                f"A row names {', '.join(map(str, row))[:200] or 'nothing'}, and the network reads "
                f"{', '.join(self.inputs)}; give each of these and no other."
            )

    def _joined(self, name: str, arrays: list[np.ndarray]) -> np.ndarray:
        one = self.inputs[name]
        return arrays[0] if isinstance(one, TensorInput) and not one.batch else np.stack(arrays)


def _opened(name: str, given: Any, prepare: Preprocessing) -> Image.Image:
    if isinstance(given, Image.Image):
        return given
    if not isinstance(given, str | Path):
        raise DeployError(f"Input {name!r} was given a {type(given).__name__}; give an image or its file.")
    return prepare.load(Path(given))


def derived(
    specs: Mapping[str, TensorSpec], preprocessing: Preprocessing, what: str
) -> dict[str, ImageInput | TensorInput]:
    """Return what the inputs of a file read: the one that fits ``preprocessing`` an image, the others tensors.

    Raises:
        DeployError: none or several fit it, so that only its maker knows which is an image.
    """
    free = any(spec.shape[:1] == (None,) for spec in specs.values())
    found: dict[str, ImageInput | TensorInput] = {}
    for name, spec in specs.items():
        batch = spec.shape[:1] == ((None,) if free else (1,))
        if spec.dtype == "float32" and fits_image(spec, preprocessing):
            found[name] = ImageInput()
        else:
            found[name] = TensorInput(dtype=spec.dtype, shape=spec.shape[1:] if batch else spec.shape, batch=batch)  # type: ignore[arg-type]  # pydantic refuses any other
    images = [name for name, one in found.items() if isinstance(one, ImageInput)]
    if len(images) != 1:
        raise DeployError(
            f"{what} has {len(specs)} inputs ({', '.join(specs)}), of which {len(images)} take the image that the "
            "preprocessing makes; give inputs, an ImageInput or a TensorInput for each name."
        )
    return found


def fits_image(spec: TensorSpec, preprocessing: Preprocessing) -> bool:
    """Tell whether an input takes what ``preprocessing`` makes, in a free batch or one by one."""
    one_or_free = spec.shape[:1] in ((None,), (1,))
    return one_or_free and spec.dtype == "float32" and compatible(spec.shape[1:], preprocessing.shape)


def compatible(found: tuple[int | None, ...], want: tuple[int | None, ...]) -> bool:
    """Tell whether two shapes can be one, where None is any size."""
    return len(found) == len(want) and all(None in (a, b) or a == b for a, b in zip(found, want, strict=True))


def check_inputs(
    what: str,
    inputs: Mapping[str, ImageInput | TensorInput],
    specs: Mapping[str, TensorSpec],
    preprocessing: Preprocessing,
) -> None:
    """Hold what a bundle states of its inputs against what its network takes.

    Raises:
        DeployError: names, types or shapes differ.
    """
    if set(inputs) != set(specs):
        raise DeployError(
            f"{what} states the inputs {', '.join(inputs)} but its network takes {', '.join(specs) or 'nothing'}; make "
            "the bundle again."
        )
    for name, one in inputs.items():
        spec = specs[name]
        if isinstance(one, ImageInput):
            prepared = one.preprocessing or preprocessing
            fits, said = fits_image(spec, prepared), f"images as float32 {list(prepared.shape)}"
        else:
            shape = (None, *one.shape) if one.batch else one.shape
            fits = spec.dtype == one.dtype and len(spec.shape) == len(shape)
            # A free size takes any; one that the network fixes has to be stated.
            fits = fits and all(
                size in (None, want) for size, want in zip(spec.shape[one.batch :], one.shape, strict=True)
            )
            fits, said = fits and (not one.batch or spec.shape[0] in (None, 1)), str(TensorSpec(one.dtype, shape))
        if not fits:
            raise DeployError(f"{what} feeds {name!r} {said} but its network takes {spec}; make the bundle again.")


def trial_feeds(
    inputs: Mapping[str, ImageInput | TensorInput], preprocessing: Preprocessing, pixels: float, seed: int
) -> dict[str, np.ndarray]:
    """Return seeded noise for one row of every input; images have pixels from 0 to ``pixels``."""
    rng = np.random.default_rng(seed)
    found = {}
    for name, one in inputs.items():
        if isinstance(one, ImageInput):
            prepare = one.preprocessing or preprocessing
            found[name] = prepare(noise_image(prepare, pixels, rng))[None]
            continue
        shape = tuple(size or 1 for size in one.shape)
        dtype = np.dtype(one.dtype)
        values = rng.standard_normal(shape) if dtype.kind == "f" else rng.integers(0, 2, shape)
        found[name] = np.asarray(values).astype(dtype)[None] if one.batch else np.asarray(values).astype(dtype)
    return found


def noise_image(preprocessing: Preprocessing, pixels: float, rng: np.random.Generator) -> Image.Image:
    """Return an image of the size that ``preprocessing`` makes, with pixels from 0 to ``pixels``."""
    height, width = preprocessing.size
    channels = (3,) if preprocessing.mode == "RGB" else ()
    return Image.fromarray(rng.integers(0, int(pixels), (height, width, *channels), dtype=np.uint8))
