"""Criteria of gradients for detectors and segmenters: by the task's own loss, on a network that is not disturbed."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torchvision.models.detection import FasterRCNN, RetinaNet
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.rpn import AnchorGenerator

from compress import prune
from compress.data.images import Batch
from compress.errors import PlanError
from compress.models.detection import raw_heads, take_prepared
from compress.prune import CRITERIA
from compress.prune.criteria.base import over
from compress.run.measuring import measured_on
from compress.run.scoring import loss_of, scored
from compress.train import TASKS

GRADIENTS = [name for name, one in CRITERIA.items() if one.needs == "gradients"]


class Body(nn.Sequential):
    out_channels = 12

    def __init__(self):
        super().__init__(
            nn.Conv2d(3, 10, 3, 2, 1, bias=False), nn.BatchNorm2d(10), nn.ReLU(),
            nn.Conv2d(10, 12, 3, 4, 1, bias=False), nn.BatchNorm2d(12), nn.ReLU(),
        )  # fmt: skip


class Segmenter(nn.Module):
    """Logits of a quarter of the size, alone, as a user's own may give."""

    def __init__(self):
        super().__init__()
        self.body, self.head = Body(), nn.Conv2d(12, 4, 1)

    def forward(self, images):
        return self.head(self.body(images))


ANCHORS = AnchorGenerator(sizes=((8, 16),), aspect_ratios=((1.0,),))


def retinanet():
    return RetinaNet(Body(), 3, anchor_generator=ANCHORS)


def rcnn():
    return FasterRCNN(
        Body(), rpn_anchor_generator=ANCHORS, rpn_batch_size_per_image=8, box_batch_size_per_image=8,
        box_head=TwoMLPHead(12 * 49, 16), box_predictor=FastRCNNPredictor(16, 3),
    )  # fmt: skip


def boxes(n):
    corner = torch.tensor([[4.0, 4.0, 20.0 + n, 24.0], [12.0, 8.0, 30.0, 22.0 + n]])
    return {"boxes": corner, "labels": torch.tensor([0, 1])}


def batch(count, targets, seed):
    images = torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(seed))
    return Batch(images, targets, torch.arange(count))


def of_boxes(count, seed):
    return batch(count, [boxes(n) for n in range(count)], seed)


def of_masks(count, seed):
    masks = torch.randint(0, 4, (count, 32, 32), generator=torch.Generator().manual_seed(seed))
    masks[:, :3] = 255
    return batch(count, masks, seed)


CASES = {
    "retinanet": ("detection", retinanet, of_boxes),
    "rcnn": ("detection", rcnn, of_boxes),
    "segmenter": ("segmentation", Segmenter, of_masks),
}


@pytest.fixture(scope="module", params=list(CASES))
def case(request):
    task, make, images = CASES[request.param]
    torch.manual_seed(0)
    net = make().eval()
    take_prepared(net, (32, 32))
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
    trace = prune.trace(net, torch.rand(2, 3, 32, 32), forward=raw_heads(net))
    return TASKS[task], net, trace, [images(3, 1), images(2, 2)]


def own_loss(task, net, one):
    """The task's loss with all norms in eval, written out."""
    if task.name == "segmentation":
        logits = F.interpolate(net(one.images), size=(32, 32), mode="bilinear", align_corners=False)
        return F.cross_entropy(logits, one.targets, ignore_index=255)
    net.train()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d | nn.Dropout):
            module.eval()
    torch.manual_seed(0)
    losses = net(list(one.images), [{**t, "labels": t["labels"] + 1} for t in one.targets])
    net.eval()
    return sum(losses.values())


def test_the_loss_is_the_tasks_own_and_disturbs_nothing(case):
    task, net, _, images = case
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    drawn = torch.random.get_rng_state()
    for one in images:
        got = loss_of(task)(net, (one.images, one.targets))
        assert torch.equal(torch.random.get_rng_state(), drawn)
        with torch.random.fork_rng(devices=[]):
            assert float(got) == pytest.approx(float(own_loss(task, net, one)), rel=1e-5)
    assert not any(module.training for module in net.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


def test_taylor_is_that_of_the_tasks_loss(case):
    task, net, trace, images = case
    got = scored(trace, net, "taylor", images, task)
    slots = [slot for slot in trace.slots if trace.roles[slot] == "producer"]
    weights = {name: p for name, p in net.named_parameters() if any(name == slot[0] for slot in slots)}
    total = torch.zeros(trace.units, dtype=torch.float64)
    for one in images:
        with torch.random.fork_rng(devices=[]):
            loss = own_loss(task, net, one)
        slopes = dict(zip(weights, torch.autograd.grad(loss, list(weights.values()), allow_unused=True), strict=True))
        sums = torch.zeros(trace.units, dtype=torch.float64)
        for name, dim in slots:
            if slopes.get(name) is not None:
                rows = over((weights[name] * slopes[name]).detach().double(), dim)
                sums.index_add_(0, torch.from_numpy(trace.slots[name, dim]), rows)
        total += sums.square() / len(images)
    torch.testing.assert_close(got, total, rtol=1e-4, atol=1e-12)
    assert float(got.max()) > 0


@pytest.mark.parametrize("criterion", GRADIENTS)
def test_every_criterion_of_gradients_judges_every_task(case, criterion):
    task, net, trace, images = case
    if isinstance(net, FasterRCNN) and criterion in ("obd", "hutchinson"):
        with pytest.raises(PlanError, match=r"no second derivative.*such as fisher"):
            scored(trace, net, criterion, images, task)
        return
    got = scored(trace, net, criterion, images, task, seed=3)
    assert torch.isfinite(got).all()
    assert torch.equal(got, scored(trace, net, criterion, images, task, seed=3))
    free = torch.cat([torch.from_numpy(group.units) for group in trace.groups])
    assert int(got[free].abs().gt(0).sum()) > len(free) // 2


def test_a_network_is_measured_by_loss_and_metric(case):
    task, net, _, images = case
    classes = ["a", "b", "c", "d"][: 4 if task.name == "segmentation" else 2]
    loss, metric, count = measured_on(task, images, classes)(net)
    with torch.random.fork_rng(devices=[]):
        expected = sum(float(own_loss(task, net, one)) * len(one) for one in images) / 5
    assert loss == pytest.approx(expected, rel=1e-5)
    assert 0 <= metric <= 1
    assert count == 5
