"""Data: fixed splits, drawn digits and batches that seeds alone decide, and errors that name the folder."""

import random

import numpy as np
import pytest
import torch
from PIL import Image

from compress import data
from compress.data import ImageReader
from compress.data.augment import AUGMENTATIONS
from compress.data.loader import Feed
from compress.data.seeds import hash_seed
from compress.errors import NiwakiError
from compress.recipe.data import FolderData, HandwrittenDigits, RenderedDigits
from deploy.errors import DeployError
from deploy.processing import preprocess
from deploy.processing.preprocess import Preprocessing

pytestmark = pytest.mark.heavy

GREY = ImageReader(preprocess.load, Preprocessing(size=(16, 16), mode="L", mean=(0.3,), std=(0.4,)))
FOR_CLASSES = [name for name, change in AUGMENTATIONS.items() if "classification" in change.tasks]
COLOUR = ImageReader(preprocess.load, Preprocessing(size=(16, 16), mode="RGB"))


# Handwritten digits ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def digits():
    return data.load(HandwrittenDigits(kind="handwritten_digits"), GREY, 0)


def pixels(split):
    return [split.images.pixels[i].tobytes() for i in range(len(split))]


def epoch_of(split, size, augment, seed, epoch, **settings):
    feed = Feed(split, size, augment, seed, **settings)
    first = epoch * feed.steps_an_epoch
    return list(feed.batches(first, first + feed.steps_an_epoch))


def test_the_handwritten_splits_have_their_sizes_and_share_no_image(digits):
    assert {name: len(split) for name, split in digits.splits.items()} == {"train": 200, "val": 200, "test": 1397}
    from sklearn.datasets import load_digits

    raw = [np.rint(i * (255 / 16)).astype(np.uint8).tobytes() for i in load_digits().images]
    everything = [p for split in digits.splits.values() for p in pixels(split)]
    assert sorted(everything) == sorted(raw)


def test_the_small_splits_hold_each_class_equally(digits):
    for name in ("train", "val"):
        assert torch.bincount(digits.splits[name].labels).tolist() == [20] * 10
    assert torch.bincount(digits.splits["test"].labels).min() > 130


def test_the_handwritten_splits_depend_on_nothing(digits):
    random.seed(7)
    torch.manual_seed(7)
    again = data.load(HandwrittenDigits(kind="handwritten_digits"), GREY, 99)
    for name, split in digits.splits.items():
        assert pixels(split) == pixels(again.splits[name])
        assert torch.equal(split.labels, again.splits[name].labels)


def test_fewer_training_images_leave_the_rest_to_the_test():
    small = data.load(HandwrittenDigits(kind="handwritten_digits", train_per_class=1, val_per_class=2), GREY, 0)
    assert {name: len(split) for name, split in small.splits.items()} == {"train": 10, "val": 20, "test": 1767}


# Rendered digits ------------------------------------------------------------------------------------------


def test_rendered_digits_depend_on_the_seed_alone():
    recipe = RenderedDigits(kind="rendered_digits", images=100)
    first = data.load(recipe, GREY, 4)
    torch.manual_seed(1)
    random.seed(1)
    again, other = data.load(recipe, GREY, 4), data.load(recipe, GREY, 5)
    assert pixels(first.splits["train"]) == pixels(again.splits["train"])
    assert pixels(first.splits["train"]) != pixels(other.splits["train"])
    assert not set(pixels(first.splits["train"])) & set(pixels(first.splits["val"]))
    assert torch.bincount(first.splits["train"].labels).tolist() == [10] * 10
    assert first.splits["train"].images.pixels.shape == (100, 8, 8)
    assert first.splits["train"].images.pixels.std() > 20


