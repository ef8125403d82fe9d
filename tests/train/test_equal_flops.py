"""Training FLOPs in the ledger against a count by hand, and settings that are given the same of them."""

import pytest
import torch
import yaml
from torch import nn

from compress.recipe.loading import load_recipe
from compress.run.prepare import prepare
from compress.run.progress import StageView
from compress.run.stages import distill, prune, train

BATCH, IMAGES = 50, 200
TRANSFER, DISTIL = 3e8, 4e8


def tiny(num_classes):
    """Two convolutions on 8 x 8 grey pixels, 16 and 32 channels, and a classifier."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 32, 3, 2, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, num_classes),
    )  # fmt: skip


def macs(width):
    """Of one image, layer by layer, for a first convolution of so many channels."""
    return width * 9 * 64, 32 * width * 9 * 16, 32 * 10


def forward(width):
    return 2 * sum(macs(width))


def training(width, frozen_head=False):
    """Forward, and backward to inputs and weights: not to the first input, not to a frozen head's weights."""
    first, second, head = macs(width)
    return 2 * (2 * first + 3 * second + (2 if frozen_head else 3) * head)


TAUGHT = {"logits": 1.0, "class_means": 1.0}
ALONE = {"logits": 0.0, "class_means": 0.0}


def ran(folder, losses):
    """The workspace after transfer, cut, distilling and fine-tuning without a teacher."""
    common = {"batch_size": BATCH, "augment": "affine", "evaluations": 1}
    recipe = {
        "name": "flops",
        "model": {"factory": "test_equal_flops:tiny"},
        "target": {"kind": "handwritten_digits"},
        "preprocessing": {"size": [8, 8], "mode": "L", "mean": [0.3], "std": [0.4], "resize": "stretch"},
        "transfer": {**common, "training_flops": TRANSFER},
        "prune": {"budget": {"macs": 0.6}},
        "distill": {**common, "training_flops": DISTIL, **losses},
        "deploy": None,
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    work = prepare(load_recipe(folder / "recipe.yaml", trusted=["test_equal_flops"]), folder / "out", False)
    # What is selected by is validation: no stage before the test may look at this.
    work.target.splits["test"] = None
    view = StageView(lambda done, total, text: None)
    for name, stage in (
        ("transfer", train.transfer),
        ("prune", prune.cut),
        ("distill", distill.distil),
        ("finetuned", distill.finetuned),
    ):
        work.finish(name, name, 0, stage(work, view))
    return work


@pytest.fixture(scope="module", params=[TAUGHT, ALONE], ids=["taught", "alone"])
def setting(request, tmp_path_factory):
    return request.param, ran(tmp_path_factory.mktemp("flops"), request.param)


def spent(work, stage):
    return next(s.training_flops for s in work.ledger.stages if s.name == stage)


def steps(flops, an_image):
    return max(1, round(flops / (an_image * BATCH)))


def test_the_ledger_counts_what_each_stage_spends(setting):
    losses, work = setting
    assert work.load("student")[0].out_channels == 8
    assert spent(work, "transfer") == steps(TRANSFER, training(16)) * BATCH * training(16)
    # The classifier is the teacher's and frozen; a pass of the teacher for the class means, and one for each image.
    an_image, once = training(8, frozen_head=True), 0
    if losses is TAUGHT:
        an_image, once = an_image + forward(16), IMAGES * forward(16)
    assert spent(work, "distill") == steps(DISTIL - once, an_image) * BATCH * an_image + once
    assert work.ledger.model("student").training_flops == spent(work, "distill")


def test_settings_with_the_same_budget_spend_the_same(setting):
    _, work = setting
    half_a_step = BATCH * (training(8) + forward(16)) / 2
    assert abs(spent(work, "transfer") - TRANSFER) <= BATCH * training(16) / 2
    for stage in ("distill", "finetuned"):
        assert abs(spent(work, stage) - DISTIL) <= 2 * half_a_step
    counted = sum(1 for line in (work.out / "logs/finetuned.csv").read_text().splitlines() if ",loss," in line)
    assert counted == steps(spent(work, "distill"), training(8))
    assert torch.isfinite(work.load("finetuned")[0].weight).all()
