"""Which of the teacher's channels the student still has where a layer's output is compared."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compress import prune
from compress.distill.feature_hooks import Watch
from compress.prune import Plan


class _Probed(nn.Module):
    """A network with one reader of channels at each place: what the reader's columns are called, the place's are.

    Args:
        net: the network.
        run: as much of it as is watched.
        axes: name in the record -> (dimension of the channels, how many).
        places: what is watched.
    """

    def __init__(
        self, net: nn.Module, run: Callable[[nn.Module, Tensor], Any], axes: Mapping[str, tuple[int, int]], places: Any
    ) -> None:
        super().__init__()
        self.net, self.run, self.axes, self.places = net, run, dict(axes), tuple(places)
        self.readers = nn.ParameterList([nn.Parameter(torch.ones(1, size)) for _, size in self.axes.values()])

    def forward(self, images: Tensor) -> list[Any]:
        with Watch(self.net, self.places).open() as record:
            answer = self.run(self.net, images)
        read = [
            F.linear(record[name].movedim(dim, -1), reader)
            for (name, (dim, _)), reader in zip(self.axes.items(), self.readers, strict=True)
        ]
        return [answer, *read]


def kept_channels(
    teacher: nn.Module,
    plan: Plan,
    example: Tensor,
    run: Callable[[nn.Module, Tensor], Any],
    axes: Mapping[str, tuple[int, int]],
    places: tuple[str, ...],
) -> dict[str, Tensor]:
    """Indices of the teacher's channels that `plan` leaves at each place, by tracing once with readers there.

    Args:
        teacher: the network that the plan is for.
        plan: teacher to student.
        example: images, shape (N, C, H, W).
        run: runs the network as far as the places need.
        axes: name in the record -> (dimension of the channels, how many the teacher has).
        places: what is watched.

    Returns:
        name -> int64 (kept,), rising; a name is missing where the trace cannot tell.
    """
    trace = prune.trace(_Probed(teacher, run, axes, places), example)
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
