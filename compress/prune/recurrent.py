"""Recurrent layers: which of their channels live or die together."""

from __future__ import annotations

import numpy as np
from torch import nn

from compress.prune.dispatch import LabelDispatch


def tie_hidden_units(dispatch: LabelDispatch, path: str, module: nn.RNNBase | nn.RNNCellBase) -> None:
    """One number of hidden units goes for all layers and directions; a projection has no rule."""
    slots = dispatch.observed.slots
    own = {
        name: labels for (name, d), labels in slots.items() if name.startswith(f"{path}." if path else "") and d == 1
    }
    hidden = [labels for name, labels in own.items() if ".weight_hh" in f".{name}"]
    if getattr(module, "proj_size", 0) > 0 or len({len(labels) for labels in hidden}) != 1:
        for (name, _), labels in slots.items():
            if name.startswith(f"{path}."):
                dispatch.protect(labels, f"{type(module).__name__} has no rule")
        return
    for name, labels in own.items():
        if ".weight_hh" in f".{name}":
            # What one step gives is what the next one reads, even where only one is seen.
            gates = slots[name, 0].reshape(-1, len(labels))
            dispatch.equate(gates, np.broadcast_to(labels, gates.shape))
            dispatch.equate(hidden[0], labels)
