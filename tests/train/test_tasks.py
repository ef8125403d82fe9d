"""What each task measures and minimises, against values by hand."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.models import resnet18

from compress.data.images import Batch
from compress.errors import ModelError
from compress.models import factory
from compress.models.detection import raw_heads
from compress.train.tasks import TASKS

SSDLITE = {"size": [64, 96], "scales": [0.1, 0.3, 0.6, 0.9], "finest": 16}


def ssdlite(classes=3):
    torch.manual_seed(0)
    model = factory.build("niwaki:mobilenet_v2_ssdlite", SSDLITE, classes)
    TASKS["detection"].take_prepared(model, (64, 96))
    # Fresh heads give every box the same score.
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_uniform_(module.weight, nonlinearity="relu")
    return model


def box(*corners, label=0, **more):
    values = torch.tensor([corners], dtype=torch.float32)
    return {"boxes": values, "labels": torch.tensor([label]), **{k: torch.tensor([v]) for k, v in more.items()}}


# --- metrics


def test_miou_is_the_mean_over_the_classes_that_occur_and_skips_ignored_pixels():
    metrics = TASKS["segmentation"].metrics(("sky", "road", "cat"))
    # Row by row: sky right, sky taken for road, road right, ignored.
    mask = torch.tensor([[[0, 0], [1, 255]]])
    logits = torch.full((1, 3, 2, 2), -10.0)
    logits[0, 0, 0, 0] = logits[0, 1, 0, 1] = logits[0, 1, 1, 0] = logits[0, 2, 1, 1] = 10.0
    metrics.update(logits, mask)
    found = metrics.compute()
    assert found["iou_sky"] == pytest.approx(1 / 2)
    assert found["iou_road"] == pytest.approx(1 / 2)
    assert "iou_cat" not in found
    assert found["miou"] == pytest.approx(1 / 2)
    assert found["pixel_accuracy"] == pytest.approx(2 / 3)
    assert found["loss"] == pytest.approx(20 / 3, rel=1e-3)


def test_top1_top5_and_macro_f1_by_hand():
    metrics = TASKS["classification"].metrics(tuple("abcdefg"))
    # Image by image: right; second; sixth, which five do not reach.
    logits = torch.tensor([[9.0, 8, 7, 6, 5, 4, 3], [9.0, 8, 7, 6, 5, 4, 3], [9.0, 8, 7, 6, 5, 4, 3]])
    metrics.update(logits, torch.tensor([0, 1, 5]))
    found = metrics.compute()
    assert (found["top1"], found["top5"]) == (pytest.approx(1 / 3), pytest.approx(2 / 3))
    # Class a: precision 1/3, recall 1, F1 1/2; b and f are missed; the other four occur nowhere.
    assert found["macro_f1"] == pytest.approx(0.5 / 3)


def test_map_is_one_for_the_right_boxes_and_half_where_one_class_is_missed():
    metrics = TASKS["detection"].metrics(("cell", "platelet"))
    truth = [box(0, 0, 50, 50), box(10, 10, 60, 60, label=1)]
    metrics.update([{**t, "scores": torch.tensor([0.9])} for t in truth], truth)
    assert metrics.compute() == pytest.approx(
        {"map": 1, "map50": 1, "map75": 1, "map_cell": 1, "map_platelet": 1}, abs=1e-6
    )
    metrics = TASKS["detection"].metrics(("cell", "platelet"))
    right = {**truth[0], "scores": torch.tensor([0.9])}
    metrics.update([right, {name: value[:0] for name, value in right.items()}], truth)
    found = metrics.compute()
    assert found["map"] == pytest.approx(0.5)
    assert found["map_platelet"] == 0


def test_map50_of_a_box_that_overlaps_by_two_thirds():
    metrics = TASKS["detection"].metrics(("cell",))
    metrics.update([box(0, 0, 40, 60, scores=0.9)], [box(0, 0, 60, 60)])
    found = metrics.compute()
    assert found["map50"] == pytest.approx(1)
    assert found["map75"] == 0
    # 0.50, 0.55, 0.60 and 0.65 of ten bounds are met.
    assert found["map"] == pytest.approx(0.4)


# --- losses


def test_a_segmenters_loss_counts_the_auxiliary_head_half_and_no_ignored_pixel():
    class Net(nn.Module):
        def forward(self, images):
            logits = torch.zeros(len(images), 2, 4, 4)
            logits[:, 1] = math.log(3.0)
            return {"out": logits, "aux": torch.zeros(len(images), 2, 2, 2)}

    mask = torch.full((1, 4, 4), 255)
    mask[0, 0, 0] = 1
    batch = Batch(torch.rand(1, 3, 4, 4), mask, torch.arange(1))
    loss = TASKS["segmentation"].loss(Net(), batch)
    assert float(loss) == pytest.approx(math.log(4 / 3) + 0.5 * math.log(2))
    nothing = Batch(torch.rand(1, 3, 4, 4), torch.full((1, 4, 4), 255), torch.arange(1))
    assert float(TASKS["segmentation"].loss(Net(), nothing)) == 0


def test_a_classifiers_loss_counts_each_auxiliary_head_three_tenths():
    class Net(nn.Module):
        def forward(self, images):
            logits = torch.zeros(len(images), 2)
            return torch.stack([logits[:, 0], logits[:, 1] + math.log(3.0)], 1), None, logits, logits

    batch = Batch(torch.rand(1, 3, 4, 4), torch.tensor([1]), torch.arange(1))
    assert float(TASKS["classification"].loss(Net(), batch)) == pytest.approx(math.log(4 / 3) + 0.6 * math.log(2))


def test_a_detectors_loss_is_torchvisions_with_the_background_first():
    model = ssdlite()
    images, boxes = torch.rand(2, 3, 64, 96), torch.tensor([[10.0, 10.0, 50.0, 50.0]])
    targets = [{"boxes": boxes, "labels": torch.tensor([0])}, {"boxes": boxes, "labels": torch.tensor([1])}]
    model.train()
    with torch.no_grad():
        expected = model(list(images), [{**t, "labels": t["labels"] + 1} for t in targets])
        # Momentum moves nothing that a train-mode BatchNorm reads.
        found = TASKS["detection"].loss(model, Batch(images, targets, torch.arange(2)))
    assert float(found) == pytest.approx(float(expected["bbox_regression"] + expected["classification"]), rel=1e-5)


def test_an_image_without_boxes_has_a_finite_loss():
    model = ssdlite().train()
    none = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    loss = TASKS["detection"].loss(model, Batch(torch.rand(2, 3, 64, 96), [none, none], torch.arange(2)))
    loss.backward()
    assert bool(torch.isfinite(loss))


# --- predictions


def test_a_detector_predicts_class_indices_without_the_background_in_input_pixels():
    model = ssdlite().eval()
    with torch.no_grad():
        found = TASKS["detection"].predict(model, torch.rand(2, 3, 64, 96))
    labels = torch.cat([one["labels"] for one in found])
    assert len(labels)
    assert int(labels.min()) >= 0
    assert int(labels.max()) <= 1


def test_what_an_engine_gives_is_read_as_what_torch_predicts():
    from deploy.exporting.lowering import lower

    model, images = ssdlite().eval(), torch.rand(2, 3, 64, 96)
    lowered = lower(model, "detection", images)
    module, names, after = lowered.module, lowered.output_name, lowered.postprocessing
    with torch.no_grad():
        raw = {name: value.numpy() for name, value in zip(names, module.eval()(images), strict=True)}
        expected = TASKS["detection"].predict(model, images)
    for got, want in zip(TASKS["detection"].read(raw, after), expected, strict=True):
        assert torch.equal(got["labels"], want["labels"])
        torch.testing.assert_close(got["boxes"], want["boxes"], rtol=1e-4, atol=1e-3)
    logits = np.zeros((1, 2, 3, 3), np.float32)
    assert TASKS["segmentation"].read({"logits": logits}, None).shape == (1, 2, 3, 3)


# --- networks for another task


@pytest.mark.parametrize("task", ["detection", "segmentation"])
def test_a_classifier_is_refused_by_name(task):
    with pytest.raises(ModelError, match="ResNet"):
        TASKS[task].check(resnet18(num_classes=3), torch.rand(2, 3, 64, 64))


def test_networks_with_auxiliary_classifiers_train_as_torchvision_means_them_to():
    model, images = factory.build("torchvision:googlenet", {"aux_logits": True}, 3), torch.rand(2, 3, 64, 64)
    TASKS["classification"].check(model, images)
    model.train()
    for module in model.modules():
        module.p = 0.0 if isinstance(module, nn.Dropout) else getattr(module, "p", None)
    batch = Batch(images, torch.tensor([0, 2]), torch.arange(2))
    loss = TASKS["classification"].loss(model, batch)
    loss.backward()
    with torch.no_grad():
        each = [nn.functional.cross_entropy(logits, batch.targets) for logits in model(images)]
    assert len(each) == 3
    assert float(loss.detach()) == pytest.approx(float(each[0] + 0.3 * (each[1] + each[2])), rel=1e-4)
    assert model.aux1.fc2.weight.grad.any() and model.aux2.conv.conv.weight.grad.any()


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (lambda x: {"out": x.mean((2, 3))}, "returns dict in training, not logits"),
        (lambda x: (x.mean((2, 3)), x), "returns tuple in training"),
        (lambda x: x, "returns Tensor in training"),
        (lambda x: nn.functional.conv2d(x, torch.ones(1, 3, 9, 9)), r"does not run in training on images \(3, 8, 8\)"),
    ],
)
def test_what_is_no_classifier_is_one_sentence(answer, said):
    class Net(nn.Module):
        def forward(self, images):
            return answer(images)

    with pytest.raises(ModelError, match=said) as refused:
        TASKS["classification"].check(Net(), torch.rand(2, 3, 8, 8))
    assert "\n" not in str(refused.value)


def test_torchvisions_own_detectors_take_prepared_images():
    model = factory.build("torchvision:ssdlite320_mobilenet_v3_large", {}, 3)
    TASKS["detection"].take_prepared(model, (128, 160))
    images = torch.rand(2, 3, 128, 160)
    prepared, _ = model.transform(list(images), None)
    assert torch.equal(prepared.tensors, images)
    assert raw_heads(model) is not None
