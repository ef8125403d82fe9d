"""Liveness: how much memory the activations of one pass take at its worst moment, whole or cut."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np
import numpy.typing as npt

from compress.prune.dispatch import OpCall
from compress.prune.units import Activation

_SHARING = (
    "view flatten unflatten unsqueeze squeeze permute transpose t expand slice select split split_with_sizes chunk "
    "unbind as_strided_ alias detach view_as_real"
)
ALIASES = frozenset(f"aten.{name}" for name in _SHARING.split())
"""Operators whose outputs share the memory of their input."""


def activations(calls: Sequence[OpCall], unit_of: npt.NDArray[np.int64], images: int) -> tuple[Activation, ...]:
    """What each call of a pass leaves in memory, for one image, and between which calls.

    Args:
        calls: the pass.
        unit_of: unit of each label.
        images: how many of them the pass was for.
    """
    # Flows of one channel layout share its labels, looked up once.
    units_of: dict[int, npt.NDArray[np.int64]] = {}
    used: set[int] = set()
    home: dict[tuple[int, int], int] = {}
    made: list[tuple[float, tuple[npt.NDArray[np.int64], ...], int]] = []
    last: list[int] = []
    for at, call in enumerate(calls):
        read = [home[source] for source in call.sources if isinstance(source, tuple) and source in home]
        used.update(read)
        for storage in read:
            last[storage] = at
        shared = call.name in ALIASES or call.name.endswith("_")
        for k, (shape, flow) in enumerate(zip(call.shapes, call.flows, strict=True)):
            first = call.sources[0] if call.sources else None
            if shared and isinstance(first, tuple) and first in home:
                home[at, k] = home[first]
                continue
            if shared:
                # Of an input or a parameter, which are no activations.
                continue
            factors = []
            for layer in flow.layers:
                if id(layer.labels) not in units_of:
                    units_of[id(layer.labels)] = unit_of[layer.labels].reshape(-1)
                factors.append(units_of[id(layer.labels)])
            rest = prod(shape) / prod(len(units) for units in factors)
            home[at, k] = len(made)
            made.append((rest / images, tuple(factors), at))
            last.append(at)
    end = len(calls)
    return tuple(
        Activation(elements, factors, born, last[k] if k in used else end)
        for k, (elements, factors, born) in enumerate(made)
    )
