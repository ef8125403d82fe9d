"""Images that cannot be read: left out and counted up to the stated limit, then one sentence."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from pydantic import TypeAdapter, ValidationError

from compress import data
from compress.data import files, images
from compress.data.images import ImageReader
from compress.data.loader import Feed
from compress.errors import DataError, ImageError
from compress.recipe.data import DataRecipe
from compress.recipe.loading import load_recipe
from compress.run.ledger import Ledger
from compress.run.prepare import _loaded, prepare
from compress.run.progress import StageView
from compress.run.stages import train as stages
from deploy.processing.preprocess import Preprocessing

pytestmark = pytest.mark.heavy

ROOT = Path(__file__).resolve().parents[2]
READER = ImageReader(_loaded, Preprocessing(size=(16, 16)))


def read(recipe, unreadable=0):
    return data.load(TypeAdapter(DataRecipe).validate_python({**recipe, "unreadable": unreadable}), READER, 0)


def picture(path, value=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (20, 20), (value, 9, 200)).save(path)


def folder(root):
    for split in ("train", "test"):
        for name in ("ant", "bee"):
            for k in range(5):
                picture(root / split / name / f"{k}.png", k)
    return {"kind": "folder", "path": str(root)}, [root / "train/bee/0.png", root / "test/ant/4.png"]


def csv(root):
    folder(root)
    for split in ("train", "test"):
        rows = [f"{split}/{name}/{k}.png,{name}" for name in ("ant", "bee") for k in range(5)]
        (root / f"{split}.csv").write_text("path,label\n" + "\n".join(rows))
    return {"kind": "csv", "path": str(root)}, [root / "train/bee/0.png", root / "test/ant/4.png"]


def masks(root):
    for split in ("train", "test"):
        for k in range(8):
            picture(root / split / f"{k}.png", k)
            (root / f"{split}-masks").mkdir(exist_ok=True)
            Image.fromarray(np.eye(20, dtype=np.uint8)).save(root / f"{split}-masks/{k}.png")
    splits = {s: {"images": s, "masks": f"{s}-masks"} for s in ("train", "test")}
    recipe = {"kind": "masks", "path": str(root), "classes": ["a", "b"], "val": 0.25, **splits}
    return recipe, [root / "train/0.png", root / "test-masks/4.png"]


def coco(root):
    for split in ("train", "test"):
        for k in range(8):
            picture(root / split / f"{k}.png", k)
        found = {
            "images": [{"id": k, "file_name": f"{k}.png"} for k in range(8)],
            "annotations": [{"image_id": k, "category_id": 1, "bbox": [k, 0, 4, 4]} for k in range(8)],
            "categories": [{"id": 1, "name": "cell"}],
        }
        (root / f"{split}.json").write_text(json.dumps(found))
    splits = {s: {"images": s, "annotations": f"{s}.json"} for s in ("train", "test")}
    return {"kind": "coco", "path": str(root), "val": 0.25, **splits}, [root / "train/0.png", root / "test/4.png"]


def voc(root):
    for split in ("train", "val", "test"):
        names = [f"{split}{k}" for k in range(4)]
        (root / "ImageSets").mkdir(exist_ok=True)
        (root / f"ImageSets/{split}.txt").write_text("\n".join(names))
        for k, name in enumerate(names):
            picture(root / f"JPEGImages/{name}.png", k)
            (root / "Annotations").mkdir(exist_ok=True)
            (root / f"Annotations/{name}.xml").write_text(
                "<annotation><object><name>cell</name><bndbox><xmin>2</xmin><ymin>3</ymin><xmax>9</xmax><ymax>9</ymax>"
                "</bndbox></object></annotation>"
            )
    return {"kind": "voc", "path": str(root)}, [root / "JPEGImages/train0.png", root / "JPEGImages/test3.png"]


@pytest.mark.parametrize("make", [folder, csv, masks, coco, voc])
def test_unreadable_images_are_left_out_counted_and_named(make, tmp_path):
    recipe, damaged = make(tmp_path)
    whole = sum(map(len, read(recipe).splits.values()))
    damaged[0].write_bytes(damaged[0].read_bytes()[:40])
    damaged[1].write_text("no image")
    for limit in (0, 1):
        with pytest.raises(DataError) as caught:
            read(recipe, limit)
        message = str(caught.value)
        assert "\n" not in message
        assert f"2 image(s) cannot be read and 'unreadable' allows {limit};" in message
        assert "or leave them out by unreadable: 2 beside the path (such as --set target.unreadable=2): " in message
        assert any(str(path) in message for path in damaged)
        assert all(str(path.relative_to(tmp_path)) in message for path in damaged)
    found = read(recipe, 2)
    assert sum(map(len, found.splits.values())) == whole - 2
    (note,) = [n for n in found.notes if "unreadable" in n]
    assert note.startswith("2 unreadable image(s) were left out: ")
    assert all(str(path.relative_to(tmp_path)) in note for path in damaged)
    assert str(tmp_path) not in note


def test_targets_stay_with_their_images(tmp_path):
    recipe, _ = coco(tmp_path)
    (tmp_path / "test/3.png").write_text("no image")
    test = read(recipe, 5).splits["test"]
    for k in range(len(test)):
        name = int(test.images.paths[k].stem)
        assert test.targets[k].boxes[0, 0] == name
        assert test.images[k].getpixel((0, 0))[0] == name
    assert [p.stem for p in test.images.paths] == list("0124567")


def test_a_split_without_a_readable_image_is_one_sentence(tmp_path):
    recipe, _ = folder(tmp_path)
    for path in (tmp_path / "test").rglob("*.png"):
        path.write_text("no image")
    with pytest.raises(DataError, match="split test, gives no image that can be read"):
        read(recipe, 50)


@pytest.mark.parametrize("limit", [-1, 1.5, "many", None])
def test_the_limit_is_a_count(limit, tmp_path):
    with pytest.raises(ValidationError):
        read(folder(tmp_path)[0], limit)


def test_a_damaged_annotation_is_not_left_out(tmp_path):
    recipe, _ = voc(tmp_path)
    (tmp_path / "Annotations/train0.xml").write_text("<annotation>")
    with pytest.raises(DataError, match="not a VOC annotation"):
        read(recipe, 50)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("make", [folder, masks])
def test_what_is_damaged_while_training_stops_it(make, workers, tmp_path, monkeypatch):
    for module in (files, images):
        monkeypatch.setattr(module, "CACHE_BYTES", 0)
    recipe, _ = make(tmp_path)
    reader = ImageReader(_loaded, READER.prepare, lambda image: images.Geometry((0, 0, *image.size), (16, 16)))
    found = data.load(TypeAdapter(DataRecipe).validate_python({**recipe, "unreadable": 9}), reader, 0)
    assert not found.splits["train"].images._kept
    feed = Feed(found.splits["train"], 2, "flip", 0, workers)
    next(feed.batches(0, 1))
    path = Path(getattr(found.splits["train"].targets, "paths", found.splits["train"].images.paths)[2])
    path.write_bytes(path.read_bytes()[:45])
    with pytest.raises(ImageError) as caught:
        list(feed.batches(0, feed.steps_an_epoch))
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_only_the_first_gigabyte_is_kept(tmp_path, monkeypatch):
    recipe, _ = folder(tmp_path)
    monkeypatch.setattr(files, "CACHE_BYTES", 3 * 20 * 20 * 3)
    train = read(recipe).splits["train"]
    assert len(train.images._kept) == 3
    assert len(train.images) == 8
    assert torch.equal(train.inputs(0, 8), torch.cat([train.inputs(k, k + 1) for k in range(8)]))


def test_what_was_left_out_is_in_the_ledger(tmp_path):
    recipe, damaged = folder(tmp_path / "data")
    damaged[0].write_text("no image")
    raw = yaml.safe_load((ROOT / "recipes/digits.yaml").read_text())
    raw |= {"target": {**recipe, "unreadable": 1}, "twin": False}
    raw["source"]["data"]["images"] = 200
    raw["model"]["arguments"] |= {"depth": 8, "width": 8}
    raw["prune"] |= {"round_to": 4, "min_kept": 4, "budget": {"macs": 0.6}}
    for part in (raw["source"]["train"], raw["transfer"], raw["distill"]):
        part |= {"epochs": 1, "batch_size": 4}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(raw))
    work = prepare(load_recipe(tmp_path / "recipe.yaml"), tmp_path / "out", False)
    for name, stage in (("pretrain", stages.pretrain), ("transfer", stages.transfer)):
        work.finish(name, name, 1, stage(work, StageView(lambda done, total, text: None)))
    (entry,) = [s for s in Ledger.read(tmp_path / "out/ledger.json").stages if s.name == "transfer"]
    assert "1 unreadable image(s) were left out: train/bee/0.png." in entry.notes


def test_a_training_image_that_is_tested_too_is_noted(tmp_path):
    recipe, _ = csv(tmp_path)
    assert read(recipe).notes == ()
    with (tmp_path / "test.csv").open("a") as file:
        file.write("\ntrain/bee/2.png,bee\ntest/../train/ant/1.png,ant\n")
    # Without the held-out ones all of them are training images.
    (note,) = read({**recipe, "val": "test.csv"}).notes
    assert note == "2 image(s) of test are in train too: train/ant/1.png, train/bee/2.png."
