"""Data by kind: what is read from VOC, COCO, masks, CSV and a function, and what is refused in one sentence."""

import json
import os
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import TypeAdapter

from compress import data
from compress.data import Boxes, ImageReader
from compress.errors import DataError, ImageError
from compress.recipe.data import DataRecipe
from deploy.errors import DeployError
from deploy.processing import preprocess
from deploy.processing.preprocess import Preprocessing

RECIPE = TypeAdapter(DataRecipe)


def load(path):
    """As a run loads images: what cannot be read is an ImageError."""
    try:
        return preprocess.load(path)
    except DeployError as error:
        raise ImageError(str(error)) from None


READER = ImageReader(load, Preprocessing(size=(16, 16)))


def read(**recipe):
    return data.load(RECIPE.validate_python(recipe), READER, 0)


def refused(*words, **recipe):
    with pytest.raises(DataError) as caught:
        read(**recipe)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert str(word) in message, message


def picture(path, size=(24, 20), seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def counts(found):
    return {name: len(split) for name, split in found.splits.items()}


# VOC --------------------------------------------------------------------------------------------------------


def voc_object(name="cat", box=(3, 4, 10, 12), difficult=0):
    x1, y1, x2, y2 = box
    return (
        f"<object><name>{name}</name><difficult>{difficult}</difficult><bndbox><xmin>{x1}</xmin><ymin>{y1}</ymin>"
        f"<xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox></object>"
    )


def voc_file(root, name, *objects, size=(24, 20), head=""):
    path = root / "Annotations" / f"{name}.xml"
    path.parent.mkdir(exist_ok=True)
    size = f"<size><width>{size[0]}</width><height>{size[1]}</height><depth>3</depth></size>"
    path.write_text(f"{head}<annotation>{size}{''.join(objects)}</annotation>")
    return path


@pytest.fixture
def voc(tmp_path):
    lists = {"train": [f"a{k}" for k in range(6)], "val": ["b0"], "test": ["c0", "c1"]}
    for split, names in lists.items():
        (tmp_path / "ImageSets/Main").mkdir(parents=True, exist_ok=True)
        (tmp_path / f"ImageSets/Main/{split}.txt").write_text("\n".join(names) + "\n\n")
        for name in names:
            picture(tmp_path / f"JPEGImages/{name}.png")
            voc_file(tmp_path, name, voc_object(), voc_object("ant", (1, 1, 24, 20)))
    return tmp_path


def test_voc_boxes_count_from_one_with_both_ends_inside(voc):
    found = read(kind="voc", path=str(voc))
    assert found.task == "detection"
    assert found.classes == ("ant", "cat")
    assert counts(found) == {"train": 6, "val": 1, "test": 2}
    target = found.splits["train"].targets[0]
    assert target.boxes.tolist() == [[2, 3, 10, 12], [0, 0, 24, 20]]
    assert target.labels.tolist() == [1, 0]
    assert (target.boxes.dtype, target.labels.dtype) == (np.float32, np.int64)
    assert found.notes == ()


def test_voc_classes_are_in_the_order_given(voc):
    found = read(kind="voc", path=str(voc), classes=["cat", "dog", "ant"])
    assert found.splits["test"].targets[1].labels.tolist() == [0, 2]


def test_voc_leaves_out_what_is_difficult_or_flat_and_cuts_what_reaches_over(voc):
    voc_file(
        voc,
        "a0",
        voc_object(difficult=1),
        voc_object(box=(5, 5, 5, 9)),
        voc_object(box=(20, 15, 30, 40)),
        voc_object(box=(0, 0, 3, 3)),
    )
    found = read(kind="voc", path=str(voc))
    assert found.splits["train"].targets[0].boxes.tolist() == [[19, 14, 24, 20], [0, 0, 3, 3]]
    flat, cut, difficult = found.notes
    assert flat == "1 box(es) without area were left out: a0.png."
    assert cut.startswith("2 box(es) reach over")
    assert difficult.startswith("1 object(s) marked difficult")


def test_voc_holds_out_the_same_share_every_time(voc):
    (voc / "ImageSets/Main/val.txt").unlink()
    first, again = (read(kind="voc", path=str(voc), val=0.34) for _ in range(2))
    assert counts(first) == {"train": 4, "val": 2, "test": 2}
    assert first.splits["val"].images.paths == again.splits["val"].images.paths
    assert not set(first.splits["val"].images.paths) & set(first.splits["train"].images.paths)


def test_voc_lists_may_lie_one_higher_and_be_named(voc):
    for split in ("train", "val", "test"):
        (voc / f"ImageSets/Main/{split}.txt").rename(voc / f"ImageSets/{split}.txt")
    (voc / "ImageSets/Main").rmdir()
    assert counts(read(kind="voc", path=str(voc)))["train"] == 6
    refused("ImageSets/Layout", "lists", kind="voc", path=str(voc), lists="ImageSets/Layout")


def test_voc_refuses_entities_before_they_grow(voc):
    inner = "".join(f'<!ENTITY e{k} "{f"&e{k - 1};" * 10}">' for k in range(1, 12))
    head = f'<?xml version="1.0"?><!DOCTYPE annotation [<!ENTITY e0 "ha">{inner}]>'
    path = voc_file(voc, "a1", voc_object("&e11;"), head=head)
    start = time.monotonic()
    refused(path, "DOCTYPE", kind="voc", path=str(voc))
    path.write_bytes(path.read_text().encode("utf-16"))
    refused(path, "DOCTYPE", kind="voc", path=str(voc))
    assert time.monotonic() - start < 5


@pytest.mark.parametrize(
    ("objects", "words"),
    [
        ([voc_object(box=(10, 4, 3, 12))], ["corners"]),
        ([voc_object(box=("nan", 4, 3, 12))], ["corners"]),
        ([voc_object(box=("x", 4, 3, 12))], ["no VOC annotation", "'x'"]),
        ([voc_object(box=(40, 4, 50, 12))], ["outside", "24x20"]),
        (["<object><name>cat</name></object>"], ["no <bndbox/xmin>"]),
        (["<object>"], ["no VOC annotation"]),
    ],
)
def test_a_bad_voc_annotation_is_one_sentence(voc, objects, words):
    path = voc_file(voc, "a2", *objects)
    refused(path, *words, kind="voc", path=str(voc))


def test_voc_names_what_is_missing_or_does_not_fit(voc):
    path = voc_file(voc, "c0", voc_object("wolf"))
    refused(path, "wolf", "ant, cat", kind="voc", path=str(voc))
    path = voc_file(voc, "c0", voc_object(), size=(20, 24))
    refused(path, "20x24", "24x20", kind="voc", path=str(voc))
    path.unlink()
    refused(path, "no annotation", kind="voc", path=str(voc))
    voc_file(voc, "c0", voc_object(), size=(0, 0))
    assert counts(read(kind="voc", path=str(voc)))["test"] == 2
    (voc / "JPEGImages/c0.png").unlink()
    refused(voc / "JPEGImages/c0.jpg", kind="voc", path=str(voc))
    (voc / "ImageSets/Main/test.txt").write_text("\n")
    refused("test.txt", "empty", kind="voc", path=str(voc))
    (voc / "ImageSets/Main/test.txt").unlink()
    refused("test.txt", kind="voc", path=str(voc))
    refused(voc / "gone", kind="voc", path=str(voc / "gone"))


def test_a_size_is_the_upright_image(voc):
    image = Image.open(voc / "JPEGImages/a0.png").copy()
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(voc / "JPEGImages/a0.png", exif=exif)
    refused("24x20", "20x24", kind="voc", path=str(voc))
    voc_file(voc, "a0", voc_object(box=(1, 1, 20, 24)), size=(20, 24))
    found = read(kind="voc", path=str(voc))
    image, target = found.splits["train"].sample(0)
    assert image.size == (20, 24)
    assert target.boxes.tolist() == [[0, 0, 20, 24]]


# COCO -------------------------------------------------------------------------------------------------------


def coco_file(images=("x.png",), **changes):
    return {
        "info": {"year": 2017},
        "images": [{"id": 10 + k, "file_name": n, "width": 24, "height": 20} for k, n in enumerate(images)],
        "annotations": [
            {"id": 1, "image_id": 10, "category_id": 9, "bbox": [1, 2, 3.5, 4], "iscrowd": 0, "segmentation": [[1, 2]]},
            {"id": 2, "image_id": 10, "category_id": 4, "bbox": [0, 0, 24, 20]},
        ],
        "categories": [{"id": 9, "name": "cat"}, {"id": 4, "name": "dog"}, {"id": 5, "name": "owl"}],
        **changes,
    }


@pytest.fixture
def coco(tmp_path):
    for split, names in (("train", [f"{k}.png" for k in range(5)]), ("val", ["x.png"]), ("test", ["y.png"])):
        for name in names:
            picture(tmp_path / split / name)
        (tmp_path / f"{split}.json").write_text(json.dumps(coco_file(names)))
    splits = {s: {"images": s, "annotations": f"{s}.json"} for s in ("train", "val", "test")}
    return {"kind": "coco", "path": str(tmp_path), **splits}


def rewrite(coco, split="train", **changes):
    path = Path(coco["path"]) / f"{split}.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return path


def test_coco_categories_are_classes_in_the_order_of_their_ids(coco):
    found = read(**coco)
    assert (found.task, found.classes, found.notes) == ("detection", ("dog", "owl", "cat"), ())
    assert counts(found) == {"train": 5, "val": 1, "test": 1}
    target = found.splits["train"].targets[0]
    assert target.boxes.tolist() == [[1, 2, 4.5, 6], [0, 0, 24, 20]]
    assert target.labels.tolist() == [2, 0]
    assert found.splits["train"].targets[1].boxes.shape == (0, 4)


def test_coco_leaves_crowds_out_and_says_so(coco):
    item = {"image_id": 10, "category_id": 9, "bbox": [1, 2, 3, 4]}
    rewrite(coco, annotations=[item, {**item, "iscrowd": 1}, {**item, "bbox": [3, 3, 0, 2]}])
    found = read(**coco)
    assert len(found.splits["train"].targets[0].labels) == 1
    assert [note.split(" were")[0] for note in found.notes] == ["1 box(es) without area", "1 crowd region(s)"]


def test_coco_holds_out_a_share(coco):
    found = read(**{**coco, "val": 0.4})
    assert counts(found) == {"train": 3, "val": 2, "test": 1}


ITEM = {"image_id": 10, "category_id": 9, "bbox": [1, 2, 3, 4]}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"annotations": [{**ITEM, "image_id": 99}]}, ["annotation 0", "image_id 99"]),
        ({"annotations": [ITEM, {**ITEM, "category_id": 1}]}, ["annotation 1", "category_id 1"]),
        ({"annotations": [{**ITEM, "bbox": [1, 2, 3]}]}, ["annotations.0.bbox"]),
        ({"annotations": [{**ITEM, "bbox": [1, 2, -3, 4]}]}, ["negative"]),
        ({"annotations": [{**ITEM, "bbox": [1, 2, float("inf"), 4]}]}, ["train.json"]),
        ({"annotations": [{**ITEM, "bbox": [100, 2, 3, 4]}]}, ["outside"]),
        ({"annotations": "none"}, ["annotations", "array"]),
        ({"annotations": []}, ["nothing to learn"]),
        ({"images": [{"id": 1, "file_name": "a"}] * 2}, ["one id"]),
        ({"images": []}, ["no image"]),
        ({"categories": []}, ["no category"]),
        ({"categories": [{"id": 9, "name": "a"}, {"id": 4, "name": "a"}]}, ["one name"]),
    ],
)
def test_a_bad_coco_file_is_one_sentence(coco, changes, words):
    path = rewrite(coco, **changes)
    refused(*words, **coco)
    path.write_text("[1, 2")
    refused(path, "no COCO annotation", **coco)


