"""Boxes from Pascal VOC: what is read, and what is refused in one sentence."""

import time

import numpy as np
import pytest
from kinds import counts, picture, read, real, refused
from PIL import Image


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
    assert cut.startswith("2 box(es) crossed")
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
    start = time.process_time()
    refused(path, "DOCTYPE", kind="voc", path=str(voc))
    path.write_bytes(path.read_text().encode("utf-16"))
    refused(path, "DOCTYPE", kind="voc", path=str(voc))
    assert time.process_time() - start < 5


@pytest.mark.parametrize(
    ("objects", "words"),
    [
        ([voc_object(box=(10, 4, 3, 12))], ["corners"]),
        ([voc_object(box=("nan", 4, 3, 12))], ["corners"]),
        ([voc_object(box=("x", 4, 3, 12))], ["not a VOC annotation", "'x'"]),
        ([voc_object(box=(40, 4, 50, 12))], ["outside", "24x20"]),
        (["<object><name>cat</name></object>"], ["no <bndbox/xmin>"]),
        (["<object>"], ["not a VOC annotation"]),
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


@pytest.mark.data
def test_blood_cells_are_read():
    found = read(kind="voc", path=str(real("bccd")))
    assert found.classes == ("Platelets", "RBC", "WBC")
    assert counts(found) == {"train": 205, "val": 87, "test": 72}
    labels = np.concatenate([t.labels for split in found.splits.values() for t in split.targets])
    # The set has 4,155 red cells; two of them have no area.
    assert np.bincount(labels).tolist() == [361, 4153, 372]
    assert [note.split(" were")[0] for note in found.notes] == ["2 box(es) without area"]
