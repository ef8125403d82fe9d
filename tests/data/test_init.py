"""``niwaki init``: the recipe that it writes for a folder is valid, fits the data and reads them."""

import json
import sys

import pytest
from kinds import READER, picture
from test_layouts import masks, tree, yolo

from compress import data
from compress.cli import app
from compress.recipe.loading import load_recipe


@pytest.fixture
def command(monkeypatch, capsys, tmp_path):
    """Runs ``niwaki`` in an empty folder; gives its exit code, standard output and standard error."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["niwaki", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            app.main()
        shown = capsys.readouterr()
        return ended.value.code, shown.out, shown.err

    return run


def voc(root):
    (root / "ImageSets").mkdir(parents=True)
    (root / "Annotations").mkdir()
    box = "<bndbox><xmin>2</xmin><ymin>2</ymin><xmax>9</xmax><ymax>9</ymax></bndbox>"
    for split in ("train", "val"):
        (root / f"ImageSets/{split}.txt").write_text("".join(f"{split}{i}\n" for i in range(5)))
        for i in range(5):
            picture(root / f"JPEGImages/{split}{i}.png", seed=i)
            text = f"<annotation><object><name>cat</name>{box}</object></annotation>"
            (root / f"Annotations/{split}{i}.xml").write_text(text)


def coco(root):
    for split in ("train2017", "val2017"):
        for i in range(5):
            picture(root / split / f"{i}.png", seed=i)
        images = [{"id": i, "file_name": f"{i}.png"} for i in range(5)]
        boxes = [{"image_id": i, "category_id": 3, "bbox": [1, 1, 8, 8]} for i in range(5)]
        (root / "annotations").mkdir(exist_ok=True)
        about = {"images": images, "annotations": boxes, "categories": [{"id": 3, "name": "cat"}]}
        (root / f"annotations/instances_{split}.json").write_text(json.dumps(about))


def yolo_set(root):
    yolo(root)
    (root / "data.yaml").write_text("train: images/train\nval: images/val\nnames: [cat, dog]\n")


@pytest.mark.parametrize(
    ("make", "kind", "sizes"),
    [
        (lambda root: tree(root, "train", "val", "test"), "folder", (10, 10, 10)),
        (lambda root: tree(root, "training", "validation"), "folder", (8, 2, 10)),
        (lambda root: tree(root, ""), "folder", (6, 2, 2)),
        (yolo_set, "yolo", (4, 1, 5)),
        (voc, "voc", (4, 1, 5)),
        (coco, "coco", (4, 1, 5)),
        (lambda root: masks(root, [0, 7, 255]), "masks", (4, 4, 4)),
    ],
    ids=["three splits", "other names", "classes alone", "yolo", "voc", "coco", "masks"],
)
def test_the_recipe_fits_the_folder(tmp_path, command, make, kind, sizes):
    root = tmp_path / "my photos"
    make(root)
    code, out, _ = command("init", root, "--json")
    said = json.loads(out)
    assert (code, said["recipe"], said["kind"]) == (0, "my-photos.yaml", kind)
    text = (tmp_path / "here/my-photos.yaml").read_text()
    assert text.count("#") > 8
    recipe = load_recipe("my-photos.yaml")
    assert recipe.preprocessing.size == (32, 32)
    found = data.load(recipe.target, READER, 0)
    assert tuple(len(found.splits[name]) for name in ("train", "val", "test")) == sizes
    assert found.task == said["task"]
    data.check(recipe.transfer, found.task, "transfer")
    data.check(recipe.distill, found.task, "distill")


def test_a_recipe_that_is_there_stays(tmp_path, command):
    tree(tmp_path / "p", "train", "test")
    assert command("init", tmp_path / "p", "--weights", "none")[0] == 0
    before = (tmp_path / "here/p.yaml").read_text()
    assert load_recipe("p.yaml").model.weights is None
    code, _, said = command("init", tmp_path / "p")
    assert (code, "give --force" in said) == (2, True)
    assert "model.weights" not in said
    code, _, said = command("init", tmp_path / "p", "--weights", "my weights.pth")
    assert (code, "keep it and run it with --set model.weights='my weights.pth'" in said) == (2, True)
    assert (tmp_path / "here/p.yaml").read_text() == before
    assert command("init", tmp_path / "p", "--force")[0] == 0
    assert load_recipe("p.yaml").model.weights == "DEFAULT"


def test_a_run_is_called_as_its_recipe(tmp_path, command):
    tree(tmp_path / "p", "train", "test")
    assert command("init", tmp_path / "p", "--out", "mine.yaml")[0] == 0
    assert load_recipe("mine.yaml").name == "mine"


def test_one_class_is_said_to_be_one(tmp_path, command):
    picture(tmp_path / "one/train/cat/0.png", seed=0)
    code, _, error = command("init", tmp_path / "one")
    assert (code, "has one class alone, cat;" in error) == (2, True)


def test_a_folder_that_is_no_data_set_is_refused(tmp_path, command):
    (tmp_path / "empty").mkdir()
    for name, said in (("empty", "holds no data set that is known"), ("none", "There is no folder")):
        code, out, error = command("init", tmp_path / name)
        assert (code, out, said in error) == (2, "", True)
    assert not list((tmp_path / "here").iterdir())
