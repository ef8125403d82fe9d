"""Turn an image file into the array that a network reads, in a bundle just as in evaluation during training."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from PIL import Image, ImageOps
from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from deploy.processing.pixels import FORMATS, SEVERAL, load, opaque, to_eight_bits

__all__ = ["FORMATS", "SEVERAL", "Interpolation", "Mode", "Preprocessing", "Resize", "load"]

Mode = Literal["L", "RGB"]
Interpolation = Literal["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"]
Resize = Literal["stretch", "shorter_side_center_crop", "letterbox"]
Level = Annotated[int, Field(ge=0, le=255)]
_CHANNELS = {"L": 1, "RGB": 3}


class Preprocessing(BaseModel):
    """How an image becomes a float32 array (C, H, W).

    Attributes:
        size: (height, width) in pixels of the array.
        mode: ``L`` for one grey channel, ``RGB`` for three.
        mean: of each channel, in the network's order, subtracted after scaling to 0..1.
        std: of each channel, the divisor after the subtraction.
        interpolation: the filter of the resize.
        resize: ``stretch`` to ``size``; or keep the aspect ratio: ``shorter_side_center_crop`` fills ``size`` and cuts
            what is over, ``letterbox`` shows the whole image in the middle of ``padding``.
        channels: the order in which the network reads colours, ``RGB`` or ``BGR``.
        background: red, green, blue from 0 to 255, behind what is transparent; None refuses such an image.
        bits: how many bits of a file of 16 bits hold the picture, 9 to 16; None takes 16 and refuses a picture whose
            numbers all lie below 4096, for it may be of 12.
        padding: the grey level from 0 to 255 around an image in a letterbox.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    size: tuple[int, int]
    mode: Mode = "RGB"
    mean: tuple[float, ...] = Field(default=(), validate_default=True)
    std: tuple[float, ...] = Field(default=(), validate_default=True)
    interpolation: Interpolation = "bilinear"
    resize: Resize = "stretch"
    channels: Literal["RGB", "BGR"] = "RGB"
    background: tuple[Level, Level, Level] | None = None
    bits: Annotated[int, Field(ge=9, le=16)] | None = None
    padding: Level = 0

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

    @model_validator(mode="after")
    def _check_colours(self) -> Preprocessing:
        if self.mode == "L" and self.channels != "RGB":
            raise ValueError("channels is BGR, but mode L has one channel; leave channels out")
        return self

    @property
    def shape(self) -> tuple[int, int, int]:
        """The shape of the arrays, (C, H, W)."""
        return (_CHANNELS[self.mode], *self.size)

    def load(self, path: Path) -> Image.Image:
        """Read the image at ``path`` as the network is to see it: 8 bits a channel, nothing transparent.

        Raises:
            DeployError: it cannot be read, or what it shows depends on a key that is not stated.
        """
        return opaque(load(path, self.bits), self.background)

    def show(self, image: Image.Image) -> Image.Image:
        """Return an image that somebody decoded as the network is to see it; see ``load``.

        Raises:
            DeployError: its pixels have no fixed range, or what they show depends on a key that is not stated.
        """
        return opaque(to_eight_bits(image, self.bits), self.background)

    def __call__(self, image: Image.Image) -> np.ndarray:
        """Turn ``image``, of any mode and size, into a float32 array (C, H, W).

        Raises:
            DeployError: its pixels have a mode without a fixed range (``I``, ``F``), or what they show depends on a key
                that is not stated.
        """
        pixels = self._resized(ImageOps.exif_transpose(self.show(image)).convert(self.mode)).astype(np.float32)
        if self.channels == "BGR":
            pixels = pixels[..., ::-1]
        mean = np.asarray(self.mean, dtype=np.float32)
        std = np.asarray(self.std, dtype=np.float32)
        return np.ascontiguousarray(((pixels / np.float32(255) - mean) / std).transpose(2, 0, 1))

    def _resized(self, upright: Image.Image) -> np.ndarray:
        """Return the pixels of ``size``, uint8 (H, W, C)."""
        height, width = self.size
        sampling = Image.Resampling[self.interpolation.upper()]
        if self.resize != "letterbox":
            return np.asarray(upright.resize((width, height), sampling, box=self._box(upright))).reshape(
                height, width, -1
            )
        left, top, wide, high = self._inside(upright.width, upright.height)
        pixels = np.full((height, width, _CHANNELS[self.mode]), self.padding, np.uint8)
        inner = np.asarray(upright.resize((wide, high), sampling)).reshape(high, wide, -1)
        pixels[top : top + high, left : left + wide] = inner
        return pixels

    def visible_box(self, image: Image.Image) -> tuple[float, float, float, float]:
        """Return the part of the upright ``image`` that fills the input: (left, top, right, bottom) in its pixels.

        In a letterbox it reaches over the image's edges, by as much as the padding is wide.
        """
        return self._box(ImageOps.exif_transpose(image))

    def _inside(self, width: int, height: int) -> tuple[int, int, int, int]:
        """Return where an image of ``width`` x ``height`` lies in a letterbox: left, top, width, height in pixels."""
        high, wide = self.size
        scale = min(wide / width, high / height)
        inner = max(1, min(wide, round(width * scale))), max(1, min(high, round(height * scale)))
        return (wide - inner[0]) // 2, (high - inner[1]) // 2, *inner

    def _box(self, image: Image.Image) -> tuple[float, float, float, float]:
        """Return the part of ``image`` that is kept: (left, top, right, bottom) in source pixels.

        Cropping the source and resizing once equals resizing the shorter side and cropping the centre, but rounds to
        whole pixels only once.
        """
        if self.resize == "stretch":
            return (0.0, 0.0, float(image.width), float(image.height))
        height, width = self.size
        if self.resize == "letterbox":
            x, y, wide, high = self._inside(image.width, image.height)
            across, down = image.width / wide, image.height / high
            return (-x * across, -y * down, (width - x) * across, (height - y) * down)
        scale = min(image.width / width, image.height / height)
        left, top = (image.width - width * scale) / 2, (image.height - height * scale) / 2
        # A rounding error may exceed the edge by a hair, which Pillow refuses.
        return (
            max(left, 0.0),
            max(top, 0.0),
            min(left + width * scale, float(image.width)),
            min(top + height * scale, float(image.height)),
        )
