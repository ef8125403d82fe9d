"""Images to arrays, and images that are none."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError

from deploy.errors import DeployError
from deploy.processing import preprocess
from deploy.processing.preprocess import Preprocessing


def noise(height, width, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def test_an_image_of_the_right_size_is_scaled_and_normalised_only():
    image = noise(4, 6)
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    found = Preprocessing(size=(4, 6), mean=mean, std=std)(image)
    want = (np.asarray(image) / 255 - np.array(mean)) / np.array(std)
    assert found.dtype == np.float32
    assert found.flags.c_contiguous
    np.testing.assert_allclose(found, want.transpose(2, 0, 1), atol=1e-6)


def test_without_mean_and_std_values_are_zero_to_one():
    black_white = Image.fromarray(np.array([[0, 255]], dtype=np.uint8))
    np.testing.assert_array_equal(Preprocessing(size=(1, 2), mode="L")(black_white), [[[0.0, 1.0]]])


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"])
def test_any_mode_of_image_becomes_the_mode_asked_for(mode):
    source = Image.new(mode, (7, 5))
    assert Preprocessing(size=(3, 4), mode="RGB", background=(0, 0, 0))(source).shape == (3, 3, 4)
    assert Preprocessing(size=(3, 4), mode="L", background=(0, 0, 0))(source).shape == (1, 3, 4)


@pytest.mark.parametrize("filter_name", ["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"])
def test_stretching_is_one_pillow_resize(filter_name):
    image = noise(9, 13)
    found = Preprocessing(size=(5, 4), interpolation=filter_name)(image)
    want = np.asarray(image.resize((4, 5), Image.Resampling[filter_name.upper()]), dtype=np.float32) / 255
    np.testing.assert_allclose(found, want.transpose(2, 0, 1), atol=1e-6)


@pytest.mark.parametrize(("height", "width"), [(40, 80), (80, 40)])
def test_a_centre_crop_keeps_the_middle_and_the_aspect(height, width):
    pixels = np.zeros((height, width), dtype=np.uint8)
    middle = (slice(height // 2 - 20, height // 2 + 20), slice(width // 2 - 20, width // 2 + 20))
    pixels[middle] = 255
    crop = Preprocessing(size=(10, 10), mode="L", resize="shorter_side_center_crop", interpolation="box")
    np.testing.assert_array_equal(crop(Image.fromarray(pixels)), np.ones((1, 10, 10)))
    assert Preprocessing(size=(10, 10), mode="L")(Image.fromarray(pixels)).mean() == pytest.approx(0.5, abs=0.05)


def test_a_centre_crop_of_the_same_aspect_is_a_stretch():
    image = noise(20, 30)
    crop = Preprocessing(size=(10, 15), resize="shorter_side_center_crop")
    np.testing.assert_array_equal(crop(image), Preprocessing(size=(10, 15))(image))


@settings(max_examples=60, deadline=None)
@given(*(st.integers(1, 70) for _ in range(4)), st.sampled_from(["stretch", "shorter_side_center_crop"]))
def test_any_size_becomes_the_size_asked_for(height, width, high, wide, resize):
    value = Preprocessing(size=(high, wide), resize=resize)(noise(height, width))
    assert value.shape == (3, high, wide)
    assert 0 <= value.min() <= value.max() <= 1


def test_the_orientation_a_camera_notes_is_applied(tmp_path):
    upright = np.zeros((2, 4), dtype=np.uint8)
    upright[0] = 255
    turned = Image.fromarray(np.rot90(upright))  # lies on its side: 6 says to turn it a quarter clockwise
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(tmp_path / "turned.png", exif=exif)
    value = Preprocessing(size=(2, 4), mode="L")(preprocess.load(tmp_path / "turned.png"))
    np.testing.assert_array_equal(value[0], upright / 255)


def test_calls_do_not_change_the_image_and_repeat():
    image, prepare = noise(9, 9), Preprocessing(size=(4, 4))
    before = image.tobytes()
    np.testing.assert_array_equal(prepare(image), prepare(image))
    assert image.tobytes() == before


def test_settings_survive_json_and_cannot_be_changed():
    value = Preprocessing(size=(4, 5), mode="L", mean=(0.13,), std=(0.3,), interpolation="bicubic")
    assert Preprocessing.model_validate_json(value.model_dump_json()) == value
    assert value.shape == (1, 4, 5)
    with pytest.raises(ValidationError):
        value.size = (1, 1)


@pytest.mark.parametrize(
    "bad",
    [
        {"size": (0, 4)},
        {"mean": (0.5,)},
        {"std": (1.0, 0.0, 1.0)},
        {"mean": (float("nan"), 0, 0)},
        {"mode": "HSV"},
        {"interpolation": "magic"},
        {"resize": "pad"},
        {"colour": 1},
    ],
)
def test_settings_that_make_no_sense_are_refused(bad):
    with pytest.raises(ValidationError):
        Preprocessing(**{"size": (4, 4), **bad})


@pytest.mark.parametrize(("ending", "keep"), [("jpg", 0.5), ("png", 0.5), ("gif", 0.2), ("jpg", 0.01), ("png", 0.0)])
def test_a_truncated_image_is_one_sentence(ending, keep, tmp_path):
    path = tmp_path / f"picture.{ending}"
    noise(64, 64).save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * keep)])
    with pytest.raises(DeployError, match=r"picture\..* is (a damaged|not an) image") as caught:
        preprocess.load(path)
    assert "\n" not in str(caught.value)


def test_a_missing_file_a_folder_and_a_bomb_are_one_sentence(tmp_path, monkeypatch):
    for path in (tmp_path / "none.png", tmp_path):
        with pytest.raises(DeployError, match="no image file at"):
            preprocess.load(path)
    noise(64, 64).save(tmp_path / "big.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(DeployError, match="too large"):
        preprocess.load(tmp_path / "big.png")


def test_a_whole_image_is_read(picture):
    assert preprocess.load(picture).size == (30, 40)
