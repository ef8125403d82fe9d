"""Name a network's parameters and buffers, and hash their names and shapes: what a plan is bound to."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn


def walk(root: nn.Module) -> list[tuple[str, nn.Module]]:
    """What ``root.named_modules(remove_duplicate=False)`` gives, in its order, many times as fast."""
    found: list[tuple[str, nn.Module]] = []

    def enter(path: str, module: nn.Module) -> None:
        if type(module).named_modules is not nn.Module.named_modules:
            found.extend(module.named_modules(prefix=path, remove_duplicate=False))
            return
        found.append((path, module))
        for name, child in module._modules.items():
            if child is not None:
                enter(f"{path}.{name}" if path else name, child)

    enter("", root)
    return found


def named_parameters(model: nn.Module) -> dict[str, torch.Tensor]:
    """Every parameter by name; a shared one under each of its names."""
    if type(model).named_parameters is not nn.Module.named_parameters:
        return dict(model.named_parameters(remove_duplicate=False))
    return {
        f"{path}.{name}" if path else name: p
        for path, module in walk(model)
        for name, p in module._parameters.items()
        if p is not None
    }


def named_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """Every parameter and buffer by name; a shared one under each of its names."""
    kind = type(model)
    if (kind.named_parameters, kind.named_buffers) != (nn.Module.named_parameters, nn.Module.named_buffers):
        parameters: Any = dict(model.named_parameters(remove_duplicate=False))
        return {**parameters, **dict(model.named_buffers(remove_duplicate=False))}
    # What torch gives, in its order, from one walk over the modules.
    modules = [(f"{path}." if path else "", m) for path, m in walk(model)]
    found: dict[str, torch.Tensor] = {
        f"{path}{name}": p for path, m in modules for name, p in m._parameters.items() if p is not None
    }
    found |= {f"{path}{name}": b for path, m in modules for name, b in m._buffers.items() if b is not None}
    return found


def architecture_hash(model: nn.Module) -> str:
    """SHA-256 over the names and shapes of all parameters and buffers."""
    return shapes_hash(named_tensors(model))


def shapes_hash(tensors: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 over names and shapes."""
    shapes = {name: list(tensor.shape) for name, tensor in tensors.items()}
    return hashlib.sha256(json.dumps(shapes, sort_keys=True).encode()).hexdigest()
