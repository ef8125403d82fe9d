"""Name a network's parameters and buffers, and hash their names and shapes: what a plan is bound to."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

import torch
from torch import nn


def named_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """Every parameter and buffer by name; a shared one under each of its names."""
    return {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }


def architecture_hash(model: nn.Module) -> str:
    """SHA-256 over the names and shapes of all parameters and buffers."""
    return shapes_hash(named_tensors(model))


def shapes_hash(tensors: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 over names and shapes."""
    shapes = {name: list(tensor.shape) for name, tensor in tensors.items()}
    return hashlib.sha256(json.dumps(shapes, sort_keys=True).encode()).hexdigest()
