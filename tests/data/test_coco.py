"""Boxes from COCO: what is read, and what is refused in one sentence."""

import json
from pathlib import Path

import pytest
from kinds import counts, picture, read, refused


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
    refused(path, "not a COCO annotation", **coco)


def test_coco_splits_have_the_same_categories(coco):
    path = rewrite(coco, "test", categories=[{"id": 9, "name": "cat"}, {"id": 4, "name": "cow"}])
    refused(path, "other categories", **coco)
    path.unlink()
    refused(path, **coco)
