"""The folder that no recipe was tuned for, and the judgement of a run on it by further images."""

import numpy as np
import pytest
import torch

import compress
from benchmarks import photo_folder
from compress.models.factory import build

pytestmark = pytest.mark.heavy


@pytest.fixture(autouse=True)
def few(monkeypatch):
    """Six images of each class, of which the first two are for training and the next three judge."""
    draw = np.random.default_rng(0)
    images, labels = draw.integers(0, 255, (60, 32, 32, 3), np.uint8), np.arange(60) % 10
    monkeypatch.setattr(photo_folder, "cifar10", lambda split: (images, labels))
    monkeypatch.setattr(photo_folder, "PER_CLASS", 2)
    monkeypatch.setattr(photo_folder, "FURTHER", 3)
    return labels


def test_further_images_are_none_of_the_folder(few, tmp_path):
    photo_folder.make(tmp_path, 2)
    trained = {int(path.stem) for path in tmp_path.glob("train/*/*.png")}
    further = {index for _, index, _ in photo_folder.photos("train", 2, 3)}
    assert (len(trained), len(further), trained & further) == (16, 24, set())


def test_points_are_paired_over_the_images(tmp_path):
    size = photo_folder.SIDE
    saved = {"classes": photo_folder.CLASSES, "preprocessing": {"size": [size, size], "mode": "RGB"}}
    for seed, which in ((0, "teacher"), (1, "pruned"), (0, "student")):
        torch.manual_seed(seed)
        net = build("niwaki:cifar_resnet", {"depth": 8, "width": 8}, 8)
        compress.save(net, tmp_path / which, **saved)
    found = photo_folder.judge(tmp_path)
    assert found["teacher"][1:] == found["student"][1:] == (0.0, 0.0)
    accuracy, lost, width = found["pruned"]
    assert lost == pytest.approx(found["teacher"][0] - accuracy)
    assert width > 0
