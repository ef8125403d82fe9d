"""Data as people have it: splits under any usual name, YOLO's boxes, masks with labels of their own."""

import numpy as np
import pytest
from kinds import RECIPE, counts, picture, read, refused
from PIL import Image
from pydantic import ValidationError


def tree(root, *splits, images=5):
    """Two classes in each of the folders; "" is the root itself."""
    for k, split in enumerate(splits):
        for name in ("ant", "bee"):
            for i in range(images):
                picture(root / split / name / f"{i}.png", seed=100 * k + i)
    return root


@pytest.mark.parametrize(
    ("folders", "given", "expected", "said"),
    [
        (("train", "val", "test"), {}, {"train": 8, "val": 2, "test": 10}, ()),
        (("train", "test"), {"test": "val"}, {"train": 8, "val": 2, "test": 10}, ("test is the test split",)),
        (("train", "val"), {}, {"train": 8, "val": 2, "test": 10}, ("val is the test split",)),
        (("Training", "Valid"), {"val": "val"}, {"train": 8, "val": 2, "test": 10}, ("Valid is the test split",)),
        (("training", "validation", "testing"), {"val": "val"}, {"train": 10, "val": 10, "test": 10}, ("testing",)),
        (("train",), {}, {"train": 6, "val": 2, "test": 2}, ("20% of the training images are the test",)),
        (("",), {}, {"train": 6, "val": 2, "test": 2}, ("class folders of",)),
        (("train",), {"test": 0.4, "val": 0.4}, {"train": 4, "val": 2, "test": 4}, ()),
    ],
    ids=["all three", "the README's", "no test", "other names", "long names", "train alone", "classes alone", "shares"],
)
def test_folders_are_found_under_any_usual_name(tmp_path, folders, given, expected, said):
    found = read(kind="folder", path=str(tree(tmp_path / "photos", *folders)), **given)
    assert found.classes == ("ant", "bee")
    assert counts(found) == expected
    paths = [{p.resolve() for p in split.images.paths} for split in found.splits.values()]
    assert sum(map(len, paths)) == len(set.union(*paths)), "no image is in two splits"
    for words in said:
        assert any(words in note for note in found.notes), found.notes
    assert bool(found.notes) == bool(said)


def test_a_name_that_is_meant_is_not_replaced_by_another(tmp_path):
    root = tree(tmp_path, "train", "test")
    refused("There is no folder", "holdout", kind="folder", path=str(root), test="holdout")
    refused("There is no folder", "target.path", kind="folder", path=str(root / "none"))
    refused("put the training images there", kind="folder", path=str(tree(tmp_path / "t", "test")))
    (tmp_path / "empty").mkdir()
    refused("put the training images there", kind="folder", path=str(tmp_path / "empty"))


# YOLO -----------------------------------------------------------------------------------------------------


def yolo(root, folders=("train", "val"), lines="1 0.5 0.5 0.25 0.5\n", *, inside=False, count=5):
    """Images of 24 x 20 pixels; the last one of each folder has no labels."""
    for k, name in enumerate(folders):
        images, labels = (f"{name}/images", f"{name}/labels") if inside else (f"images/{name}", f"labels/{name}")
        (root / labels).mkdir(parents=True)
        for i in range(count):
            picture(root / images / f"{i}.png", seed=10 * k + i)
            if i < count - 1:
                (root / labels / f"{i}.txt").write_text(lines)
    return root


def about(root, text):
    (root / "data.yaml").write_text(text)
    return {"kind": "yolo", "path": str(root)}


def test_yolo_counts_and_names_what_it_does_not_read(tmp_path):
    root = yolo(tmp_path / "set")
    for name in ("a.gif", "b.gif", "c.heic", "classes.txt"):
        (root / "images/train" / name).write_bytes(b"not read")
    (note,) = (n for n in read(**about(root, "names: [cat, dog]\n")).notes if "not read" in n)
    assert "3 file(s) were not read" in note and ".gif (2), .heic (1)" in note


def test_yolo_boxes_are_read_in_pixels(tmp_path):
    given = about(yolo(tmp_path, ("train", "val", "test")), "train: images/train\nval: images/val\nnames: [cat, dog]\n")
    found = read(**given)
    assert (found.task, found.classes) == ("detection", ("cat", "dog"))
    assert counts(found) == {"train": 5, "val": 5, "test": 5}
    first, *_, last = found.splits["train"].targets
    np.testing.assert_allclose(first.boxes, [[9, 5, 15, 15]])
    assert first.labels.tolist() == [1]
    assert len(last.labels) == 0