def test_coco_splits_have_the_same_categories(coco):
    path = rewrite(coco, "test", categories=[{"id": 9, "name": "cat"}, {"id": 4, "name": "cow"}])
    refused(path, "other categories", **coco)
    path.unlink()
    refused(path, **coco)


# Masks ------------------------------------------------------------------------------------------------------


@pytest.fixture
def masks(tmp_path):
    for split, count in (("train", 5), ("val", 1), ("test", 2)):
        for k in range(count):
            picture(tmp_path / split / f"images/{k}.jpg")
            mask = np.zeros((20, 24), np.uint8)
            mask[:, 8:], mask[0] = 1, 11
            (tmp_path / split / "masks").mkdir(exist_ok=True)
            Image.fromarray(mask).save(tmp_path / split / f"masks/{k}.png")
    splits = {s: {"images": f"{s}/images", "masks": f"{s}/masks"} for s in ("train", "val", "test")}
    return {"kind": "masks", "path": str(tmp_path), "classes": ["road", "car"], "ignore_index": 11, **splits}


def test_masks_are_indices_and_what_is_ignored_is_255(masks):
    found = read(**masks)
    assert (found.task, found.classes, found.notes) == ("segmentation", ("road", "car"), ())
    assert counts(found) == {"train": 5, "val": 1, "test": 2}
    mask = found.splits["train"].targets[0]
    assert mask.dtype == np.uint8
    assert mask.shape == (20, 24)
    assert (mask[0] == 255).all()
    assert mask[1].tolist() == [0] * 8 + [1] * 16


