"""Each distillation loss against values worked out by hand."""

import math

import pytest
import torch

from compress import distill


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


def test_mixed_labels_mix_the_directions():
    student, means = torch.tensor([[0.0, 2.0]]), torch.tensor([[3.0, 0.0], [0.0, 1.0]])
    # Directions (1, 0) and (0, 1), half of each: (1, 1) / sqrt 2; <(0, 2), .> / 2 = 1 / sqrt 2
    found = distill.class_mean_loss(student, student, means, torch.tensor([[0.5, 0.5]]))
    assert float(found) == pytest.approx(1 - 1 / math.sqrt(2))
    one_hot = distill.class_mean_loss(student, student, means, torch.tensor([[0.0, 1.0]]))
    assert float(one_hot) == float(distill.class_mean_loss(student, student, means, torch.tensor([1])))


def test_hint_loss_by_hand():
    # Differences 1, 0, 2, 1: half of 6 / 4
    found = distill.hint_loss(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[0.0, 2.0], [1.0, 5.0]]))
    assert float(found) == pytest.approx(0.75)


def test_attention_loss_by_hand():
    student = torch.tensor([[[[3.0, 0.0]], [[0.0, 2.0]]]])
    teacher = torch.tensor([[[[1.0, 1.0]]]])
    own, other = [9 / math.sqrt(97), 4 / math.sqrt(97)], [1 / math.sqrt(2)] * 2
    expected = sum((a - b) ** 2 for a, b in zip(own, other, strict=True))
    found = distill.attention_loss(distill.attention_map(student), distill.attention_map(teacher))
    assert float(found) == pytest.approx(expected)
    # Tokens carry their channels last.
    tokens = student.flatten(2).transpose(1, 2)
    assert torch.equal(distill.attention_map(tokens), distill.attention_map(student))


def huber(a, b):
    return 0.5 * (a - b) ** 2 if abs(a - b) < 1 else abs(a - b) - 0.5


POINTS = [[0.0, 0.0], [3.0, 4.0], [0.0, 8.0]], [[0.0], [1.0], [5.0]]


def test_relation_distance_by_hand():
    # 5, 8, 5 over 6 against 1, 5, 4 over 10/3
    own, other = [5 / 6, 8 / 6, 5 / 6], [0.3, 1.5, 1.2]
    expected = sum(huber(a, b) for a, b in zip(own, other, strict=True)) / 3
    found = distill.relation_distance_loss(*(torch.tensor(x) for x in POINTS))
    assert float(found) == pytest.approx(expected, rel=1e-5)


def test_relation_angle_by_hand():
    def cosine(points, i, j, k):
        one = [a - b for a, b in zip(points[i], points[j], strict=True)]
        two = [a - b for a, b in zip(points[k], points[j], strict=True)]
        return sum(a * b for a, b in zip(one, two, strict=True)) / (math.hypot(*one) * math.hypot(*two))

    rows = [(i, j, k) for i in range(3) for j in range(3) for k in range(3) if len({i, j, k}) == 3]
    expected = sum(huber(cosine(POINTS[0], *r), cosine(POINTS[1], *r)) for r in rows) / len(rows)
    found = distill.relation_angle_loss(*(torch.tensor(x) for x in POINTS))
    assert float(found) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("loss", [distill.relation_distance_loss, distill.relation_angle_loss])
def test_relations_of_equal_or_too_few_images_have_finite_gradients(loss):
    for student in (torch.zeros(4, 3), torch.ones(1, 3), torch.ones(2, 3)):
        student.requires_grad_(True)
        loss(student, torch.randn(len(student), 5, generator=torch.Generator().manual_seed(0))).backward()
        assert torch.isfinite(student.grad).all()


def test_pixel_loss_by_hand():
    # Two pixels, one classed alike: the mean over both.
    student, teacher = torch.zeros(1, 2, 1, 2), torch.zeros(1, 2, 1, 2)
    student[0, 0, 0, 1], teacher[0, 1, 0, 1] = 2.0, 4.0
    p, q = softmax([0.0, 2.0]), softmax([1.0, 0.0])
    found = distill.pixel_loss(student, teacher, 2.0)
    assert float(found) == pytest.approx(4 * entropy(p, q) / 2, rel=1e-5)


def test_channel_loss_by_hand():
    student, teacher = torch.tensor([[[[0.0, 1.0]], [[2.0, 2.0]]]]), torch.tensor([[[[3.0, 1.0]], [[5.0, 5.0]]]])
    # The second channel looks everywhere alike in both: nothing.
    expected = 4 * entropy(softmax([1.5, 0.5]), softmax([0.0, 0.5])) / 2
    assert float(distill.channel_loss(student, teacher, 2.0)) == pytest.approx(expected, rel=1e-5)


def test_anchor_classes_by_hand_with_a_background():
    student, teacher = [[0.0, 1.0], [0.0, 0.0]], [[0.0, 3.0], [2.0, 0.0]]
    sure = [softmax(t)[1] for t in teacher]
    each = [
        4 * entropy(softmax([v / 2 for v in t]), softmax([v / 2 for v in s]))
        for s, t in zip(student, teacher, strict=True)
    ]
    expected = sum(w * e for w, e in zip(sure, each, strict=True)) / sum(sure)
    found = distill.anchor_class_loss(torch.tensor([student]), torch.tensor([teacher]), 2.0, exclusive=True)
    assert float(found) == pytest.approx(expected, rel=1e-5)


def test_anchor_classes_by_hand_with_sigmoids():
    def sigmoid(v):
        return 1 / (1 + math.exp(-v))

    student, teacher = [0.5, -1.0], [2.0, -3.0]
    pairs = [(sigmoid(t), sigmoid(s)) for s, t in zip(student, teacher, strict=True)]
    each = [entropy([p, 1 - p], [q, 1 - q]) for p, q in pairs]
    expected = sum(p * e for (p, _), e in zip(pairs, each, strict=True)) / sum(p for p, _ in pairs)
    own, other = (torch.tensor(v)[None, :, None] for v in (student, teacher))
    assert float(distill.anchor_class_loss(own, other, 1.0, exclusive=False)) == pytest.approx(expected, rel=1e-5)


def test_boxes_follow_the_teacher_where_it_is_sure_and_only_there():
    logits = torch.tensor([[[0.0, 3.0], [3.0, 0.0]]])
    student, teacher = torch.zeros(1, 2, 4, requires_grad=True), torch.tensor([[[0.5, 0, 0, 3.0], [9.0, 9, 9, 9]]])
    found = distill.anchor_box_loss(student, teacher, logits, 0.5, exclusive=True)
    assert float(found.detach()) == pytest.approx((huber(0, 0.5) + huber(0, 3)) / 4)
    found.backward()
    assert student.grad[0, 0].any() and not student.grad[0, 1].any()
    assert float(distill.anchor_box_loss(student, teacher, logits, 0.99, exclusive=True).detach()) == 0