@pytest.mark.parametrize(
    "text",
    [
        "path: .\ntrain: images/train\nval: images/val\nnames: {0: cat, 1: dog}\n",
        "path: ../elsewhere\ntrain: ../images/train\nvalid: [images/val]\nnames: [cat, dog]\nnc: 2\n",
        "train: train.txt\nval: images/val\nnames: [cat, dog]\n",
        "names: [cat, dog]\n",
    ],
    ids=["path and a mapping", "a download's", "a list", "names alone"],
)
def test_every_usual_yaml_is_understood(tmp_path, text):
    root = yolo(tmp_path / "set")
    (root / "train.txt").write_text("".join(f"images/train/{i}.png\n" for i in range(5)))
    found = read(**about(root, text))
    assert counts(found) == {"train": 4, "val": 1, "test": 5}
    assert any("val images are tested on" in note for note in found.notes)


def test_images_and_labels_lie_in_each_split_too_and_outlines_are_boxes(tmp_path):
    root = yolo(tmp_path, ("train", "valid", "test"), "0 0.25 0.5 0.5 0.25 0.75 0.5 0.5 0.75\n", inside=True)
    found = read(**about(root, "names: [cat]\n"))
    assert counts(found) == {"train": 5, "val": 5, "test": 5}
    np.testing.assert_allclose(found.splits["val"].targets[0].boxes, [[6, 5, 18, 15]])


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("2 .5 .5 .1 .1", "is of class 2, and there are 2"),
        ("0.5 .5 .5 .1 .1", "is of class 0.5"),
        ("0 .5 .5 .1", "has 3 numbers"),
        ("cat .5 .5 .1 .1", "not a class and numbers"),
        ("0 12 10 5 5", "shares of the image"),
        ("0 nan .5 .1 .1", "shares of the image"),
    ],
)
def test_a_line_that_is_no_box_is_refused(tmp_path, line, said):
    refused(said, ".txt, line 1", **about(yolo(tmp_path, lines=line), "names: [cat, dog]\n"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("train: images/train\n", "does not name the classes"),
        ("names: [a, a]\n", "names a class twice"),
        ("names: [a, b\n", "is not YAML (line 2, column 1: expected"),
        ("- a\n", "holds list"),
        ("names: [a, b]\ntrain: images/none\n", "which the split train names"),
        ("names: [a, b]\ntrain: 3\n", "name a folder of images"),
    ],
)
def test_a_yaml_that_says_too_little_is_refused(tmp_path, text, said):
    refused(said, **about(yolo(tmp_path), text))
    refused("There is no", kind="yolo", path=str(tmp_path / "none"))


# Masks ----------------------------------------------------------------------------------------------------


def masks(root, labels):
    """Four images a split whose masks show ``labels`` in stripes."""
    for k, split in enumerate(("train", "val", "test")):
        for i in range(4):
            picture(root / split / "images" / f"{i}.png", seed=10 * k + i)
            mask = np.resize(np.repeat(labels, 4), (20, 24)).astype(np.uint8)
            (root / split / "masks").mkdir(parents=True, exist_ok=True)
            Image.fromarray(mask).save(root / split / "masks" / f"{i}.png")
    splits = {name: {"images": f"{name}/images", "masks": f"{name}/masks"} for name in ("train", "val", "test")}
    return {"kind": "masks", "path": str(root), **splits}


def test_labels_of_their_own_become_classes_and_zero_is_ignored(tmp_path):
    given = masks(tmp_path, [0, 7, 8, 21])
    found = read(**given, ids={7: "road", 8: "road", 21: "tree"}, ignore=0)
    assert found.classes == ("road", "tree")
    assert np.unique(found.splits["train"].targets[0]).tolist() == [0, 1, 255]
    assert (found.splits["train"].targets[0] == 255).mean() == pytest.approx(0.25, abs=0.1)
    found = read(**given, ids={7: "road", 8: "road", 21: "tree"}, ignore=[0], classes=["tree", "road"])
    assert found.classes == ("tree", "road")
    assert int(found.splits["test"].targets[0][0, 4]) == 1


def test_labels_that_ids_do_not_name_are_refused(tmp_path):
    given = masks(tmp_path, [0, 7, 8])
    refused("holds the label 0", **given, ids={7: "road", 8: "tree"})
    refused("ids names the class 'tree'", **given, ids={7: "road", 8: "tree"}, classes=["road", "bush"], ignore=0)
    refused(
        "No label in ids maps to the class 'bush'", **given, ids={7: "a", 8: "b"}, classes=["a", "b", "bush"], ignore=0
    )
    refused("ignore_index 0 is the class 'a'", "ids", **given, classes=["a", "b"], ignore=0)
    for wrong in ({}, {"ids": {0: "a", 7: "b"}, "ignore": 0}, {"ids": {}}):
        with pytest.raises(ValidationError):
            RECIPE.validate_python({**given, **wrong})
