"""torchvision's networks by name: classification, segmentation and detection."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from types import MappingProxyType
from typing import Any

from torch import nn

from compress.data.targets import TaskName
from compress.errors import ModelError
from compress.models.meta import on_meta
from compress.prune.architecture import architecture_hash

# Auxiliary classifiers give outputs in training only, in another shape; the slow initialisation is not worth the wait.
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

    Detectors also take ``frozen_norms``: it turns the BatchNorm layers of the backbone's body into FrozenBatchNorm2d,
    which torchvision builds for pretrained weights, and which such weights have to be loaded into. The classes of
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


def recognised(model: nn.Module, architecture: str) -> tuple[str, int] | None:
    """Find which of torchvision's classifiers a network is, by the shapes of its tensors.

    Args:
        model: one of torchvision's classes, perhaps cut since.
        architecture: ``architecture_hash`` of it when it was whole.

    Returns:
        The name and the number of classes; None where it is none of them with its usual arguments.
    """
    from torchvision import models

    home = type(model).__module__
    linears = [module for module in model.modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    if not home.startswith("torchvision.models.") or not linears:
        return None
    last = linears[-1]
    outputs = last.out_features if isinstance(last, nn.Linear) else last.out_channels
    for name, task in names().items():
        if task != "classification" or models.get_model_builder(name).__module__ != home:
            continue
        with on_meta():
            whole = maker(name)(num_classes=outputs)
        if architecture_hash(whole) == architecture:
            return f"torchvision:{name}", outputs
    return None


def _freeze_norms(model: nn.Module) -> None:
    """Replace the body's BatchNorm2d by FrozenBatchNorm2d, with its own eps, as torchvision does.

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
