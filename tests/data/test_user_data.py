"""Data from a function of the user's: what it may give, and what is refused in one sentence."""

import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from kinds import read, refused
from PIL import Image

from compress import data
from compress.data import Boxes, ImageReader
from compress.errors import DataError
from compress.recipe.data import FunctionData
from compress.run.prepare import reader_of
from deploy.processing.preprocess import Preprocessing

MODULE = """
import numpy as np
from PIL import Image
from compress.data import Boxes, ImageData

class Items:
    def __init__(self, pairs): self.pairs = pairs
    def __len__(self): return len(self.pairs)
    def __getitem__(self, k): return self.pairs[k]

class Named(Items):
    classes = ["left", "right"]

def picture(k): return Image.new("L", (12, 10), k)
def pairs(target): return [(picture(k), target(k)) for k in range(6)]
def splits(kind, target): return {n: kind(pairs(target)) for n in ("train", "val", "test")}
def numbers(names=False): return splits(Named if names else Items, lambda k: np.int64(k % 2))
def mask(k): return np.eye(10, 12, dtype=np.int64) - 0 if k else np.full((10, 12), 255)
def masks(): return splits(Items, mask)
def boxes(): return splits(Items, lambda k: Boxes([[0, 0, 5, 6]] * (k % 3), [1] * (k % 3)))
def bad(what):
    return {
        "nothing": None, "a list": [1], "no test": {"train": [], "val": []},
        "empty": {"train": Items([]), "val": Items([]), "test": Items([])},
        "no length": {"train": iter([]), "val": 1, "test": 1},
        "text": splits(Items, lambda k: "cat"), "float": splits(Items, lambda k: 0.5),
        "array": {n: Items([(np.zeros((3, 3)), 0)]) for n in ("train", "val", "test")},
        "no pair": {n: Items([3]) for n in ("train", "val", "test")},
        "mixed": splits(Items, lambda k: mask(k) if k else 1),
        "labels": splits(Items, lambda k: Boxes([[0, 0, 5, 6]], [2])),
        "counts": splits(Items, lambda k: Boxes([[0, 0, 5, 6]], [1, 1])),
        "outside": splits(Items, lambda k: Boxes([[20, 0, 25, 6]], [1])),
        "shape": splits(Items, lambda k: np.zeros((12, 10), np.int64)),
        "negative": splits(Items, lambda k: k - 1),
    }[what]
constant = 3
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    (tmp_path / "own_data.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "own_data", raising=False)


@pytest.mark.usefixtures("own")
def test_a_function_gives_images_and_numbers():
    found = read(kind="function", function="own_data:numbers")
    assert (found.task, found.classes) == ("classification", ("0", "1"))
    assert found.splits["val"].labels.tolist() == [0, 1] * 3
    assert found.splits["val"].batch(torch.tensor([1, 4])).images.shape == (2, 3, 16, 16)
    assert read(kind="function", function="own_data:numbers", arguments={"names": True}).classes == ("left", "right")
    assert read(kind="function", function="own_data:numbers", classes=["l", "r", "s"]).classes == ("l", "r", "s")


@pytest.mark.usefixtures("own")
def test_a_function_gives_masks_or_boxes():
    found = read(kind="function", function="own_data:masks", classes=["off", "on"])
    assert found.task == "segmentation"
    assert found.splits["train"].targets[1].dtype == np.uint8
    assert found.splits["train"].targets[1].sum() == 10
    assert (found.splits["test"].targets[0] == 255).all()
    found = read(kind="function", function="own_data:boxes", classes=["a", "b"])
    assert found.task == "detection"
    target = found.splits["train"].targets[2]
    assert isinstance(target, Boxes)
    assert target.boxes.tolist() == [[0, 0, 5, 6]] * 2


@pytest.mark.usefixtures("own")
@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("nothing", ["NoneType", "mapping"]),
        ("a list", ["list"]),
        ("no test", ["train, val"]),
        ("empty", ["no image"]),
        ("no length", ["length"]),
        ("text", ["str", "target"]),
        ("float", ["float"]),
        ("array", ["ndarray", "PIL"]),
        ("no pair", ["not a pair"]),
        ("mixed", ["int, ndarray"]),
        ("labels", ["[2]", "2 classes"]),
        ("counts", ["1 boxes", "[1, 1]"]),
        ("outside", ["outside"]),
        ("shape", ["10x12", "12x10"]),
        ("negative", ["class -1"]),
    ],
)
def test_what_a_function_must_not_give(what, words):
    refused(*words, kind="function", function="own_data:bad", arguments={"what": what}, classes=["a", "b"])


@pytest.mark.usefixtures("own")
@pytest.mark.parametrize(
    ("function", "words"),
    [
        ("own_data:gone", ["cannot be imported", "gone"]),
        ("no_such_module:f", ["cannot be imported"]),
        ("own_data:constant", ["int", "not a function"]),
        ("own_data:bad", ["refuses", "TypeError"]),
        ("own_data:masks", ["list them in classes"]),
    ],
)
def test_a_function_that_cannot_be_called_is_one_sentence(function, words):
    refused(*words, kind="function", function=function)


def whole():
    """A data set made elsewhere, with a reader of its own."""
    images = [Image.new("RGB", (8, 8), (k, k, k)) for k in range(4)]
    other = ImageReader(Image.open, Preprocessing(size=(8, 8)))
    split = data.Split(images, torch.tensor([0, 1, 0, 1]), other)
    return data.ImageData(("a", "b"), {"train": split, "val": split, "test": split})


def test_a_whole_data_set_takes_the_reader_of_the_run(monkeypatch):
    monkeypatch.setitem(sys.modules, "whole_data", sys.modules[__name__])
    found = read(kind="function", function="whole_data:whole")
    assert found.classes == ("a", "b")
    assert found.example(2).shape == (2, 3, 16, 16)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"task": "counting"}, ["'counting'", "detection"]),
        ({"classes": ()}, ["()"]),
        ({"task": "detection"}, ["Tensor", "Boxes"]),
        ({"classes": ("a",)}, ["from 0 to 1"]),
        ({"splits": {}}, ["train, val and test"]),
    ],
)
def test_a_whole_data_set_is_held_against_what_it_says(change, words, monkeypatch):
    made = replace(whole(), **change)
    monkeypatch.setattr(sys.modules[__name__], "whole", lambda: made)
    monkeypatch.setitem(sys.modules, "whole_data", sys.modules[__name__])
    refused(*words, kind="function", function="whole_data:whole")


def seen(**changed):
    """The reader of a run with this preprocessing."""
    return reader_of(Preprocessing(size=(16, 16), interpolation="nearest", **changed))


def given(picture, reader, **more):
    pairs = [(picture, 0), (picture, 1)] * 3
    module = sys.modules["given_data"] = type(sys)("given_data")
    module.splits = lambda: dict.fromkeys(("train", "val", "test"), pairs)
    try:
        return data.load(FunctionData(kind="function", function="given_data:splits", **more), reader, 0)
    finally:
        del sys.modules["given_data"]


def test_pictures_of_a_function_show_what_those_of_files_show(tmp_path):
    clear = np.full((16, 16, 4), 255, np.uint8)
    clear[:8, :, 3] = 0
    ramp = np.linspace(0, 4095, 256).reshape(16, 16).astype(np.uint16)
    for pixels, changed in ((clear, {"background": (0, 0, 0)}), (ramp, {"bits": 12, "mode": "L"})):
        Image.fromarray(pixels).save(tmp_path / "picture.png")
        reader = seen(**changed)
        found = given(Image.fromarray(pixels), reader).splits["train"]
        wanted = reader.prepare(reader.load(tmp_path / "picture.png"))
        assert wanted.min() == 0 and wanted.max() > 0.99
        for augment in ("none", "flip"):
            images = found.batch(torch.arange(2), augment).images.numpy()
            np.testing.assert_array_equal(np.sort(images[0], axis=None), np.sort(wanted, axis=None))


def test_pictures_of_a_function_are_refused_where_those_of_files_are():
    clear = Image.new("RGBA", (16, 16), (255, 255, 255, 0))
    with pytest.raises(DataError, match=r"given_data:splits train\[0\]: .*transparent pixels.*state background"):
        given(clear, seen())
    deep = Image.fromarray(np.full((16, 16), 4000, np.uint16))
    with pytest.raises(DataError, match=r"numbers up to 4000 in 16 bits.*state preprocessing.bits"):
        given(deep, seen(mode="L"))