@pytest.mark.parametrize("mode", ["palette", "16 bits"])
def test_masks_of_other_modes_are_the_same_indices(masks, mode):
    plain = read(**masks).splits["train"].targets[0]
    path = Path(masks["path"]) / "train/masks/0.png"
    image = Image.open(path)
    if mode == "palette":
        image = image.copy()
        image.putpalette([v for k in range(256) for v in (255 - k, k, 7)])
    else:
        image = Image.fromarray(np.asarray(image).astype(np.uint16))
    image.save(path)
    assert Image.open(path).mode == {"palette": "P", "16 bits": "I;16"}[mode]
    assert (read(**masks).splits["train"].targets[0] == plain).all()


def test_classes_may_be_a_file(masks):
    path = Path(masks["path"]) / "names.txt"
    path.write_text("road\r\ncar\n\n")
    assert read(**{**masks, "classes": "names.txt"}).classes == ("road", "car")
    path.write_text("road\nroad")
    refused(path, "twice", **{**masks, "classes": "names.txt"})
    refused("none.txt", **{**masks, "classes": "none.txt"})


def test_a_class_without_a_pixel_is_noted(masks):
    found = read(**{**masks, "classes": ["road", "car", "tree"]})
    assert found.notes == ("No training mask has a pixel of tree.",)


