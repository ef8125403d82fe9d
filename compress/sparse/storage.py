"""A sparse network on disk: nonzero values and where they are, in one safetensors file; and budgets in its bytes.

Each masked parameter is stored as its nonzero values and, whichever is smaller, a bitmap (a bit a weight) or gaps (a
byte a nonzero: how many zeros come before it; 255 says 255 zeros and go on). Everything else is stored dense.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save, save_file
from torch import Tensor, nn

from compress.errors import ArtifactError, ModelError, said_by
from compress.files import replacing
from compress.sparse.masks import Masks, bare, weights_of

FORMAT = "niwaki-sparse-1"
ESCAPE = 255
LARGEST = 1 << 26
"""Masked weights of a file at most, unless it is so large that gaps can tell of more: a few bytes ask for no more."""


def save_sparse(model: nn.Module, path: str | Path, masks: Masks) -> int:
    """Write the state of a network that obeys ``masks``; returns the bytes of the file.

    Raises:
        ModelError: a weight that the masks drop is not zero.
    """
    tensors, about = _packed(model, masks)
    path = Path(path)
    with replacing(path) as temporary:
        save_file(tensors, temporary, about)
    return path.stat().st_size


def sparse_bytes(model: nn.Module, masks: Masks) -> int:
    """What ``save_sparse`` would write."""
    return len(save(*_packed(model, masks)))


def load_sparse(path: str | Path) -> dict[str, Tensor]:
    """Read the dense state dict back; every part of the file is checked before any is used.

    Raises:
        ArtifactError: the file is missing, damaged or something else.
    """
    path = Path(path)
    if not path.is_file():
        raise ArtifactError(f"There is no sparse network {path}; save one first.")
    try:
        with safe_open(path, "pt") as file:
            about = json.loads((file.metadata() or {}).get("niwaki", "{}"))
            stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        return _unpacked(about, stored, max(LARGEST, ESCAPE * path.stat().st_size))
    except (SafetensorError, OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ArtifactError(f"{path} is not a sparse network ({said_by(error)}); save it again.") from None


def keep_for_bytes(model: nn.Module, budget: int) -> int:
    """The most weights that may stay so that the file of the whole network surely fits, wherever they are.

    Both ways to say where are bounded: a bitmap takes an eighth of a byte a weight, gaps a byte a nonzero and one for
    each 255 weights. The file is usually smaller.

    Raises:
        ModelError: not even the dense part fits.
    """
    weights = weights_of(model)
    total, size = sum(w.numel() for w in weights.values()), max(w.element_size() for w in weights.values())
    empty = {name: torch.zeros(w.shape, dtype=torch.bool) for name, w in weights.items()}
    # A header names offsets, which grow by a few digits with the values: 64 bytes a tensor are more than that.
    fixed = sparse_bytes(_zeroed(model), Masks(empty)) + 64 * len(weights)
    bitmaps = sum(-(-w.numel() // 8) for w in weights.values())
    escapes = sum(w.numel() // ESCAPE for w in weights.values())
    keep = min(total, max((budget - fixed - bitmaps) // size, (budget - fixed - escapes) // (size + 1)))
    if keep < 1:
        raise ModelError(f"{budget} bytes do not hold this network's dense part ({fixed} bytes); allow more.")
    return keep


def _zeroed(model: nn.Module) -> nn.Module:
    empty = copy.deepcopy(bare(model))
    with torch.no_grad():
        for weight in weights_of(empty).values():
            weight.zero_()
    return empty


def _packed(model: nn.Module, masks: Masks) -> tuple[dict[str, Tensor], dict[str, str]]:
    broken = masks.broken(model)
    if broken:
        raise ModelError(f"'{broken[0]}' has weights where its mask says zero; call masks.apply_(model) first.")
    tensors: dict[str, Tensor] = {}
    shapes: dict[str, list[int]] = {}
    for name, value in bare(model).state_dict().items():
        tensor = value.detach().cpu().contiguous()
        if name not in masks.kept:
            tensors[name] = tensor.clone()
            continue
        kept = masks.kept[name].cpu().numpy().reshape(-1)
        shapes[name] = list(tensor.shape)
        tensors[f"{name}:values"] = tensor.reshape(-1)[torch.from_numpy(kept)]
        bits, steps = np.packbits(kept), gaps(kept)
        where = ("bits", bits) if len(bits) <= len(steps) else ("gaps", steps)
        tensors[f"{name}:{where[0]}"] = torch.from_numpy(where[1])
    return tensors, {"niwaki": json.dumps({"format": FORMAT, "shapes": shapes})}


def gaps(kept: np.ndarray) -> np.ndarray:
    """uint8: zeros before each True, 255 for 255 zeros and no True; zeros after the last True are not written."""
    before = np.diff(np.flatnonzero(kept), prepend=-1) - 1
    whole, rest = np.divmod(before, ESCAPE)
    steps = np.full(int(whole.sum()) + len(rest), ESCAPE, dtype=np.uint8)
    steps[np.cumsum(whole + 1) - 1] = rest
    return steps


def places(steps: np.ndarray, count: int) -> np.ndarray:
    """Booleans [count] from gaps. Raises ValueError when they lead beyond it."""
    ends = np.cumsum(steps.astype(np.int64) + (steps != ESCAPE))
    found = ends[steps != ESCAPE] - 1
    if len(ends) and (ends[-1] > count or steps[-1] == ESCAPE):
        raise ValueError("its gaps lead beyond the tensor")
    kept = np.zeros(count, dtype=bool)
    kept[found] = True
    return kept


def _unpacked(about: Any, stored: Mapping[str, Tensor], left: int) -> dict[str, Tensor]:
    """Spell the stored tensors out, ``left`` masked weights at most."""
    if not isinstance(about, dict) or about.get("format") != FORMAT or not isinstance(about.get("shapes"), dict):
        raise ValueError(f"its header does not say {FORMAT}")
    state = {name: tensor for name, tensor in stored.items() if ":" not in name}
    parts = {name for name in stored if ":" in name}
    for name, shape in about["shapes"].items():
        if not isinstance(shape, list) or not all(type(side) is int and side >= 0 for side in shape):
            raise ValueError(f"the shape of '{name}' is not a list of sizes")
        count, values = prod(shape), stored[f"{name}:values"]
        left -= count
        if left < 0:
            raise ValueError(f"'{name}' is to have more weights than a file of this size tells of")
        kind = "bits" if f"{name}:bits" in stored else "gaps"
        where = stored[f"{name}:{kind}"]
        if where.dtype != torch.uint8 or where.dim() != 1 or (kind == "bits" and len(where) != -(-count // 8)):
            raise ValueError(f"the places of '{name}' are damaged")
        numbers = where.numpy()
        kept = np.unpackbits(numbers)[:count].astype(bool) if kind == "bits" else places(numbers, count)
        if values.dim() != 1 or int(kept.sum()) != len(values):
            raise ValueError(f"'{name}' has {values.numel()} values for {int(kept.sum())} places")
        dense = torch.zeros(count, dtype=values.dtype)
        dense[torch.from_numpy(kept)] = values
        state[name] = dense.view(shape)
        parts -= {f"{name}:values", f"{name}:{kind}"}
    if parts:
        raise ValueError(f"it holds '{min(parts)}', which its header does not name")
    return state
