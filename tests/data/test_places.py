"""Masks and boxes lie where the image shows them, whatever the image went through on its way to the network."""

from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image

from compress import data
from compress.data.augment import AUGMENTATIONS
from compress.data.images import ImageReader, Split
from compress.data.loader import Feed
from compress.data.targets import Boxes
from compress.errors import RecipeError
from compress.recipe.schema import TrainRecipe
from compress.run.prepare import _loaded, _seen
from deploy.processing.preprocess import Preprocessing


def reader(size, resize):
    prepare = Preprocessing(size=size, resize=resize)
    return ImageReader(_loaded, prepare, partial(_seen, prepare))


def drawn(seed):
    """A black image with one white rectangle, its mask and its box; some are stored lying on their side."""
    rng = np.random.default_rng(seed)
    width, height = (int(v) for v in rng.integers(60, 160, 2))
    left, top = (int(v * rng.uniform(0.25, 0.45)) for v in (width, height))
    right, bottom = (int(v * rng.uniform(0.6, 0.75)) for v in (width, height))
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[top:bottom, left:right] = 255
    image = Image.fromarray(pixels)
    mask = (pixels[:, :, 0] > 0).astype(np.uint8)
    if seed % 3 == 0:
        # Orientation 6: shown after a quarter turn clockwise.
        exif = Image.Exif()
        exif[0x0112] = 6
        turned = image.transpose(Image.Transpose.ROTATE_90)
        turned.info["exif"] = exif.tobytes()
        image = turned
    return image, mask, Boxes(np.array([[left, top, right, bottom]], np.float32), np.array([4]))


def near(a, b):
    return all(abs(x - y) <= 1.0 for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("resize", ["stretch", "shorter_side_center_crop"])
@pytest.mark.parametrize("augment", [n for n, c in AUGMENTATIONS.items() if "segmentation" in c.tasks])
def test_a_mask_lies_on_what_it_marks(augment, resize):
    shares = []
    for seed in range(24):
        image, mask, _ = drawn(seed)
        split = Split([image], [mask], reader((48, 64), resize))
        batch = split.batch(torch.tensor([0]), augment, seed, 1)
        assert batch.images.shape[2:] == batch.targets.shape[1:] == (48, 64)
        assert batch.targets.dtype == torch.int64
        shown, marked = batch.images[0].mean(0) > 0.5, batch.targets[0]
        counted = marked != 255
        shares.append(float((shown == (marked == 1))[counted].float().mean()))
        assert set(marked.unique().tolist()) <= {0, 1, 255}
        if augment != "scale_crop_flip":
            assert counted.all()
        # Beyond the image there is black, which is no class.
        assert not shown[~counted].any()
    assert min(shares) > 0.94
    assert np.mean(shares) > 0.97


@pytest.mark.parametrize("resize", ["stretch", "shorter_side_center_crop"])
@pytest.mark.parametrize("augment", [n for n, c in AUGMENTATIONS.items() if "detection" in c.tasks])
def test_a_box_lies_around_what_it_marks(augment, resize):
    seen = 0
    for seed in range(24):
        image, _, box = drawn(seed)
        split = Split([image], [box], reader((48, 64), resize))
        batch = split.batch(torch.tensor([0]), augment, seed, 1)
        boxes, labels = batch.targets[0]["boxes"], batch.targets[0]["labels"]
        assert labels.tolist() == [4] * len(boxes)
        white = batch.images[0].mean(0)
        ys, xs = (white > 0.5 * white.max()).nonzero().unbind(1)
        if len(boxes):
            seen += 1
            around = (int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1)
            assert near(boxes[0].tolist(), around), (seed, boxes, around)
    assert seen >= 20


def test_augmentations_do_change_places():
    image, mask, box = drawn(1)
    for augment, target in (("scale_crop_flip", mask), ("iou_crop_flip", box)):
        split = Split([image], [target], reader((48, 64), "stretch"))
        found = [split.batch(torch.tensor([0]), augment, 0, k) for k in range(12)]
        assert len({b.images.numpy().tobytes() for b in found}) > 8


def test_an_image_without_boxes_goes_through_too():
    empty = Boxes(np.zeros((0, 4), np.float32), np.zeros(0, np.int64))
    for augment in (n for n, c in AUGMENTATIONS.items() if "detection" in c.tasks):
        split = Split([drawn(1)[0]] * 6, [empty] * 6, reader((48, 64), "stretch"))
        batch = split.batch(torch.arange(6), augment, 0, 0)
        assert batch.targets[0]["boxes"].shape == (0, 4)
        assert batch.targets[0]["labels"].dtype == torch.int64
        if augment != "none":
            assert not torch.equal(batch.images, split.batch(torch.arange(6)).images)


@pytest.mark.parametrize(("augment", "kind"), [("scale_crop_flip", 1), ("iou_crop_flip", 2)])
def test_places_depend_on_seed_epoch_and_image_alone(augment, kind):
    made = [drawn(seed) for seed in range(8)]
    split = Split([m[0] for m in made], [m[kind] for m in made], reader((48, 64), "stretch"))

    def shown(workers):
        torch.manual_seed(workers)
        return list(Feed(split, 4, augment, 3, workers).batches(1, 5))

    for a, b in zip(shown(0), shown(2), strict=True):
        assert torch.equal(a.images, b.images)
        for x, y in zip(a.targets, b.targets, strict=True):
            assert torch.equal(x, y) if kind == 1 else all(torch.equal(x[k], y[k]) for k in ("boxes", "labels"))
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    split.batch(torch.arange(4), augment, 0, 0)
    assert torch.equal(torch.rand(3), expected)


def test_images_are_prepared_once_when_nothing_changes_them_and_not_before():
    made, calls = [drawn(seed) for seed in range(8)], []
    plain = reader((48, 64), "stretch")

    def counted(image):
        calls.append(image)
        return plain.prepare(image)

    split = Split([m[0] for m in made], [m[1] for m in made], ImageReader(plain.load, counted, plain.geometry))
    split.inputs(0, 2)
    split.batch(torch.tensor([1]), "scale_crop_flip")
    assert len(calls) == 4  # two, one for the size, one after its change
    split.get_ready("scale_crop_flip")
    assert len(calls) == 4
    first, again = list(split.batches(3)), list(split.batches(3))
    assert len(calls) == 4 + 1 + 8
    for a, b in zip(first, again, strict=True):
        assert torch.equal(a.images, b.images)
        assert torch.equal(a.targets, b.targets)


@pytest.mark.parametrize(
    ("settings", "task", "words"),
    [
        ({"augment": "affine"}, "detection", ["transfer.augment", "affine", "detection", "iou_crop_flip"]),
        ({"augment": "trivial"}, "segmentation", ["trivial", "scale_crop_flip"]),
        ({"augment": "iou_crop_flip"}, "classification", ["iou_crop_flip", "affine"]),
        ({"augment": "scale_crop_flip"}, "detection", ["scale_crop_flip"]),
        ({"mixup": 0.2}, "segmentation", ["mixup", "segmentation"]),
        ({"cutmix": 0.2}, "detection", ["cutmix", "detection"]),
    ],
)
def test_what_does_not_fit_the_task_is_refused(settings, task, words):
    with pytest.raises(RecipeError) as caught:
        data.check(TrainRecipe(epochs=1, **settings), task, "transfer")
    assert all(word in str(caught.value) for word in words)
    data.check(TrainRecipe(epochs=1, augment="flip"), task, "transfer")
    data.check(TrainRecipe(epochs=1, augment="trivial", mixup=0.1, cutmix=1.0), "classification", "transfer")
