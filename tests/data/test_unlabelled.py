"""Images without labels: which they are, and that no figure is made too good by them."""

import numpy as np
import pytest
from kinds import read, refused
from PIL import Image


def digits(**recipe):
    return read(**{"kind": "handwritten_digits", "train_per_class": 5, **recipe}).splits


def pixels(split):
    return [image.tobytes() for image in split.images.pixels]


def test_unlabelled_digits_come_out_of_the_test_and_tell_no_class():
    plain, found = digits(), digits(unlabelled=500)
    assert {name: len(split) for name, split in found.items()} == {
        "train": 50, "val": 200, "test": 1047, "unlabelled": 500,
    }  # fmt: skip
    for name in ("train", "val"):
        assert pixels(found[name]) == pixels(plain[name])
        assert found[name].labels.tolist() == plain[name].labels.tolist()
    assert set(found["unlabelled"].labels.tolist()) == {-1}
    assert sorted(pixels(found["test"]) + pixels(found["unlabelled"])) == sorted(pixels(plain["test"]))
    kept = dict(zip(pixels(plain["test"]), plain["test"].labels.tolist(), strict=True))
    assert [kept[image] for image in pixels(found["test"])] == found["test"].labels.tolist()


def test_the_unlabelled_digits_are_not_so_many_of_each_class():
    plain, found = digits(), digits(unlabelled=500)
    known = dict(zip(pixels(plain["test"]), plain["test"].labels.tolist(), strict=True))
    counts = np.bincount([known[image] for image in pixels(found["unlabelled"])], minlength=10)
    assert counts.sum() == 500 and counts.min() > 25 and len(set(counts.tolist())) > 3


def test_some_digits_are_left_to_the_test():
    assert len(digits(train_per_class=60, val_per_class=20, unlabelled=897)["test"]) == 100
    wanted = {"train_per_class": 60, "val_per_class": 20, "unlabelled": 898}
    refused("target.unlabelled: 898 of the 997", "at most 897", kind="handwritten_digits", **wanted)


@pytest.fixture
def photographs(tmp_path):
    for place in ("train/ant", "train/bee", "test/ant", "test/bee", "more", "more/of/it"):
        (tmp_path / place).mkdir(parents=True)
        for k in range(4):
            Image.new("RGB", (20, 20), (k, len(place), 9)).save(tmp_path / place / f"{k}.png")
    (tmp_path / "more/notes.txt").write_text("not an image")
    return tmp_path


def folder(path, **recipe):
    return read(kind="folder", path=str(path), **recipe)


def test_a_folder_of_unlabelled_images_is_read_at_any_depth(photographs):
    found = folder(photographs, unlabelled="more")
    assert [p.relative_to(photographs).as_posix() for p in found.splits["unlabelled"].images.paths] == [
        f"more/{rest}{k}.png" for rest in ("", "of/it/") for k in range(4)
    ]
    assert found.splits["unlabelled"].labels.tolist() == [-1] * 8
    assert found.classes == ("ant", "bee")
    assert found.notes == ()
    assert "unlabelled" not in folder(photographs).splits


def test_unlabelled_images_that_are_missing_or_damaged_are_refused(photographs):
    asked = {"kind": "folder", "path": str(photographs)}
    refused("There is no folder", "elsewhere", "target.unlabelled", unlabelled="elsewhere", **asked)
    (photographs / "none").mkdir()
    refused("none gives no image that can be read", unlabelled="none", **asked)
    (photographs / "more/2.png").write_bytes(b"damaged")
    refused("2.png", "'unreadable' allows 0", unlabelled="more", **asked)
    found = folder(photographs, unlabelled="more", unreadable=1)
    assert len(found.splits["unlabelled"]) == 7
    assert found.notes == ("1 unreadable image(s) were left out: more/2.png.",)


def test_unlabelled_images_that_are_tested_are_named(photographs):
    (photographs / "more/5.png").symlink_to(photographs / "test/bee/1.png")
    assert folder(photographs, unlabelled="more").notes == (
        "1 image(s) of test are in unlabelled too: test/bee/1.png.",
    )
