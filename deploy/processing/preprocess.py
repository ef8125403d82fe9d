"""From an image file to the array a network reads, the same at training-time evaluation and in a bundle."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from deploy.errors import DeployError

Mode = Literal["L", "RGB"]
Interpolation = Literal["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"]
_CHANNELS = {"L": 1, "RGB": 3}


class Preprocessing(BaseModel):
    """How an image becomes a float32 array (C, H, W).

    Attributes:
        size: (height, width) in pixels of what the network reads.
        mode: ``L`` for one grey channel, ``RGB`` for three.
        mean: per channel, subtracted after scaling to 0..1.
        std: per channel, divided by after the subtraction.
        interpolation: the filter of the one resize.
        resize: ``stretch`` to ``size``, or the ``shorter_side_center_crop`` that keeps the aspect ratio.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    size: tuple[int, int]
    mode: Mode = "RGB"
    mean: tuple[float, ...] = Field(default=(), validate_default=True)
    std: tuple[float, ...] = Field(default=(), validate_default=True)
    interpolation: Interpolation = "bilinear"
    resize: Literal["stretch", "shorter_side_center_crop"] = "stretch"

    @field_validator("size")
    @classmethod
    def _positive(cls, value: tuple[int, int]) -> tuple[int, int]:
        if min(value) < 1 or max(value) > 4096:
            raise ValueError(f"size is {value}; both sides have to be between 1 and 4096 pixels")
        return value

    @field_validator("mean", "std")
    @classmethod
    def _one_per_channel(cls, value: tuple[float, ...], info: ValidationInfo) -> tuple[float, ...]:
        channels = _CHANNELS.get(info.data.get("mode", ""), 0)
        value = value or (0.0 if info.field_name == "mean" else 1.0,) * channels
        if channels and len(value) != channels:
            raise ValueError(f"{info.field_name} has {len(value)} values; the mode has {channels} channels")
        low, high = (1e-6, 1e6) if info.field_name == "std" else (-1e6, 1e6)
        if not all(low <= number <= high for number in value):
            raise ValueError(f"{info.field_name} is {value}; each has to be between {low:g} and {high:g}")
        return value

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the arrays that come out."""
        return (_CHANNELS[self.mode], *self.size)

    def __call__(self, image: Image.Image) -> np.ndarray:
        """Turn ``image``, of any mode and size, into a float32 array (C, H, W).

        Raises:
            DeployError: its pixels are of a mode without a fixed range (``I``, ``F``).
        """
        height, width = self.size
        upright = _opaque(ImageOps.exif_transpose(_eight_bits(image))).convert(self.mode)
        pixels = np.asarray(
            upright.resize((width, height), Image.Resampling[self.interpolation.upper()], box=self._box(upright)),
            dtype=np.float32,
        ).reshape(height, width, -1)
        mean = np.asarray(self.mean, dtype=np.float32)
        std = np.asarray(self.std, dtype=np.float32)
        return np.ascontiguousarray(((pixels / np.float32(255) - mean) / std).transpose(2, 0, 1))

    def seen(self, image: Image.Image) -> tuple[float, float, float, float]:
        """The part of the upright ``image`` that the network sees: (left, top, right, bottom) in its pixels."""
        return self._box(ImageOps.exif_transpose(image))

    def _box(self, image: Image.Image) -> tuple[float, float, float, float]:
        """The part of ``image`` that is kept: (left, top, right, bottom) in source pixels.

        Cropping the source and resizing once equals resizing the shorter side and cropping the centre,
        without a second rounding of the pixels.
        """
        if self.resize == "stretch":
            return (0.0, 0.0, float(image.width), float(image.height))
        height, width = self.size
        scale = min(image.width / width, image.height / height)
        left, top = (image.width - width * scale) / 2, (image.height - height * scale) / 2
        # Rounding may step a hair over the edge, which Pillow refuses.
        return (
            max(left, 0.0),
            max(top, 0.0),
            min(left + width * scale, float(image.width)),
            min(top + height * scale, float(image.height)),
        )


def _opaque(image: Image.Image) -> Image.Image:
    """A palette whose colours are transparent to degrees, of which Pillow would warn, spelt out; else ``image``."""
    return image.convert("RGBA") if isinstance(image.info.get("transparency"), bytes) else image


def _eight_bits(image: Image.Image) -> Image.Image:
    """16-bit grey scaled down to 8, which Pillow's own conversion would clip; pixels without a range are refused."""
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):
        scaled = Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8))
        scaled.info.update(image.info)
        scaled.getexif().update(image.getexif())
        return scaled
    if image.mode in ("I", "F"):
        name = getattr(image, "filename", "") or "The image"
        raise DeployError(f"{name} has pixels of mode {image.mode}, which have no fixed range; convert it to 8 bits.")
    return image.convert("RGB") if image.mode == "LAB" else image


def load(path: Path) -> Image.Image:
    """Read the whole image at ``path``.

    Raises:
        DeployError: the file is missing, is no image Pillow knows, is cut short or is too large to be one.
    """
    path = Path(path)
    if not path.is_file():
        raise DeployError(f"There is no image file at {path}; check the path.")
    try:
        with warnings.catch_warnings():
            # What Pillow warns of (odd EXIF, many pixels) is either harmless here or an error below.
            warnings.simplefilter("ignore")
            with Image.open(path) as image:
                image.load()
                return _eight_bits(image)
    except UnidentifiedImageError as error:
        raise DeployError(f"{path} is not an image that Pillow can read; convert it to PNG or JPEG.") from error
    except Image.DecompressionBombError as error:
        raise DeployError(f"{path} is too large to be opened safely ({error}); scale it down first.") from error
    except (OSError, SyntaxError, ValueError) as error:  # what Pillow's decoders raise on damaged data
        raise DeployError(f"{path} is a damaged image ({error}); replace the file.") from error
