"""What a picture is where its file leaves it open: transparency, bits, frames, order of colours, letterboxes."""

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deploy.errors import DeployError
from deploy.processing import preprocess
from deploy.processing.preprocess import Preprocessing

CPP = Path(__file__).resolve().parents[2] / "examples/cpp"
FILTERS = ("nearest", "box", "bilinear", "hamming", "bicubic", "lanczos")


def white_figure(mode="RGBA"):
    """A white bar on transparency under which the pixels are white too, as drawing programs save it."""
    pixels = np.full((8, 8, 4), 255, np.uint8)
    pixels[..., 3] = 0
    pixels[2:6, 3:5, 3] = 255
    return Image.fromarray(pixels).convert(mode)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_number_7_a_white_figure_on_nothing_shows_on_the_stated_background(mode):
    image = white_figure(mode)
    black = Preprocessing(size=(8, 8), mode="L", background=(0, 0, 0))(image)
    assert black[0, 3, 3] == 1 and black[0, 0, 0] == 0 and black.sum() == 8
    red = Preprocessing(size=(8, 8), background=(255, 0, 0))(image)
    assert red[:, 0, 0].tolist() == [1, 0, 0] and red[:, 3, 3].tolist() == [1, 1, 1]


def test_number_7_transparency_without_a_background_is_refused(tmp_path):
    path = tmp_path / "figure.png"
    white_figure().save(path)
    prepare = Preprocessing(size=(8, 8))
    for read in (lambda: prepare.load(path), lambda: prepare(white_figure())):
        with pytest.raises(DeployError, match=r"transparent pixels.* state background"):
            read()
    # Alpha that hides nothing is no question.
    solid = Image.new("RGBA", (4, 4), (10, 20, 30, 255))
    assert np.array_equal(Preprocessing(size=(4, 4))(solid), Preprocessing(size=(4, 4))(solid.convert("RGB")))
    half = Image.new("RGBA", (4, 4), (200, 200, 200, 128))
    grey = Preprocessing(size=(4, 4), mode="L", background=(0, 0, 0))(half)
    assert grey[0, 0, 0] == pytest.approx(200 / 255 * 128 / 255, abs=1 / 255)


def test_number_7_twelve_bits_in_sixteen_are_scaled_by_the_bits_stated(tmp_path):
    ramp = np.linspace(0, 4095, 64).reshape(8, 8).astype(np.uint16)
    path = tmp_path / "ramp.png"
    Image.fromarray(ramp).save(path)
    found = Preprocessing(size=(8, 8), mode="L", bits=12).load(path)
    assert np.abs(np.asarray(found) / 255 - ramp / 4095).max() < 0.01
    assert Preprocessing(size=(8, 8), mode="L", bits=16)(Preprocessing(size=(8, 8), bits=16).load(path)).max() < 0.07
    with pytest.raises(DeployError, match=r"numbers up to 4095 in 16 bits.*state preprocessing.bits, 12 or 16"):
        preprocess.load(path)
    with pytest.raises(DeployError, match=r"holds 4095, which 10 bits cannot"):
        Preprocessing(size=(8, 8), bits=10).load(path)


def test_number_7_an_animation_says_that_its_first_frame_was_read(tmp_path):
    frames = [Image.new("L", (8, 8), level) for level in (10, 200)]
    for name in ("moving.gif", "pages.tiff"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
        image = preprocess.load(tmp_path / name)
        assert image.info[preprocess.SEVERAL] and np.asarray(image.convert("L")).mean() == pytest.approx(10, abs=1)
    frames[0].save(tmp_path / "one.gif")
    assert preprocess.SEVERAL not in preprocess.load(tmp_path / "one.gif").info


def test_number_7_colours_come_in_the_order_stated():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (6, 6, 3), dtype=np.uint8))
    rgb = Preprocessing(size=(6, 6), mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))(image)
    bgr = Preprocessing(size=(6, 6), mean=(0.3, 0.2, 0.1), std=(0.7, 0.6, 0.5), channels="BGR")(image)
    np.testing.assert_array_equal(bgr, rgb[::-1])
    with pytest.raises(ValueError, match=r"mode L has one channel"):
        Preprocessing(size=(6, 6), mode="L", channels="BGR")


