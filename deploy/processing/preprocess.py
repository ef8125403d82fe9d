"""Turn an image file into the array that a network reads, in a bundle just as in evaluation during training."""

from __future__ import annotations

import struct
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


FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""What an image file may be, whatever its name says: Pillow would start Ghostscript for an EPS."""

# What Pillow's decoders raise on damaged data.
_DAMAGED = (
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    OSError,
    SyntaxError,
    TypeError,
    ValueError,
    struct.error,
)
_MOST_PIXELS = 1 << 25  # what any file may hold: 100 MB as RGB
_PIXELS_PER_BYTE = 32  # photographs have less than 10


class Preprocessing(BaseModel):
    """How an image becomes a float32 array (C, H, W).

    Attributes:
        size: (height, width) in pixels of the array.
        mode: ``L`` for one grey channel, ``RGB`` for three.
        mean: of each channel, subtracted after scaling to 0..1.
        std: of each channel, the divisor after the subtraction.
        interpolation: the filter of the resize.
        resize: ``stretch`` to ``size``, or ``shorter_side_center_crop``, which keeps the aspect ratio.
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
    def _check_size(cls, value: tuple[int, int]) -> tuple[int, int]:
        if min(value) < 1 or max(value) > 4096:
            raise ValueError(f"size is {value}; both sides have to be between 1 and 4096 pixels")
        return value

    @field_validator("mean", "std")
    @classmethod
    def _check_channels(cls, value: tuple[float, ...], info: ValidationInfo) -> tuple[float, ...]:
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
        """The shape of the arrays, (C, H, W)."""
        return (_CHANNELS[self.mode], *self.size)

    def __call__(self, image: Image.Image) -> np.ndarray:
        """Turn ``image``, of any mode and size, into a float32 array (C, H, W).

        Raises:
            DeployError: its pixels have a mode without a fixed range (``I``, ``F``).
        """
        height, width = self.size
        upright = _expand_palette(ImageOps.exif_transpose(_to_eight_bits(image))).convert(self.mode)
        pixels = np.asarray(
            upright.resize((width, height), Image.Resampling[self.interpolation.upper()], box=self._box(upright)),
            dtype=np.float32,
        ).reshape(height, width, -1)
        mean = np.asarray(self.mean, dtype=np.float32)
        std = np.asarray(self.std, dtype=np.float32)
        return np.ascontiguousarray(((pixels / np.float32(255) - mean) / std).transpose(2, 0, 1))

    def visible_box(self, image: Image.Image) -> tuple[float, float, float, float]:
        """Return the part of the upright ``image`` that the network sees: (left, top, right, bottom) in pixels."""
        return self._box(ImageOps.exif_transpose(image))

    def _box(self, image: Image.Image) -> tuple[float, float, float, float]:
        """Return the part of ``image`` that is kept: (left, top, right, bottom) in source pixels.

        Cropping the source and resizing once equals resizing the shorter side and cropping the centre, but rounds to
        whole pixels only once.
        """
        if self.resize == "stretch":
            return (0.0, 0.0, float(image.width), float(image.height))
        height, width = self.size
        scale = min(image.width / width, image.height / height)
        left, top = (image.width - width * scale) / 2, (image.height - height * scale) / 2
        # A rounding error may exceed the edge by a hair, which Pillow refuses.
        return (
            max(left, 0.0),
            max(top, 0.0),
            min(left + width * scale, float(image.width)),
            min(top + height * scale, float(image.height)),
        )


def _expand_palette(image: Image.Image) -> Image.Image:
    """Expand a palette with partly transparent colours, of which Pillow would warn; return other images as they are."""
    return image.convert("RGBA") if isinstance(image.info.get("transparency"), bytes) else image


def _to_eight_bits(image: Image.Image) -> Image.Image:
    """Scale 16-bit grey to 8 bits, which Pillow's own conversion would clip; refuse pixels without a fixed range."""
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):
        scaled = Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8))
        scaled.info.update(image.info)
        scaled.getexif().update(image.getexif())
        return scaled
    if image.mode in ("I", "F"):
        name = getattr(image, "filename", "") or "The image"
        raise DeployError(f"{name} has pixels of mode {image.mode}, which have no fixed range; convert it to 8 bits.")
    return image.convert("RGB") if image.mode == "LAB" else image


def _check_pixels(image: Image.Image, path: Path) -> None:
    """Refuse an image that would take far more memory than its file is large, before it is decoded."""
    pixels, size = image.width * image.height, path.stat().st_size
    if pixels > max(_MOST_PIXELS, _PIXELS_PER_BYTE * size):
        raise DeployError(
            f"{path} says that its {size} bytes are {image.width} x {image.height} pixels, which is too large to be "
            "opened safely; scale it down first."
        )


def load(path: Path) -> Image.Image:
    """Read the whole image at ``path``.

    Raises:
        DeployError: the file is missing, is no image that Pillow knows, is truncated or is implausibly large.
    """
    path = Path(path)
    if not path.is_file():
        raise DeployError(f"There is no image file at {path}; check the path.")
    try:
        with warnings.catch_warnings():
            # Pillow's warnings (odd EXIF, many pixels) are harmless here or become errors below.
            warnings.simplefilter("ignore")
            with Image.open(path, formats=FORMATS) as image:
                _check_pixels(image, path)
                image.load()
                return _to_eight_bits(image)
    except UnidentifiedImageError as error:
        raise DeployError(
            f"{path} is not an image of a format that is read ({', '.join(FORMATS)}); convert it to PNG."
        ) from error
    except Image.DecompressionBombError as error:
        raise DeployError(f"{path} is too large to be opened safely ({error}); scale it down first.") from error
    except _DAMAGED as error:
        raise DeployError(f"{path} is a damaged image ({error}); replace the file.") from error
