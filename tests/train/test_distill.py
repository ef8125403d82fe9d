"""Each distillation loss against values worked out by hand, and what the teacher hands over."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from compress import distill
from compress.data.images import Batch, ImageReader, Split
from compress.models import cifar_resnet
from compress.recipe import DistillRecipe

RECIPE = {"epochs": 1}


def entropy(p, q):
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def softmax(values):
    total = sum(math.exp(v) for v in values)
    return [math.exp(v) / total for v in values]


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_logits_loss_is_the_tempered_divergence(temperature):
    student, teacher = [[1.0, -2.0, 0.5], [0.0, 3.0, 1.0]], [[2.0, 0.0, -1.0], [0.5, 0.5, 0.5]]
    expected = 0.0
    for s, t in zip(student, teacher, strict=True):
        p, q = softmax([v / temperature for v in t]), softmax([v / temperature for v in s])
        expected += temperature**2 * entropy(p, q) / 2
    found = distill.logits_loss(torch.tensor(student), torch.tensor(teacher), temperature)
    assert float(found) == pytest.approx(expected, rel=1e-5)


def test_logits_loss_is_zero_for_equal_logits_and_shifts():
    logits = torch.randn(4, 5)
    assert float(distill.logits_loss(logits, logits + 7, 2.0)) == pytest.approx(0, abs=1e-5)


def test_class_mean_loss_by_hand():
    student = torch.tensor([[3.0, 4.0], [0.0, 1.0]])
    teacher = torch.tensor([[6.0, 8.0], [0.5, 0.0]])
    means = torch.tensor([[2.0, 0.0], [0.0, 5.0]])
    # <(3, 4), (1, 0)> / max(5, 10) = 0.3; <(0, 1), (0, 1)> / max(1, 0.5) = 1
    found = distill.class_mean_loss(student, teacher, means, torch.tensor([0, 1]))
    assert float(found) == pytest.approx(((1 - 0.3) + (1 - 1)) / 2)


def test_class_mean_loss_of_zero_features_is_finite():
    student = torch.zeros(2, 3, requires_grad=True)
    loss = distill.class_mean_loss(student, torch.zeros(2, 3), torch.zeros(4, 3), torch.tensor([0, 3]))
    loss.backward()
    assert loss.item() == pytest.approx(1)
    assert torch.isfinite(student.grad).all()


class Pixels:
    def __init__(self, count):
        self.arrays = np.random.default_rng(0).integers(0, 256, (count, 8, 8), dtype=np.uint8)

    def __len__(self):
        return len(self.arrays)

    def __getitem__(self, index):
        return Image.fromarray(self.arrays[index])


READER = ImageReader(Image.open, lambda image: np.asarray(image, dtype=np.float32)[None] / 255)


def test_class_means_equal_a_loop():
    torch.manual_seed(0)
    teacher = cifar_resnet(8, 8, in_channels=1, num_classes=4).eval()
    labels = torch.tensor([0, 1, 1, 3, 0, 1, 3])
    split = Split(Pixels(7), labels, READER)
    found = distill.class_means(teacher, split, 4)
    expected = torch.zeros(4, 32)
    for c in (0, 1, 3):
        rows = []
        for i in range(7):
            if labels[i] == c:
                with torch.no_grad():
                    x = F.relu(teacher.bn1(teacher.conv1(split.inputs(i, i + 1))))
                    rows.append(teacher.layer3(teacher.layer2(teacher.layer1(x))).mean((2, 3))[0])
        expected[c] = torch.stack(rows).mean(0)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert not found[2].any()


def test_images_first_read_for_the_means_can_still_be_trained_on():
    net = cifar_resnet(8, 8, in_channels=1, num_classes=4)
    split = Split(Pixels(8), torch.arange(8) % 4, READER)
    distill.class_means(net.eval(), split, 4)
    batch = split.batch(torch.arange(8))
    F.cross_entropy(net.train()(batch.images), batch.targets).backward()
    assert not batch.images.is_inference()


def test_the_classifier_is_copied_and_frozen():
    student, teacher = cifar_resnet(8, 8), cifar_resnet(8, 8)
    distill.reuse_classifier(student, teacher)
    assert torch.equal(student.fc.weight, teacher.fc.weight)
    assert torch.equal(student.fc.bias, teacher.fc.bias)
    assert student.fc.weight.data_ptr() != teacher.fc.weight.data_ptr()
    assert {n for n, p in student.named_parameters() if not p.requires_grad} == {"fc.weight", "fc.bias"}


def test_a_tap_keeps_what_the_classifier_was_fed_and_goes_away():
    net = cifar_resnet(8, 8, num_classes=3).eval()
    tap, x = distill.Tap(net), torch.randn(2, 3, 8, 8)
    with tap.open() as seen:
        logits = net(x)
    assert seen[0].shape == (2, 32)
    assert torch.equal(net.fc(seen[0]), logits)
    net(x)
    assert len(seen) == 1
    with pytest.raises(ZeroDivisionError), tap.open() as seen:
        raise ZeroDivisionError
    net(x)
    assert seen == []


def weighted(**weights):
    return DistillRecipe(**RECIPE, **{"labels": 0, "logits": 0, "class_means": 0, **weights})


@pytest.fixture
def pair():
    torch.manual_seed(1)
    return cifar_resnet(8, 8, num_classes=4), cifar_resnet(8, 8, num_classes=4)


def test_the_students_loss_is_the_weighted_sum(pair):
    student, teacher = pair
    student.eval()
    x, labels = torch.randn(6, 3, 8, 8), torch.tensor([0, 1, 2, 3, 0, 1])
    kept, means = torch.arange(32), torch.randn(4, 32)
    parts = {}
    for name in ("labels", "logits", "class_means"):
        loss = distill.student_loss(weighted(**{name: 1.0}), student, teacher, kept, means)
        parts[name] = float(loss(student, Batch(x, labels, labels)).detach())
    assert parts["labels"] == pytest.approx(float(F.cross_entropy(student(x), labels).detach()))
    expected = float(distill.logits_loss(student(x), teacher.eval()(x), 4.0).detach())
    assert parts["logits"] == pytest.approx(expected, rel=1e-5)
    asked = weighted(labels=0.5, logits=2.0, class_means=3.0)
    total = float(
        distill.student_loss(asked, student, teacher, kept, means)(student, Batch(x, labels, labels)).detach()
    )
    assert total == pytest.approx(0.5 * parts["labels"] + 2 * parts["logits"] + 3 * parts["class_means"], rel=1e-5)


def test_the_teacher_learns_nothing(pair):
    student, teacher = pair
    teacher.train()
    asked = weighted(logits=1.0, class_means=1.0)
    loss = distill.student_loss(asked, student, teacher, torch.arange(32), torch.randn(4, 32))
    before = {n: t.clone() for n, t in teacher.state_dict().items()}
    loss(student, Batch(torch.randn(4, 3, 8, 8), torch.arange(4), torch.arange(4))).backward()
    assert all(p.grad is None for p in teacher.parameters())
    assert all(torch.equal(before[n], t) for n, t in teacher.state_dict().items())
    assert student.conv1.weight.grad is not None


def test_a_narrower_student_is_compared_with_the_kept_features(pair):
    _, teacher = pair
    student = cifar_resnet(8, 4, num_classes=4)
    kept = torch.arange(0, 32, 2)
    loss = distill.student_loss(weighted(class_means=1.0), student, teacher, kept, torch.randn(4, 32))
    assert torch.isfinite(loss(student, Batch(torch.randn(4, 3, 8, 8), torch.arange(4), torch.arange(4))))
