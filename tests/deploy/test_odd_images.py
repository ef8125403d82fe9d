"""Images whose pixels are not 8 bits: scaled or refused, never clipped in silence."""

import numpy as np
import pytest
from PIL import Image, ImageOps

from deploy.errors import DeployError
from deploy.processing import preprocess
from deploy.processing.preprocess import Preprocessing


def test_sixteen_bits_are_scaled(tmp_path):
    ramp = np.linspace(0, 65535, 32 * 32).reshape(32, 32).astype(np.uint16)
    Image.fromarray(ramp).save(tmp_path / "ramp.png")
    pixels = Preprocessing(size=(32, 32), mode="L")(preprocess.load(tmp_path / "ramp.png"))
    assert np.abs(pixels[0] - ramp / 65535).max() < 0.01


def test_a_picture_that_somebody_opened_is_scaled_too(tmp_path):
    ramp = np.linspace(0, 65535, 32 * 32).reshape(32, 32).astype(np.uint16)
    Image.fromarray(ramp).save(tmp_path / "ramp.png")
    prepare = Preprocessing(size=(32, 32), mode="L")
    with Image.open(tmp_path / "ramp.png") as image:
        assert image.mode == "I;16"
        assert np.array_equal(prepare(image), prepare(preprocess.load(tmp_path / "ramp.png")))
    with pytest.raises(DeployError, match="The image has pixels of mode F"):
        prepare(Image.new("F", (8, 8)))


def test_sixteen_bits_are_turned_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter to the left
    Image.fromarray(np.zeros((8, 4), np.uint16)).save(tmp_path / "turned.png", exif=exif)
    assert ImageOps.exif_transpose(preprocess.load(tmp_path / "turned.png")).size == (8, 4)


def test_pixels_without_a_range_are_refused(tmp_path):
    Image.fromarray(np.random.default_rng(0).random((8, 8), dtype=np.float32)).save(tmp_path / "float.tiff")
    with pytest.raises(DeployError, match="no fixed range"):
        preprocess.load(tmp_path / "float.tiff")


@pytest.mark.parametrize("std", [1e-300, 0.0, float("nan"), 1e300])
def test_a_scale_that_gives_no_numbers_is_refused(std):
    with pytest.raises(ValueError, match="between"):
        Preprocessing(size=(8, 8), mode="L", std=(std,))


@pytest.mark.filterwarnings("error")
def test_a_palette_with_transparent_colours_is_read_in_silence(tmp_path):
    image = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).convert("P")
    image.save(tmp_path / "palette.png", transparency=bytes([0, 16]))
    prepare = Preprocessing(size=(8, 8), mode="L", background=(0, 0, 0))
    pixels = prepare(preprocess.load(tmp_path / "palette.png"))[0]
    # The first two colours are 0 and 1 of 255; the second is 16 of 255 opaque on black.
    assert np.array_equal(pixels.reshape(-1)[2:], np.arange(2, 64, dtype=np.float32) / 255) and pixels[0, 1] == 0
