"""From a teacher to a student: the losses, each a function, their weighted sum, and the teacher's classifier reused."""

from compress.distill.cache import Cache
from compress.distill.classifier import (
    class_means,
    fold_classifier,
    project_classifier,
    projection,
    reuse_classifier,
)
from compress.distill.feature_hooks import FeatureHooks
from compress.distill.features import Projection
from compress.distill.losses import (
    anchor_box_loss,
    anchor_class_loss,
    attention_loss,
    attention_map,
    channel_loss,
    class_mean_loss,
    hint_loss,
    logits_loss,
    pixel_loss,
    relation_angle_loss,
    relation_distance_loss,
)
from compress.distill.pair import kept_features
from compress.distill.registry import LOSSES, check, reuse, weights
from compress.distill.setup import Distillation, set_up
from compress.distill.teacher import answers, forward_flops
from compress.distill.unlabelled import UNLABELLED, with_answers

__all__ = [
    "LOSSES",
    "UNLABELLED",
    "Cache",
    "Distillation",
    "FeatureHooks",
    "Projection",
    "anchor_box_loss",
    "anchor_class_loss",
    "answers",
    "attention_loss",
    "attention_map",
    "channel_loss",
    "check",
    "class_mean_loss",
    "class_means",
    "fold_classifier",
    "forward_flops",
    "hint_loss",
    "kept_features",
    "logits_loss",
    "pixel_loss",
    "project_classifier",
    "projection",
    "relation_angle_loss",
    "relation_distance_loss",
    "reuse",
    "reuse_classifier",
    "set_up",
    "weights",
    "with_answers",
]