# Batches --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("augment", FOR_CLASSES)
def test_batches_depend_on_seed_epoch_and_place_alone(digits, augment):
    split = digits.splits["train"]

    def epoch(seed, number):
        return epoch_of(split, 32, augment, seed, number)

    first = epoch(1, 0)
    torch.manual_seed(123)
    torch.rand(5)
    for a, b in zip(first, epoch(1, 0), strict=True):
        assert torch.equal(a.images, b.images)
        assert torch.equal(a.targets, b.targets)
        assert torch.equal(a.index, b.index)
    for other in (epoch(2, 0), epoch(1, 1)):
        assert not all(torch.equal(a.images, b.images) for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize("augment", FOR_CLASSES)
def test_drawing_batches_leaves_the_global_generator_alone(digits, augment):
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    next(iter(Feed(digits.splits["train"], 8, augment, 0).batches(0, 1)))
    assert torch.equal(torch.rand(4), expected)


def test_an_epoch_shows_each_image_once(digits):
    split = digits.splits["train"]
    batches = epoch_of(split, 32, "none", 0, 3)
    assert [len(b) for b in batches] == [32] * 6
    shown = torch.cat([b.images for b in batches]).flatten(1)
    own = split.inputs(0, 200).flatten(1)
    places = [int((own == row).all(1).nonzero()[0]) for row in shown]
    assert len(set(places)) == 192
    labels = torch.cat([b.targets for b in batches])
    assert torch.equal(labels, split.labels[places])
    assert places != sorted(places)


def test_a_batch_larger_than_the_split_is_the_split(digits):
    assert [len(b) for b in epoch_of(digits.splits["train"], 1000, "none", 0, 0)] == [200]


def test_augmentation_changes_images_and_keeps_their_shape(digits):
    split, index = digits.splits["train"], torch.arange(6)
    plain = split.batch(index).images
    assert torch.equal(plain, split.inputs(0, 6))
    for name in set(FOR_CLASSES) - {"none"}:
        changed = split.batch(index, name).images
        assert changed.shape == plain.shape
        assert not torch.equal(changed, plain)


@pytest.mark.parametrize("augment", FOR_CLASSES)
def test_what_an_image_goes_through_does_not_depend_on_its_neighbours(digits, augment):
    split = digits.splits["train"]
    together = split.batch(torch.tensor([5, 3, 9]), augment, seed=4, variant=2).images
    alone = split.batch(torch.tensor([3]), augment, seed=4, variant=2).images
    torch.testing.assert_close(together[1:2], alone)


@pytest.mark.parametrize("workers", [0, 2])
def test_shards_are_the_whole_batch_and_workers_change_nothing(digits, workers):
    split = digits.splits["train"]
    (whole,) = Feed(split, 32, "affine", 1).batches(7, 8)
    parts = [next(Feed(split, 32, "affine", 1, workers, rank=r, ranks=2).batches(7, 8)) for r in (0, 1)]
    for r, part in enumerate(parts):
        assert torch.equal(part.index, whole.index[r::2])
        torch.testing.assert_close(part.images, whole.images[r::2])


def test_evaluation_batches_are_all_images_in_order(digits):
    split = digits.splits["val"]
    parts = list(split.batches(64))
    assert torch.equal(torch.cat([b.images for b in parts]), split.inputs(0, 200))
    assert torch.equal(torch.cat([b.targets for b in parts]), split.labels)
    assert torch.equal(split.inputs(3, 4)[0], torch.from_numpy(GREY.prepare(split.images[3])))


def test_seeds_of_several_numbers_differ():
    found = {hash_seed(a, b) for a in range(20) for b in range(20)}
    assert len(found) == 400
    assert min(found) >= 0
    assert hash_seed(1, 2) != hash_seed(2, 1)


# Folders of images ----------------------------------------------------------------------------------------


@pytest.fixture
def tree(tmp_path):
    rng = np.random.default_rng(0)
    for part, count in (("train", 5), ("test", 2)):
        for name in ("ant", "bee"):
            folder = tmp_path / part / name
            folder.mkdir(parents=True)
            for k in range(count):
                Image.fromarray(rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(folder / f"{k}.jpg")
    return tmp_path


def read(tree, **settings):
    return data.load(FolderData(kind="folder", path=str(tree), **settings), COLOUR, 0)


def refused(tree, *words, **settings):
    with pytest.raises((NiwakiError, DeployError)) as caught:
        read(tree, **settings)
    message = str(caught.value)
    assert "\n" not in message
    assert caught.value.exit_code == 2
    for word in words:
        assert str(word) in message


def test_a_folder_tree_is_read(tree):
    (tree / "train/ant/notes.txt").write_text("no image")
    (tree / "train/.hidden").mkdir()
    found = read(tree)
    assert found.classes == ("ant", "bee")
    assert {n: len(s) for n, s in found.splits.items()} == {"train": 8, "val": 2, "test": 4}
    assert found.splits["val"].labels.tolist() == [0, 1]
    assert found.example(4).shape == (4, 3, 16, 16)


def test_the_held_out_images_are_the_same_every_time(tree):
    first, again = read(tree), read(tree)
    assert first.splits["val"].images.paths == again.splits["val"].images.paths
    assert not set(first.splits["val"].images.paths) & set(first.splits["train"].images.paths)


def test_a_validation_folder_of_its_own_is_taken(tree):
    found = read(tree, val="test")
    assert {n: len(s) for n, s in found.splits.items()} == {"train": 10, "val": 4, "test": 4}


def test_grey_and_transparent_images_become_colour(tree):
    Image.new("L", (9, 9), 80).save(tree / "train/ant/grey.png")
    Image.new("RGBA", (9, 9), (1, 2, 3, 4)).save(tree / "train/ant/clear.png")
    found = read(tree)
    assert all(found.splits["train"].images[i].mode == "RGB" for i in range(len(found.splits["train"])))


def test_a_missing_folder_is_named(tree):
    (tree / "train").rename(tree / "elsewhere")
    refused(tree, tree / "train")


def test_a_missing_root_is_named(tmp_path):
    refused(tmp_path / "nowhere", tmp_path / "nowhere")


def test_an_empty_class_is_named(tree):
    (tree / "train/cat").mkdir()
    (tree / "test/cat").mkdir()
    refused(tree, tree / "train/cat", "holds no image")


def test_a_truncated_image_is_named(tree):
    path = tree / "train/bee/3.jpg"
    path.write_bytes(path.read_bytes()[:300])
    refused(tree, path)


def test_a_text_file_called_jpg_is_named(tree):
    path = tree / "test/bee/0.jpg"
    path.write_text("no image")
    refused(tree, path)


def test_differing_classes_are_named(tree):
    (tree / "test/bee").rename(tree / "test/wasp")
    refused(tree, tree / "test", "wasp", "bee")


def test_a_validation_folder_of_other_classes_is_named(tree):
    for name in ("ant", "fly"):
        (tree / "val" / name).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tree / "val" / name / "0.png")
    refused(tree, tree / "val", val="val")


def test_one_class_is_not_enough(tmp_path):
    for part in ("train", "test"):
        (tmp_path / part / "ant").mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / part / "ant/0.png")
    refused(tmp_path, tmp_path / "train", "one class alone, ant; a classifier tells at least two apart")


def test_a_class_of_one_image_gives_no_validation_split(tree):
    for k in range(1, 5):
        (tree / f"train/ant/{k}.jpg").unlink()
    refused(tree, "ant")


@pytest.mark.data
def test_real_photographs_are_read():
    import os
    from pathlib import Path

    root = os.environ.get("NIWAKI_DATA")
    if not root:
        pytest.skip("NIWAKI_DATA is not set")
    if not (Path(root) / "hymenoptera").is_dir():
        pytest.skip(f"{root} holds no hymenoptera")
    found = read(Path(root) / "hymenoptera", test="val")
    assert found.classes == ("ants", "bees")
    assert len(found.splits["train"]) > 150
    batch = next(Feed(found.splits["train"], 8, "crop_flip", 0).batches(0, 1))
    assert batch.images.shape == (8, 3, 16, 16)
    assert torch.isfinite(batch.images).all()
    assert batch.targets.shape == (8,)
