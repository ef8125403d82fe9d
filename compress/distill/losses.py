"""The losses between a student and its teacher, each a function of their tensors."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def logits_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T^2 KL(teacher / T || student / T), mean over the batch (Hinton et al., Distilling the Knowledge, 2015).

    Args:
        student: logits of shape (N, classes).
        teacher: logits of shape (N, classes), no gradient.
        temperature: T.
    """
    log_student = F.log_softmax(student / temperature, dim=1)
    log_teacher = F.log_softmax(teacher / temperature, dim=1)
    return temperature**2 * F.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True)


def class_mean_loss(student: Tensor, teacher: Tensor, means: Tensor, labels: Tensor) -> Tensor:
    """Pull features towards their class's mean as the full-size network computes it.

    mean over n of 1 - <s_n, m_y / |m_y|> / max(|s_n|, |t_n|): direction and norm. That features are aligned to
    class means follows Model Pruning with Model Transfer (2023); the formula is the norm-and-direction loss,
    and taking it here is our choice, since the paper's own is not published.

    Args:
        student: features of shape (N, D).
        teacher: features of the same images, shape (N, D), no gradient.
        means: class means, shape (classes, D).
        labels: int64 of shape (N,), or shares of the classes of shape (N, classes) for mixed images, whose mean is
            then the mixture of the classes' directions (our choice).
    """
    directions = F.normalize(means, dim=1)
    directions = F.normalize(labels @ directions, dim=1) if labels.is_floating_point() else directions[labels]
    norms = torch.maximum(student.norm(dim=1), teacher.norm(dim=1)).clamp_min(1e-8)
    return (1 - (student * directions).sum(1) / norms).mean()


def hint_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Half the squared difference of two feature maps (Romero et al., FitNets: Hints for Thin Deep Nets, 2015).

    Our choice is the mean over all elements, where the paper sums them, so that one weight suits layers of any size.

    Args:
        student: a layer's output of any shape, after the projection where widths differ.
        teacher: the teacher's output of that layer, same shape, no gradient.
    """
    return 0.5 * F.mse_loss(student, teacher)


def cosine_hint_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """One minus the cosine of two feature maps, image by image (Combining Weight Pruning and Knowledge Distillation
    for CNN Compression, 2021): the direction counts, the size does not.

    Args:
        student: a layer's output, (N, ...), after the projection where widths differ.
        teacher: the teacher's output of that layer, same shape, no gradient.
    """
    return (1 - F.cosine_similarity(student.flatten(1), teacher.flatten(1), dim=1)).mean()


def attention_map(features: Tensor) -> Tensor:
    """Where a layer responds: the sum over channels of the squares, divided by the map's norm.

    Args:
        features: shape (N, C, H, W), or (N, tokens, C), whose channels come last.

    Returns:
        shape (N, positions), of norm 1.
    """
    energy = features.square().sum(1 if features.dim() == 4 else -1)
    return F.normalize(energy.flatten(1), dim=1)


def attention_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared distance of two attention maps, mean over the batch; the layers' widths need not agree.

    Zagoruyko and Komodakis, Paying More Attention to Attention, 2017. Our choice is to square the
    distance, which the paper does not, so that its gradient exists at 0.

    Args:
        student: ``attention_map`` of a layer, shape (N, positions).
        teacher: the teacher's, no gradient.
    """
    return (student - teacher).square().sum(1).mean()