def test_number_7_a_letterbox_shows_the_whole_image_and_maps_back():
    image = Image.new("RGB", (40, 10), (255, 255, 255))
    prepare = Preprocessing(size=(20, 20), resize="letterbox", padding=114)
    found = prepare(image)
    assert found.shape == (3, 20, 20)
    assert (
        np.all(found[:, 7:12] == 1) and np.allclose(found[:, :7], 114 / 255) and np.allclose(found[:, 12:], 114 / 255)
    )
    left, top, right, bottom = prepare.visible_box(image)
    assert (left, right) == (0, 40) and (top, bottom) == (-14, 26)


def test_number_7_boxes_and_masks_follow_a_letterbox():
    from compress.data import Boxes
    from compress.data.geometry import Geometry, fitted
    from compress.data.targets import IGNORED

    image, prepare = Image.new("RGB", (40, 10)), Preprocessing(size=(20, 20), resize="letterbox")
    geometry = Geometry(prepare.visible_box(image), prepare.size)
    boxes = Boxes(np.array([[0, 0, 40, 10], [20, 0, 40, 10]], np.float32), np.array([0, 1]))
    assert fitted(boxes, geometry)["boxes"].tolist() == [[0, 7, 20, 12], [10, 7, 20, 12]]
    mask = np.zeros((10, 40), np.uint8)
    mask[:, 20:] = 3
    found = fitted(mask, geometry).numpy()
    assert (found[:7] == IGNORED).all() and (found[12:] == IGNORED).all()
    assert (found[7:12, :10] == 0).all() and (found[7:12, 10:] == 3).all()


def test_number_7_a_folder_counts_what_it_does_not_read(tmp_path):
    from compress import data
    from compress.data import ImageReader
    from compress.recipe.data import FolderData

    for split, name in ((s, n) for s in ("train", "test") for n in ("cat", "dog")):
        folder = tmp_path / split / name
        folder.mkdir(parents=True)
        for k in range(3):
            Image.new("RGB", (8, 8), (k, k, k)).save(folder / f"{k}.png")
    for k in range(2):
        Image.new("L", (8, 8)).save(tmp_path / f"train/cat/{k}.gif")
    (tmp_path / "train/notes.txt").write_text("hello")
    (tmp_path / "train/phone.heic").write_bytes(b"a format that is not read")
    frames = [Image.new("RGB", (8, 8), (k, 0, 0)) for k in (1, 2)]
    frames[0].save(tmp_path / "test/dog/pages.tiff", save_all=True, append_images=frames[1:])
    prepare = Preprocessing(size=(8, 8))
    found = data.load(FolderData(kind="folder", path=str(tmp_path)), ImageReader(prepare.load, prepare), 0)
    said = " ".join(found.notes)
    assert "3 file(s) were not read" in said and ".gif (2)" in said and ".heic (1)" in said and ".txt" not in said
    assert "Of 1 file(s) with several frames or pages the first was read: test/dog/pages.tiff." in said
    assert data.files.SEVERAL == preprocess.SEVERAL


