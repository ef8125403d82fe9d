"""Masks, and classes from a table: what is read, and what is refused in one sentence."""

from pathlib import Path

import numpy as np
import pytest
from kinds import counts, picture, read, real, refused
from PIL import Image

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
