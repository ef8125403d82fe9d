"""Readers: the weights that read units, with sums over what they read and over what the loss says of their outputs."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from compress.prune.calibration import Copy
from compress.prune.criteria.base import Given
from compress.prune.moments import POSITIONS, Moments, as_matrix, rows
from compress.prune.reads import ReadCall, Reads, sites, unseen


@dataclass
class Reader:
    """One weight that reads units.

    Args:
        matrix: [groups, m, n], float64.
        columns: the unit of each of the n columns.
        moments: sums over its inputs and outputs.
        slopes: [groups, m, m]: sum over images and positions of the products of an image's loss's slopes at its
            outputs; zeros where they were not asked for.
        images: how many that sum is over.
    """

    matrix: Tensor
    columns: Tensor
    moments: Moments
    slopes: Tensor
    images: int = 0


def readers(given: Given, slopes: bool = False) -> list[Reader]:
    """Every weight that reads units, with the moments of what it reads, and the slopes of the loss if asked for.

    Raises:
        PlanError: nothing of the kind reads a free unit.
    """
    copy = given.copy()
    watch = _Watch(given, copy, slopes)
    for number, batch in enumerate(given.batches(), 1):
        watch.outputs.clear()
        with nullcontext() if slopes else torch.no_grad(), Reads(watch.weights, watch.look):
            if not slopes:
                given.run(copy.network, batch)
                continue
            loss = given.loss_of(copy.network, batch, number)
        watch.add(loss, batch.images)
    seen = given.zeros()
    for reader in watch.readers.values():
        seen[reader.columns] = 1
    unseen(given.trace, seen)
    return list(watch.readers.values())


class _Watch:
    """Gathers readers as products go by."""

    def __init__(self, given: Given, copy: Copy, slopes: bool) -> None:
        self.given, self.slopes = given, slopes
        self.found = {name: own[0] for name, own in sites(given.trace).items() if not own[0].made}
        self.weights = {name: copy.parameters[name] for name in self.found if name in copy.parameters}
        self.readers: dict[str, Reader] = {}
        self.outputs: list[tuple[str, ReadCall, Tensor]] = []

    def look(self, call: ReadCall, product: Callable[[Tensor], Tensor]) -> Tensor:
        out = product(call.x)
        with torch.no_grad():
            seen = rows(call, out, POSITIONS, self.given.generator)
            if seen is None:
                return out
            moments = Moments.of(*seen)
            if call.name in self.readers:
                self.readers[call.name].moments += moments
            else:
                matrix = as_matrix(call, call.weight.detach()).double()
                columns = self.found[call.name].units
                columns = columns.repeat_interleave(matrix.shape[2] // len(columns))
                none = torch.zeros(matrix.shape[0], matrix.shape[1], matrix.shape[1], dtype=torch.float64)
                self.readers[call.name] = Reader(matrix, columns, moments, none)
        if not self.slopes:
            return out
        gate = torch.zeros_like(out, requires_grad=True)
        self.outputs.append((call.name, call, gate))
        return out + gate

    def add(self, loss: Tensor, images: int) -> None:
        """The slopes of one batch; the loss is a mean, an image's own is as many times as large."""
        found = torch.autograd.grad(loss, [gate for _, _, gate in self.outputs], allow_unused=True)
        for (name, call, _), slope in zip(self.outputs, found, strict=True):
            reader = self.readers[name]
            reader.images += images
            if slope is not None:
                lines = slope.movedim(slope.dim() + call.along, -1).reshape(-1, call.groups, reader.matrix.shape[1])
                lines = lines.movedim(1, 0) * images
                reader.slopes += (lines.mT @ lines).double()
