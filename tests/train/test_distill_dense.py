"""Detectors and segmenters under their teachers: raw heads, feature pyramids, pixels."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models.detection import FasterRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator, DefaultBoxGenerator
from torchvision.models.detection.ssd import SSD

from compress import distill, prune
from compress.data.images import Batch, ImageData, ImageReader, Split
from compress.models.detection import raw_heads
from compress.recipe.schema import DistillRecipe
from compress.train import make_fabric
from compress.train.tasks import TASKS


class Backbone(nn.Module):
    """Two levels of 8 channels each."""

    out_channels = 8

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 4, 1), nn.ReLU())
        self.fine, self.coarse = nn.Conv2d(16, 8, 1), nn.Conv2d(16, 8, 3, 2, 1)

    def forward(self, x):
        x = self.stem(x)
        return {"0": self.fine(x), "1": self.coarse(x)}


def detector(kind):
    torch.manual_seed(0)
    sizes = {"min_size": 32, "max_size": 32, "image_mean": [0.0] * 3, "image_std": [1.0] * 3}
    if kind == "ssd":
        generator = DefaultBoxGenerator([[2], [2]])
        own = {"image_mean": [0.0] * 3, "image_std": [1.0] * 3}
        backbone = Backbone()
        backbone.out_channels = [8, 8]
        return SSD(backbone, generator, (32, 32), 3, **own)
    anchors = AnchorGenerator(((8,), (16,)), ((0.5, 1.0),) * 2)
    if kind == "retinanet":
        return RetinaNet(Backbone(), 3, anchor_generator=anchors, **sizes)
    return FasterRCNN(Backbone(), 3, rpn_anchor_generator=anchors, **sizes)


class Boxed:
    """The task of detection, as far as a loss goes."""

    name = "detection"

    def loss(self, model, batch, smoothing=0.0):
        return sum(model(list(batch.images), batch.targets).values())


class Segmenter(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Conv2d(3, 16, 3, 2, 1), nn.Conv2d(16, 4, 1)

    def forward(self, x):
        return {"out": F.interpolate(self.head(self.body(x).relu()), x.shape[2:])}


class Labelled:
    """The task of segmentation, as far as a loss goes."""

    name = "segmentation"

    def loss(self, model, batch, smoothing=0.0):
        return F.cross_entropy(model(batch.images)["out"], batch.targets, ignore_index=255)


class Images:
    """Prepared inputs alone: what the setup looks at before training."""

    def __len__(self):
        return 4

    def __getitem__(self, index):
        return torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(index))


def dense_case(monkeypatch, task, model, **weights):
    monkeypatch.setitem(TASKS, task.name, task)
    teacher = model.eval()
    with torch.no_grad():
        for parameter in teacher.parameters():
            # RetinaNet's heads start at next to nothing.
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    split = Split(Images(), [None] * 4, ImageReader(None, lambda image: image.numpy()))
    data = ImageData(("a", "b"), {"train": split, "val": split}, task.name)
    images = split.inputs(0, 2)
    heads = raw_heads(teacher)
    trace = prune.trace(teacher, images, **({"forward": heads} if heads else {}))
    plan = prune.plan(trace, prune.score(trace, teacher, "random", seed=3), ratio=0.5, scope="group")
    student = prune.apply(teacher, plan)
    recipe = DistillRecipe(**{"epochs": 1, "head_classes": 0, "head_boxes": 0, "pixels": 0, "labels": 0.0, **weights})
    found = distill.set_up(recipe, data, student, teacher, plan, seed=0, fabric=make_fabric("cpu"))
    boxes = [{"boxes": torch.tensor([[4.0, 4, 20, 24]]), "labels": torch.tensor([1])}] * 2
    targets = boxes if task.name == "detection" else torch.full((2, 32, 32), 255).index_fill(1, torch.arange(9), 1)
    return found, student, teacher, plan, Batch(images, targets, torch.arange(2))


@pytest.mark.parametrize("kind", ["ssd", "retinanet"])
def test_dense_heads_are_compared_in_the_training_pass_itself(monkeypatch, kind):
    settings = {"head_classes": 1.0, "head_boxes": 2.0, "box_confidence": 0.01, "temperature": 2.0}
    found, student, teacher, _, batch = dense_case(monkeypatch, Boxed(), detector(kind), **settings)
    passes = []
    student.backbone.register_forward_hook(lambda *_: passes.append(1))
    loss = found.loss(student.train(), batch)
    assert len(passes) == 1
    own, other = (raw_heads(net)(net, batch.images) for net in (student, teacher))
    exclusive = kind == "ssd"
    expected = distill.anchor_class_loss(own["cls_logits"], other["cls_logits"], 2.0, exclusive=exclusive)
    boxes = (own["bbox_regression"], other["bbox_regression"], other["cls_logits"])
    expected = expected + 2 * distill.anchor_box_loss(*boxes, 0.01, exclusive=exclusive)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-7)
    assert float(loss.detach()) > 0
    loss.backward()
    assert student.backbone.stem[0].weight.grad.any()
    assert all(p.grad is None for p in teacher.parameters())


def test_an_rpn_is_a_head_too(monkeypatch):
    settings = {"head_classes": 1.0, "head_boxes": 1.0, "box_confidence": 0.1}
    found, student, teacher, _, batch = dense_case(monkeypatch, Boxed(), detector("faster_rcnn"), **settings)
    loss = found.loss(student.train(), batch)
    own, other = (net.rpn.head(list(net.backbone(batch.images).values())) for net in (student, teacher))

    def anchor(levels, image, level, row, column, number, width):
        """One anchor's numbers, the slow way."""
        return torch.stack([levels[level][image, number * width + k, row, column] for k in range(width)])

    places = [
        (i, level, r, c, n)
        for i in range(2)
        for level, side in enumerate((8, 4))
        for r in range(side)
        for c in range(side)
        for n in range(2)
    ]
    logits = [torch.stack([anchor(x[0], *p, 1) for p in places])[None] for x in (own, other)]
    deltas = [torch.stack([anchor(x[1], *p, 4) for p in places])[None] for x in (own, other)]
    expected = distill.anchor_class_loss(*logits, 4.0, exclusive=False)
    expected = expected + distill.anchor_box_loss(*deltas, logits[1], 0.1, exclusive=False)
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-6)