@pytest.fixture(scope="session")
def cpp(tmp_path_factory):
    """The C++ preprocessing, compiled."""
    if shutil.which("g++") is None:
        pytest.skip("g++ is not installed")
    program = tmp_path_factory.mktemp("cpp") / "prepare"
    command = ["g++", "-O1", "-std=c++17", "-Wall", "-Wextra", "-Werror", "-ffp-contract=off", CPP / "prepare.cpp"]
    done = subprocess.run([*map(str, command), "-o", str(program)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return program


def netpbm(image, path):
    """Write a Pillow image as PAM."""
    pixels = np.asarray(image)
    depth, most = (1 if pixels.ndim == 2 else pixels.shape[2]), (65535 if pixels.dtype == np.uint16 else 255)
    head = f"P7\nWIDTH {image.width}\nHEIGHT {image.height}\nDEPTH {depth}\nMAXVAL {most}\nENDHDR\n"
    path.write_bytes(head.encode() + pixels.astype(">u2" if most > 255 else "u1").tobytes())
    return path


def in_cpp(cpp, prepare, image, folder):
    (folder / "manifest.json").write_text(json.dumps({"preprocessing": json.loads(prepare.model_dump_json())}))
    command = [cpp, folder / "manifest.json", folder / "out.f32", netpbm(image, folder / "image.pam")]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
    if done.returncode:
        return done
    return np.fromfile(folder / "out.f32", np.float32).reshape(prepare.shape)


CASES = [
    *(Preprocessing(size=(24, 17), interpolation=name, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4)) for name in FILTERS),
    *(Preprocessing(size=(24, 17), interpolation=name, resize="shorter_side_center_crop") for name in FILTERS),
    *(Preprocessing(size=(70, 90), interpolation=name, resize="letterbox", padding=114) for name in FILTERS),
    Preprocessing(size=(20, 20), mode="L"),
    Preprocessing(size=(37, 53), channels="BGR", mean=(0.1, 0.2, 0.3)),
]


def test_number_7_cpp_prepares_the_same_bits_as_python(cpp, tmp_path):
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (37, 53, 3), dtype=np.uint8))
    for prepare in CASES:
        np.testing.assert_array_equal(in_cpp(cpp, prepare, image, tmp_path), prepare(image), err_msg=str(prepare))
    clear = Image.fromarray(rng.integers(0, 256, (37, 53, 4), dtype=np.uint8))
    backed = Preprocessing(size=(20, 30), background=(250, 128, 3))
    np.testing.assert_array_equal(in_cpp(cpp, backed, clear, tmp_path), backed(clear))
    deep = Image.fromarray(rng.integers(0, 4096, (37, 53), dtype=np.uint16))
    bits = Preprocessing(size=(20, 30), mode="L", bits=12)
    np.testing.assert_array_equal(in_cpp(cpp, bits, deep, tmp_path), bits(deep))


def test_number_7_cpp_crops_to_the_bit_whatever_the_sizes(cpp, tmp_path):
    rng = np.random.default_rng(1)
    # Boxes whose edges single precision rounds: some of these were a level off.
    sizes = [(63, 38, 77, 46), (49, 38, 85, 70), (13, 22, 21, 31), (16, 23, 55, 82), (58, 9, 43, 5), (8, 14, 21, 60)]
    sizes += [tuple(int(side) for side in rng.integers(1, 90, 4)) for _ in range(24)]
    for place, (high, wide, *size) in enumerate(sizes):
        image = Image.fromarray(rng.integers(0, 256, (high, wide, 3), dtype=np.uint8))
        for name in ("bilinear", "lanczos", FILTERS[place % len(FILTERS)]):
            prepare = Preprocessing(size=tuple(size), interpolation=name, resize="shorter_side_center_crop")
            found = in_cpp(cpp, prepare, image, tmp_path)
            np.testing.assert_array_equal(found, prepare(image), err_msg=f"{high} x {wide}, {prepare}")


def test_number_7_cpp_refuses_what_python_refuses(cpp, tmp_path):
    for image, says in (
        (white_figure(), "states no background"),
        (Image.fromarray(np.full((4, 4), 4000, np.uint16)), "state preprocessing.bits"),
    ):
        done = in_cpp(cpp, Preprocessing(size=(8, 8)), image, tmp_path)
        assert (done.returncode, done.stdout) == (2, "") and says in done.stderr
