"""What a ledger says of where a run comes from: the commit of the package and the hash of the data."""

import shutil
import subprocess

import numpy as np
import pytest
import torch
from PIL import Image

from compress.data.files import FileImages
from compress.data.fingerprint import data_hash
from compress.data.images import ImageData, ImageReader, Split
from compress.data.targets import Boxes
from compress.run.origin import source_commit

READER = ImageReader(Image.open, lambda image: np.zeros((3, 2, 2), np.float32))


def pictures(folder, colour=0):
    folder.mkdir()
    for index in range(2):
        Image.new("RGB", (2, 2), (index, colour, 0)).save(folder / f"{index}.png")
    return FileImages(sorted(folder.iterdir()), READER)


def of(images, targets, classes=("a", "b"), name="train"):
    return data_hash(ImageData(classes, {name: Split(images, targets, READER)}))


def test_a_data_set_is_known_by_its_content_and_not_by_its_place(tmp_path):
    labels = torch.tensor([0, 1])
    first = of(pictures(tmp_path / "here"), labels)
    assert first == of(pictures(tmp_path / "there"), labels)
    others = {
        of(pictures(tmp_path / "other", colour=9), labels),
        of(pictures(tmp_path / "x"), torch.tensor([1, 0])),
        of(pictures(tmp_path / "y"), labels, classes=("a", "c")),
        of(pictures(tmp_path / "z"), labels, name="val"),
    }
    assert len(others) == 4 and first not in others


def test_boxes_and_pixels_in_memory_count(tmp_path):
    images = [Image.new("RGB", (2, 2)), Image.new("RGB", (2, 2))]
    boxes = [
        Boxes(np.array([[0, 0, 1, 1]], np.float32), np.array([0])),
        Boxes(np.zeros((0, 4), np.float32), np.array([])),
    ]
    moved = [Boxes(np.array([[0, 0, 2, 1]], np.float32), np.array([0])), boxes[1]]
    assert of(images, boxes) == of(list(images), boxes) != of(images, moved)
    assert of(images, boxes) != of([images[0], Image.new("RGB", (2, 2), (1, 0, 0))], boxes)


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_the_commit_is_that_of_the_checkout_and_says_where_it_was_altered(tmp_path):
    assert source_commit(tmp_path) is None

    def git(*asked):
        who = ("-c", "user.name=a", "-c", "user.email=a@example.org")
        done = subprocess.run(["git", "-C", tmp_path, *who, *asked], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    git("init", "-q")
    assert source_commit(tmp_path) is None
    (tmp_path / "a.py").write_text("1\n")
    git("add", "a.py")
    git("commit", "-qm", "Begin")
    commit = git("rev-parse", "HEAD")
    assert source_commit(tmp_path) == commit
    (tmp_path / "a.py").write_text("2\n")
    assert source_commit(tmp_path) == f"{commit}, altered"
