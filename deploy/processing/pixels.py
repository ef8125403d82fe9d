"""Decode image files: 8 bits a channel, nothing transparent, the first of several frames, and never in silence."""

from __future__ import annotations

import os
import struct
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from deploy.errors import DeployError

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""What an image file may be, whatever its name says: Pillow would start Ghostscript for an EPS."""
SEVERAL = "niwaki.several"
"""A key of ``Image.info`` of what was read as the first of several frames or pages."""

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
_PHOTOMETRIC, _WHITE_IS_ZERO = 262, 0  # a tag of TIFF and a value of it
_DOUBTFUL = 1 << 12  # numbers of 16 bits that are all smaller may be of 12 bits


def load(path: Path, bits: int | None = None) -> Image.Image:
    """Read the whole image at ``path``; of several frames or pages the first, with ``SEVERAL`` in its ``info``.

    Args:
        path: a file.
        bits: how many of 16 bits hold the picture; None where nobody stated it.

    Raises:
        DeployError: the file is missing, is no image that Pillow knows, is truncated or is implausibly large, or its
            16 bits may be fewer.
    """
    path = Path(path)
    if os.path.isdir(path):  # noqa: PTH112 - as below
        raise DeployError(
            f"There is no image file at {path}, which is a folder; name its images, or a folder that holds some."
        )
    if not os.path.isfile(path):  # noqa: PTH113 - False too for a name that no file system takes
        raise DeployError(f"There is no image file at {path}; check the path.")
    try:
        with warnings.catch_warnings():
            # Pillow's warnings (odd EXIF, many pixels) are harmless here or become errors below.
            warnings.simplefilter("ignore")
            with Image.open(path, formats=FORMATS) as image:
                _check_pixels(image, path)
                several, halved = bool(getattr(image, "is_animated", False)), _is_halved(image)
                _decode(image)
                if image.mode in ("P", "PA") and image.palette is None:
                    raise OSError("its colours are numbers of a palette that it does not hold")
                if halved:
                    _check_halved(image, path, bits)
                found = to_eight_bits(image, bits)
    except (UnidentifiedImageError, ImportError) as error:  # a library that took over Image.open wants one more package
        raise DeployError(
            f"{path} is not an image of a format that is read ({', '.join(FORMATS)}); convert it to PNG."
        ) from error
    except Image.DecompressionBombError as error:
        raise DeployError(f"{path} is too large to be opened safely ({error}); scale it down first.") from error
    except _DAMAGED as error:
        raise DeployError(f"{path} is a damaged image ({error}); replace the file.") from error
    if several:
        found.info[SEVERAL] = True
    return found


def to_eight_bits(image: Image.Image, bits: int | None = None) -> Image.Image:
    """Scale 16-bit grey to 8 bits, which Pillow's own conversion would clip; refuse pixels without a fixed range.

    Args:
        image: of any mode.
        bits: as for ``load``.

    Raises:
        DeployError: the pixels have no fixed range, are larger than ``bits`` allow, or may be of fewer than 16 bits.
    """
    name = getattr(image, "filename", "") or "The image"
    _decode(image)
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):
        values = np.asarray(image).astype(np.uint32)
        most = int(values.max(initial=0))
        if bits is None and 0 < most < _DOUBTFUL:
            raise DeployError(_doubt(name, f"numbers up to {most} in 16 bits"))
        if most >= 1 << (bits or 16):
            raise DeployError(f"{name} holds {most}, which {bits} bits cannot; state the right preprocessing.bits.")
        # Whole steps, as if the low bits were cut off.
        levels = (values >> ((bits or 16) - 8)).astype(np.uint8)
        if getattr(image, "tag_v2", {}).get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
            levels = 255 - levels  # Pillow turns only 8 bits and fewer round
        scaled = Image.fromarray(levels)
        if isinstance(key := image.info.get("transparency"), int):
            scaled = Image.merge("LA", (scaled, Image.fromarray(np.where(values == key, 0, 255).astype(np.uint8))))
        scaled.info.update({name: value for name, value in image.info.items() if name != "transparency"})
        scaled.getexif().update(image.getexif())
        return scaled
    if image.mode in ("I", "F"):
        raise DeployError(f"{name} has pixels of mode {image.mode}, which have no fixed range; convert it to 8 bits.")
    return image.convert("RGB") if image.mode == "LAB" else image


def opaque(image: Image.Image, background: tuple[int, int, int] | None) -> Image.Image:
    """Put a background of red, green and blue behind what is transparent; return an opaque image as it is.

    Raises:
        DeployError: something is transparent and there is no background: what lies under it is nobody's picture.
    """
    if not image.has_transparency_data:
        return image
    image = image.convert("LA") if image.mode == "La" else image
    layers = image.convert("RGBA")
    layers.info.pop("transparency", None)
    if layers.getchannel("A").getextrema() == (255, 255):
        found = layers.convert("L" if image.mode == "LA" else "RGB")
    elif background is None:
        name = getattr(image, "filename", "") or "The image"
        raise DeployError(
            f"{name} has transparent pixels, and preprocessing states no background to put behind them; state "
            "background, such as [255, 255, 255], or save the image without transparency."
        )
    else:
        behind = Image.new("RGBA", layers.size, (*background, 255))
        found = Image.alpha_composite(behind, layers).convert("RGB")
    found.info.update({key: value for key, value in image.info.items() if key != "transparency"})
    found.getexif().update(image.getexif())
    return found


def _is_halved(image: Image.Image) -> bool:
    """Tell, before it is decoded, whether a file holds colours of 16 bits, of which Pillow keeps the upper 8."""
    # A PPM states the largest number that it may hold: only where that is all of 16 bits the picture may have fewer.
    sign = "65535" if image.format == "PPM" else ";16"
    return image.mode in ("RGB", "RGBA", "LA", "CMYK") and sign in _tiles(image)


def _tiles(image: Image.Image) -> str:
    """Return how the pixels lie in the file, in Pillow's words; nothing once they are decoded."""
    return " ".join(str(tile[3:]) for tile in getattr(image, "tile", ()))