def test_pyramid_features_are_hinted_level_by_level(monkeypatch):
    settings = {"hints": 1.0, "hint_layers": ("backbone", "backbone.stem"), "hint_match": "channels"}
    found, student, teacher, plan, batch = dense_case(monkeypatch, Boxed(), detector("retinanet"), **settings)
    assert found.helpers is None
    loss = float(found.loss(student.train(), batch).detach())
    own, other = (net.backbone(batch.images) for net in (student, teacher))
    stems = [net.backbone.stem(batch.images) for net in (student, teacher)]
    kept = torch.from_numpy(plan.kept_indices(("backbone.stem.0.weight", 0), 16))
    assert len(kept) == 8
    fine = torch.from_numpy(plan.kept_indices(("backbone.fine.weight", 0), 8))
    parts = [distill.hint_loss(own[k], other[k][:, fine]) for k in ("0", "1")]
    parts.append(distill.hint_loss(stems[0], stems[1][:, kept]))
    assert loss == pytest.approx(float(torch.stack(parts).mean().detach()), rel=1e-5)
    assert loss > 0


def test_segmenters_are_compared_pixel_by_pixel_and_channel_by_channel(monkeypatch):
    settings = {"labels": 1.0, "pixels": 2.0, "channels": 3.0, "temperature": 2.0}
    found, student, teacher, _, batch = dense_case(monkeypatch, Labelled(), Segmenter(), **settings)
    own, other = (net(batch.images)["out"] for net in (student, teacher))
    expected = F.cross_entropy(own, batch.targets, ignore_index=255)
    expected = expected + 2 * distill.pixel_loss(own, other, 2.0) + 3 * distill.channel_loss(own, other, 2.0)
    torch.testing.assert_close(found.loss(student.train(), batch), expected)