def test_bad_masks_are_one_sentence(masks):
    root = Path(masks["path"])
    refused("the label 11", "2 classes", **{**masks, "ignore_index": 255})
    refused("ignore_index 1", "car", **{**masks, "ignore_index": 1})
    path = root / "test/masks/1.png"
    Image.new("RGB", (24, 20)).save(path)
    refused(path, "mode RGB", **masks)
    Image.new("L", (20, 24)).save(path)
    refused(path, "20x24", "24x20", **masks)
    path.write_bytes(b"no image")
    refused(path, **masks)
    path.unlink()
    refused("1 name(s) (1)", **masks)
    picture(root / "test/images/1.png")
    refused("same stem", **masks)


def test_a_foreground_of_255_is_not_a_class(masks):
    for split in ("train", "val", "test"):
        for path in (Path(masks["path"]) / split / "masks").iterdir():
            Image.fromarray((np.arange(480).reshape(20, 24) % 2 * 255).astype(np.uint8)).save(path)
    refused("no pixel of car", **{**masks, "ignore_index": 255})


# CSV --------------------------------------------------------------------------------------------------------


@pytest.fixture
def table(tmp_path):
    for k in range(8):
        picture(tmp_path / f"images/{k}.jpg", seed=k)
    rows = "".join(f"images/{k}.jpg,{k % 2 + 9}\n" for k in range(6))
    (tmp_path / "train.csv").write_text("path,label\n" + rows, encoding="utf-8-sig")
    (tmp_path / "test.csv").write_text('path,label\n"images/6.jpg",9\n\nimages/7.jpg,10\n')
    return tmp_path