def relation_distance_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Huber difference of the distances within a batch (RKD-D: Park et al., Relational Knowledge Distillation, 2019).

    Each network's distances are divided by their mean over the pairs, so that widths need not agree.

    Args:
        student: features of shape (N, D).
        teacher: features of the same images, shape (N, D'), no gradient.
    """
    if len(student) < 2:
        return student.sum() * 0
    own, other = (_distances(x) for x in (student, teacher))
    return F.smooth_l1_loss(own, other)


def relation_angle_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Huber difference of the angles within a batch (RKD-A: Park et al., Relational Knowledge Distillation, 2019).

    The cosine of the angle at j between i and k, over all triples of different images. Memory grows with N^3.

    Args:
        student: features of shape (N, D).
        teacher: features of the same images, shape (N, D'), no gradient.
    """
    if len(student) < 3:
        return student.sum() * 0
    place = torch.arange(len(student), device=student.device)
    i, j, k = place[:, None, None], place[None, :, None], place[None, None, :]
    triples = (i != j) & (j != k) & (i != k)
    own, other = (_cosines(x)[triples] for x in (student, teacher))
    return F.smooth_l1_loss(own, other)


def pixel_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T^2 KL(teacher / T || student / T) of the classes at each pixel, mean over all pixels.

    The pixel-wise term of Liu et al., Structured Knowledge Distillation for Semantic Segmentation, 2019, with
    Hinton's temperature. Pixels without a label count too, since the teacher has an output there.

    Args:
        student: logits of shape (N, classes, H, W).
        teacher: logits of the same shape, no gradient.
        temperature: T.
    """
    log_student = F.log_softmax(student / temperature, dim=1)
    log_teacher = F.log_softmax(teacher / temperature, dim=1)
    divergence = F.kl_div(log_student, log_teacher, reduction="none", log_target=True).sum(1)
    return temperature**2 * divergence.mean()


def channel_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T^2 KL of where each channel responds: a softmax over the positions, mean over channels and the batch.

    Shu et al., Channel-wise Knowledge Distillation for Dense Prediction, 2021.

    Args:
        student: logits or features of shape (N, C, H, W).
        teacher: the teacher's, same shape, no gradient.
        temperature: T.
    """
    log_student = F.log_softmax(student.flatten(2) / temperature, dim=2)
    log_teacher = F.log_softmax(teacher.flatten(2) / temperature, dim=2)
    divergence = F.kl_div(log_student, log_teacher, reduction="none", log_target=True).sum(2)
    return temperature**2 * divergence.mean()


def anchor_class_loss(student: Tensor, teacher: Tensor, temperature: float, *, exclusive: bool) -> Tensor:
    """T^2 KL of the classes at each anchor, weighted by the teacher's confidence that there is an object.

    After Chen et al., Learning Efficient Object Detection Models with Knowledge Distillation, 2017, which gives the
    background a weight of its own. Our choice of weight is the teacher's largest probability of an object (T = 1), so
    that anchors over background do not outweigh the rest.

    Args:
        student: logits of shape (N, anchors, K).
        teacher: logits of the same shape, no gradient.
        temperature: T.
        exclusive: whether the K are one softmax with the background first (SSD, RoI heads); else they are K sigmoids
            of objects (RetinaNet, FCOS, an RPN).
    """
    sure = _objects(teacher, exclusive).amax(2)
    s, t = student / temperature, teacher / temperature
    if exclusive:
        log_s, log_t = F.log_softmax(s, dim=2), F.log_softmax(t, dim=2)
        divergence = F.kl_div(log_s, log_t, reduction="none", log_target=True).sum(2)
    else:
        yes = F.kl_div(F.logsigmoid(s), F.logsigmoid(t), reduction="none", log_target=True)
        no = F.kl_div(F.logsigmoid(-s), F.logsigmoid(-t), reduction="none", log_target=True)
        divergence = (yes + no).sum(2)
    return temperature**2 * (sure * divergence).sum() / sure.sum().clamp_min(1e-8)


def anchor_box_loss(student: Tensor, teacher: Tensor, logits: Tensor, sure: float, *, exclusive: bool) -> Tensor:
    """Huber difference of the box deltas where the teacher is confident of an object; 0 if it is of none.

    After the regression term of Chen et al., Learning Efficient Object Detection Models with Knowledge Distillation,
    2017; applying it where the teacher's probability reaches a threshold is our choice.

    Args:
        student: box deltas of shape (N, anchors, 4).
        teacher: box deltas of the same shape, no gradient.
        logits: the teacher's class logits, shape (N, anchors, K).
        sure: the least probability of an object.
        exclusive: as in ``anchor_class_loss``.
    """
    where = _objects(logits, exclusive).amax(2) >= sure
    if not bool(where.any()):
        return student.sum() * 0
    return F.smooth_l1_loss(student[where], teacher[where])


def _objects(logits: Tensor, exclusive: bool) -> Tensor:
    """Probability of each class except the background, shape (N, anchors, objects)."""
    return logits.softmax(2)[..., 1:] if exclusive else logits.sigmoid()


def _distances(x: Tensor) -> Tensor:
    """Distances of all pairs i < j over their mean, shape (N (N - 1) / 2,)."""
    distances = F.pdist(x)
    return distances / distances.mean().clamp_min(1e-8)


def _cosines(x: Tensor) -> Tensor:
    """Cosine of the angle at j between i and k, shape (N, N, N) over (i, j, k)."""
    # From the Gram matrix, so that memory does not grow with the width; centred, to limit cancellation.
    x = x - x.mean(0)
    gram = x @ x.T
    own = gram.diagonal()
    products = gram[:, None, :] - gram[:, :, None] - gram[None, :, :] + own[None, :, None]
    lengths = (own[:, None] + own[None, :] - 2 * gram).clamp_min(1e-12).sqrt()
    return products / (lengths[:, :, None] * lengths[None, :, :]).clamp_min(1e-8)