def _decode(image: Image.Image) -> None:
    """Decode the pixels; bring the transparent level of grey in 2 or 4 bits to 8, as Pillow brings the pixels."""
    tiles, key = _tiles(image), image.info.get("transparency")
    image.load()
    step = next((step for sign, step in (("L;2'", 85), ("L;4'", 17)) if sign in tiles), 1)
    if isinstance(key, int) and step > 1:
        image.info["transparency"] = min(255, key * step)


def _check_halved(image: Image.Image, path: Path, bits: int | None) -> None:
    if (key := image.info.pop("transparency", None)) is not None and _holds(image, [level >> 8 for level in key]):
        raise DeployError(
            f"{path} names a transparent colour in 16 bits, of which the upper 8 are read; "
            "save it with an alpha channel."
        )
    extrema = [ends for ends in image.getextrema() if isinstance(ends, tuple)]
    if bits not in (None, 16):
        raise DeployError(
            f"{path} holds colours in 16 bits, of which the upper 8 are read, and preprocessing states {bits} bits; "
            "convert it to 8 bits."
        )
    colours = extrema[:-1] if image.mode in ("RGBA", "LA") else extrema
    below = (_DOUBTFUL >> 8) + (image.format == "PPM")  # which Pillow rounds
    if bits is None and 0 < max(high for _, high in colours) < below:
        raise DeployError(_doubt(str(path), "colours below 4096 in 16 bits"))


def _holds(image: Image.Image, colour: list[int]) -> bool:
    return bool((np.asarray(image) == np.asarray(colour, np.uint8)).all(-1).any())


def _doubt(name: str, what: str) -> str:
    return f"{name} holds {what}, which may be a picture of 12 bits or a dark one; state preprocessing.bits, 12 or 16."


def _check_pixels(image: Image.Image, path: Path) -> None:
    """Refuse an image that would take far more memory than its file is large, before it is decoded."""
    pixels, size = image.width * image.height, path.stat().st_size
    if pixels > max(_MOST_PIXELS, _PIXELS_PER_BYTE * size):
        raise DeployError(
            f"{path} claims that its {size} bytes are {image.width} x {image.height} pixels, which is too large to be "
            "opened safely; scale it down first."
        )
