"""A student that also learns from images without labels: the teacher answers for them, and their cost is counted."""

import pytest
import torch
import yaml
from test_distill_student import READER, Case, Pixels
from test_equal_flops import BATCH, forward, tiny, training

from compress import distill
from compress.data.images import ImageData, Split
from compress.recipe.loading import load_recipe
from compress.run.prepare import prepare
from compress.run.progress import StageView
from compress.run.stages import distill as distill_stage
from compress.run.stages import prune, train

__all__ = ["tiny"]


def test_the_teacher_says_what_unlabelled_images_show():
    case = Case()
    more = Split(Pixels(9), torch.full((9,), -1), READER)
    more.images.arrays = 255 - more.images.arrays
    data = ImageData(case.data.classes, {**case.data.splits, distill.UNLABELLED: more})
    case.teacher.train().requires_grad_(True)
    found, flops = distill.with_answers(data, case.teacher, torch.device("cpu"))
    joined, before = found.splits["train"], case.data.splits["train"]
    assert len(joined) == 21
    assert torch.equal(joined.inputs(0, 12), before.inputs(0, 12))
    assert torch.equal(joined.inputs(12, 21), more.inputs(0, 9))
    assert torch.equal(joined.labels[:12], before.labels)
    with torch.no_grad():
        assert torch.equal(joined.labels[12:], case.teacher(more.inputs(0, 9)).argmax(1))
    assert flops == 9 * distill.forward_flops(case.teacher, "classification", more.inputs(0, 1)) > 0
    assert found.splits["val"] is case.data.splits["val"]
    assert not case.teacher.training and not any(p.requires_grad for p in case.teacher.parameters())


def test_data_without_unlabelled_images_stay_as_they_are():
    case = Case()
    found, flops = distill.with_answers(case.data, case.teacher, torch.device("cpu"))
    assert found is case.data
    assert (flops, case.calls) == (0.0, 0)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Transfer, cut, distilling and fine-tuning on 50 labelled digits and 150 without a label."""
    common = {"batch_size": BATCH, "augment": "affine", "evaluations": 1}
    recipe = {
        "name": "unlabelled",
        "model": {"factory": "test_equal_flops:tiny"},
        "target": {"kind": "handwritten_digits", "train_per_class": 5, "unlabelled": 150},
        "preprocessing": {"size": [8, 8], "mode": "L", "mean": [0.3], "std": [0.4], "resize": "stretch"},
        "transfer": {**common, "epochs": 2},
        "prune": {"budget": {"macs": 0.6}},
        "distill": {**common, "epochs": 2},
        "deploy": None,
    }
    folder = tmp_path_factory.mktemp("unlabelled")
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    work = prepare(load_recipe(folder / "recipe.yaml", trusted=["test_equal_flops"]), folder / "out", False)
    view, found = StageView(lambda done, total, text: None), {}
    for name, stage in (
        ("transfer", train.transfer),
        ("prune", prune.cut),
        ("distill", distill_stage.distil),
        ("finetuned", distill_stage.finetuned),
    ):
        found[name] = stage(work, view)
        work.finish(name, name, 0, found[name])
    return work, found


def test_only_the_student_learns_from_them_and_their_cost_is_counted(run):
    work, found = run
    assert found["transfer"].training_flops == 2 * 50 * training(16)
    # Two epochs of 200 images; a pass of the teacher over the 150, and one over all 200 for the class means.
    an_image = training(8, frozen_head=True) + forward(16)
    assert found["distill"].training_flops == 2 * 200 * an_image + (150 + 200) * forward(16)
    assert abs(found["finetuned"].training_flops - found["distill"].training_flops) <= BATCH * training(8) / 2
    assert found["distill"].notes == (
        "150 images without labels were learned from too, with the classes that the teacher gave them.",
    )
    assert found["finetuned"].notes == found["transfer"].notes == ()
    assert len(work.target.splits["train"]) == 50
