"""Survey: one pass that tells how a network uses its weights: how often, what norm follows, what is added."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compress.prune.calibration import CalibrationBatch, Forward, run
from compress.prune.lockstep import Function, Join, Numbered
from compress.prune.reads import ReadCall
from compress.prune.rules import tensors

ADDS = frozenset((torch.add, Tensor.add, Tensor.add_, Tensor.__add__, Tensor.__iadd__, Tensor.__radd__))

HANDS_THROUGH = frozenset((F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, Tensor.contiguous))
"""Functions that in eval mode may give the very tensor that they were given."""


@dataclass(frozen=True)
class Norm:
    """A BatchNorm that takes in what a product gives: its tensors, as it was called with them."""

    mean: Tensor
    variance: Tensor
    scale: Tensor | None
    eps: float


@dataclass(frozen=True)
class Survey:
    """What a pass told.

    Args:
        calls: how often each weight is multiplied with.
        norms: the BatchNorm behind a weight, where it serves no other.
        joins: by the number of the function, where an output is added and read nowhere else.
    """

    calls: Mapping[str, int]
    norms: Mapping[str, Norm]
    joins: Mapping[int, Join]


class _Noting:
    """Notes what is made of what; whatever has a note is held, so that its id is not given to another."""

    def __init__(self) -> None:
        self.calls, self.readers, self.uses = Counter[str](), Counter[int](), Counter[int]()
        self.norms: dict[str, Norm] = {}
        self.made: dict[int, tuple[str, int | None]] = {}
        self.inputs: dict[str, list[int]] = {}
        self.joins: list[tuple[int, Join]] = []
        self.alive: list[Any] = []

    def seen(self, call: ReadCall, product: Callable[[Tensor], Tensor]) -> Tensor:
        out = product(call.x)
        self.calls[call.name] += 1
        self.made[id(out)] = call.name, None
        self.inputs[call.name] = [id(out)]
        return out

    def called(self, number: int, func: Function, args: tuple[Any, ...], named: dict[str, Any], plain: Function) -> Any:
        ids = {id(t) for t in tensors((args, named))}
        out = plain(*args, **named)
        self.alive.append((args, named, out))
        # What only asks for a size, or hands through what it was given, reads nothing.
        if isinstance(out, Tensor | tuple | list) and not (func in HANDS_THROUGH and id(out) in ids):
            self.readers.update(ids)
        if func is F.batch_norm:
            self._norm(number, {**dict(zip(_BATCH_NORM, args, strict=False)), **named}, out)
        elif func in ADDS and len(args) == 2 and not named and all(isinstance(a, Tensor) for a in args):
            self._join(number, args)
        return out

    def _join(self, number: int, args: tuple[Any, ...]) -> None:
        if args[0].shape != args[1].shape or args[0] is args[1]:
            return
        for side in (0, 1):
            if id(args[side]) in self.made:
                name, norm = self.made[id(args[side])]
                self.joins.append((number, Join(name, side, norm)))

    def _norm(self, number: int, given: dict[str, Any], out: Tensor) -> None:
        mean = given.get("running_mean")
        if not isinstance(mean, Tensor):
            return
        self.uses[id(mean)] += 1
        name, norm = self.made.get(id(given["input"]), ("", None))
        if name and norm is None:
            self.norms[name] = Norm(mean, given["running_var"], given.get("weight"), given.get("eps", 1e-5))
            self.made[id(out)] = name, number
            self.inputs[name].append(id(out))


def survey(
    network: nn.Module, weights: Mapping[str, Tensor], batch: CalibrationBatch, forward: Forward | None
) -> Survey:
    """Runs `network`, in eval mode, once; `weights` are its parameters by name."""
    noted = _Noting()
    with torch.no_grad(), Numbered(weights, noted.seen, noted.called):
        run(network, batch, forward)
    alone = {name: norm for name, norm in noted.norms.items() if noted.uses[id(norm.mean)] == 1}
    joins: dict[int, Join] = {}
    taken: set[str] = set()
    for number, join in noted.joins:
        once = noted.calls[join.name] == 1 and all(noted.readers[k] == 1 for k in noted.inputs[join.name])
        if once and number not in joins and join.name not in taken and (join.norm is None or join.name in alone):
            joins[number] = join
            taken.add(join.name)
    return Survey(noted.calls, alone, joins)


_BATCH_NORM = ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")
