"""Find which of the teacher's channels the student still has where a layer's output is compared."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compress import prune
from compress.distill.feature_hooks import FeatureHooks
from compress.prune import Plan


class _WithReaders(nn.Module):
    """A network with a linear reader of channels at each place: the reader's columns carry the place's labels.

    Args:
        net: the network.
        forward_pass: the part of it that is traced.
        axes: name of a recorded output -> (dimension of the channels, how many).
        places: the places that are recorded.
    """

    def __init__(
        self,
        net: nn.Module,
        forward_pass: Callable[[nn.Module, Tensor], Any],
        axes: Mapping[str, tuple[int, int]],
        places: tuple[str, ...],
    ) -> None:
        super().__init__()
        self.net, self.forward_pass, self.axes, self.places = net, forward_pass, dict(axes), places
        self.readers = nn.ParameterList([nn.Parameter(torch.ones(1, size)) for _, size in self.axes.values()])

    def forward(self, images: Tensor) -> list[Any]:
        with FeatureHooks(self.net, self.places).recording() as outputs:
            result = self.forward_pass(self.net, images)
        read = [
            F.linear(outputs[name].movedim(dim, -1), reader)
            for (name, (dim, _)), reader in zip(self.axes.items(), self.readers, strict=True)
        ]
        return [result, *read]


def kept_channels(
    teacher: nn.Module,
    plan: Plan,
    example: Tensor,
    forward_pass: Callable[[nn.Module, Tensor], Any],
    axes: Mapping[str, tuple[int, int]],
    places: tuple[str, ...],
) -> dict[str, Tensor]:
    """Indices of the teacher's channels that ``plan`` keeps at each place, found by tracing once with readers there.

    Args:
        teacher: the network that the plan is for.
        plan: teacher to student.
        example: images, shape (N, C, H, W).
        forward_pass: runs the network as far as the places need.
        axes: name of a recorded output -> (dimension of the channels, how many the teacher has).
        places: the places that are recorded.

    Returns:
        name -> int64 (kept,), rising; a name is missing where the trace cannot tell.
    """
    trace = prune.trace(_WithReaders(teacher, forward_pass, axes, places), example)
    gone = np.zeros(trace.units, bool)
    for key, slot in plan.slots.items():
        name, _, dim = key.rpartition(":")
        units = trace.slots.get((f"net.{name}", int(dim)))
        if units is not None and len(units) == slot.of:
            gone[np.delete(units, slot.kept)] = True
    found = {}
    for number, name in enumerate(axes):
        units = trace.slots.get((f"readers.{number}", 1))
        if units is not None:
            found[name] = torch.from_numpy(np.flatnonzero(~gone[units]))
    return found