def test_a_csv_is_read_and_numbers_sort_as_numbers(table):
    found = read(kind="csv", path=str(table), val=0.34)
    assert (found.task, found.classes) == ("classification", ("9", "10"))
    assert counts(found) == {"train": 4, "val": 2, "test": 2}
    assert sorted(found.splits["val"].labels.tolist()) == [0, 1]
    assert found.splits["test"].labels.tolist() == [0, 1]
    assert found.splits["test"].images.paths[0] == table / "images/6.jpg"


def test_columns_have_the_names_given(table):
    for split in ("train", "test"):
        path = table / f"{split}.csv"
        path.write_text(path.read_text(encoding="utf-8-sig").replace("path,label", "file,species"))
    refused("'path'", "file, species", kind="csv", path=str(table))
    found = read(kind="csv", path=str(table), val="test.csv", image_column="file", label_column="species")
    assert counts(found) == {"train": 6, "val": 2, "test": 2}


def test_a_bad_csv_is_one_sentence(table):
    test = table / "test.csv"
    test.write_text("path,label\nimages/6.jpg,wolf\n")
    refused(test, "'wolf'", kind="csv", path=str(table))
    test.write_text("path,label\nimages/6.jpg\n")
    refused(test, "line 2", "empty", kind="csv", path=str(table))
    test.write_text("path,label\nimages/60.jpg,9\n")
    refused("images/60.jpg", kind="csv", path=str(table))
    test.write_text("path,label\n")
    refused(test, "no row", kind="csv", path=str(table))
    test.write_bytes(b"path,label\n\xff\xfe,9\n")
    refused(test, "UTF-8", kind="csv", path=str(table))
    test.unlink()
    refused(test, kind="csv", path=str(table))


# A function -------------------------------------------------------------------------------------------------

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


# Real data --------------------------------------------------------------------------------------------------


def real(name):
    root = os.environ.get("NIWAKI_DATA")
    if not root:
        pytest.skip("NIWAKI_DATA is not set")
    if not (Path(root) / name).is_dir():
        pytest.skip(f"{root} holds no {name}")
    return Path(root) / name


@pytest.mark.data
def test_blood_cells_are_read():
    found = read(kind="voc", path=str(real("bccd")))
    assert found.classes == ("Platelets", "RBC", "WBC")
    assert counts(found) == {"train": 205, "val": 87, "test": 72}
    labels = np.concatenate([t.labels for split in found.splits.values() for t in split.targets])
    # The set has 4,155 red cells; two of them have no area.
    assert np.bincount(labels).tolist() == [361, 4153, 372]
    assert [note.split(" were")[0] for note in found.notes] == ["2 box(es) without area"]


@pytest.mark.data
def test_street_scenes_are_read():
    splits = {s: {"images": f"{s}/images", "masks": f"{s}/masks"} for s in ("train", "val", "test")}
    names = ["sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian", "bicyclist"]
    found = read(kind="masks", path=str(real("camvid")), classes=names, ignore_index=11, **splits)
    assert counts(found) == {"train": 367, "val": 101, "test": 233}
    assert found.notes == ()
    whole = np.bincount(np.concatenate([m.reshape(-1) for m in found.splits["train"].targets]), minlength=256)
    assert 0.02 < whole[255] / whole.sum() < 0.06
    assert whole[:11].min() > 0
    assert whole[11:255].sum() == 0
