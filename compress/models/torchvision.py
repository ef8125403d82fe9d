"""torchvision's networks by name: classification, segmentation and detection."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from types import MappingProxyType
from typing import Any

from torch import nn

from compress.data.targets import TaskName
from compress.errors import ModelError

# Auxiliary classifiers answer in training only, in a shape of their own; the slow initial draw is not worth its wait.
_WITH_AUXILIARY_HEADS = ("googlenet", "inception_v3")


@cache
def names() -> MappingProxyType[str, TaskName]:
    """Every torchvision network for images, with its task."""
    from torchvision import models

    found: dict[str, TaskName] = dict.fromkeys(models.list_models(module=models), "classification")
    found |= dict.fromkeys(models.list_models(module=models.segmentation), "segmentation")
    found |= dict.fromkeys(models.list_models(module=models.detection), "detection")
    return MappingProxyType(found)


def maker(name: str) -> Callable[..., nn.Module]:
    """The factory of one torchvision network, without pretrained weights.

    Detectors also take ``frozen_norms``: BatchNorm layers of the backbone's body become FrozenBatchNorm2d, which is
    what torchvision builds when weights are pretrained, and what such weights have to be loaded into. Classes of
    detectors and segmenters include the background.

    Raises:
        ModelError: torchvision has no network of that name.
    """
    from torchvision import models

    task = names().get(name)
    if task is None:
        close = [known for known in names() if known[:4] == name[:4]] or list(names())
        raise ModelError(f"torchvision has no model '{name}'; it has for example {', '.join(close[:5])}.")
    never = {"weights": None} if task == "classification" else {"weights": None, "weights_backbone": None}

    def make(*, frozen_norms: bool = False, **arguments: Any) -> nn.Module:
        if name in _WITH_AUXILIARY_HEADS:
            arguments = {"aux_logits": False, "init_weights": False} | arguments
        model = models.get_model(name, **never, **arguments)
        if frozen_norms:
            _freeze_norms(model)
        return model

    return make


def _freeze_norms(model: nn.Module) -> None:
    """Puts FrozenBatchNorm2d, with its own eps as torchvision does, in place of the body's BatchNorm2d.

    Raises:
        ValueError: the network has no such layers in ``backbone.body``.
    """
    from torchvision.ops import FrozenBatchNorm2d

    body = getattr(getattr(model, "backbone", None), "body", None)
    norms = [(p, m) for p, m in body.named_modules() if isinstance(m, nn.BatchNorm2d)] if body is not None else []
    if body is None or not norms:
        raise ValueError(f"{type(model).__name__} has no BatchNorm2d in backbone.body; leave frozen_norms out")
    for path, norm in norms:
        frozen = FrozenBatchNorm2d(norm.num_features)
        for name in ("weight", "bias", "running_mean", "running_var"):
            setattr(frozen, name, getattr(norm, name).detach())
        body.set_submodule(path, frozen)
