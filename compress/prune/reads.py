"""Reads: the places where a network's weights read channels, seen while it runs.

A unit matters through what reads it. A convolution or matrix product by a parameter reads one dimension of its input;
what stands there is seen, and may be exchanged, call by call. A unit that no parameter reads (the dims of queries and
keys) is seen where it is made instead.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from compress.errors import PlanError
from compress.prune.rules import READERS
from compress.prune.units import Trace


@dataclass(frozen=True)
class ReadCall:
    """One product of an activation and a weight.

    Args:
        name: the weight.
        kind: `linear` (x w^T), `matmul` (x w), `conv` or `transposed`.
        x: the activation that is read.
        weight: the weight.
        settings: `stride`, `padding`, `dilation`, `groups` of a convolution.
        bias: what is added, where it is.
    """

    name: str
    kind: str
    x: Tensor
    weight: Tensor
    settings: Mapping[str, Any]
    bias: Tensor | None = None

    @property
    def groups(self) -> int:
        return int(self.settings.get("groups", 1))

    @property
    def along(self) -> int:
        """The dimension of the input, and of the output, that holds the channels; counted from the end."""
        return -1 if self.kind in ("linear", "matmul") else 1 - self.weight.dim()

    @property
    def makes(self) -> int:
        """The dimension of the weight that names the output's channels."""
        return 1 if self.kind in ("matmul", "transposed") else 0


class Reads(TorchFunctionMode):
    """Shows every product of an activation and a named weight to `seen`, and computes what that returns.

    Args:
        weights: the parameters to look for, by name.
        seen: called with the call and the function that computes it from an input; returns the output.
    """

    def __init__(
        self, weights: Mapping[str, Tensor], seen: Callable[[ReadCall, Callable[[Tensor], Tensor]], Tensor]
    ) -> None:
        super().__init__()
        self._names = {id(tensor): name for name, tensor in weights.items()}
        self._seen = seen

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        known = _PRODUCTS.get(func)
        if known is None:
            return func(*args, **kwargs)
        kind, names = known
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        weight = given.get("weight")
        name = self._names.get(id(weight))
        if name is None or not isinstance(given.get("input"), Tensor) or not isinstance(weight, Tensor):
            return func(*args, **kwargs)

        def product(x: Tensor) -> Tensor:
            whole = {**given, "input": x}
            return func(*[whole[key] for key in names[: len(args)]], **{key: whole[key] for key in kwargs})

        settings = {key: given[key] for key in _SETTINGS if key in given}
        return self._seen(ReadCall(name, kind, given["input"], weight, settings, given.get("bias")), product)


@dataclass(frozen=True)
class Site:
    """Where units are seen.

    Args:
        name: the weight that reads them, or makes them.
        made: whether it makes them.
        units: unit of each index of the weight's dimension, int64.
    """

    name: str
    made: bool
    units: Tensor

    def channels(self, count: int) -> Tensor:
        """Unit of each of the activation's channels: a grouped weight names those of one group."""
        return self.units.repeat(count // len(self.units))


def sites(trace: Trace) -> dict[str, tuple[Site, ...]]:
    """The sites of each weight: every parameter of two or more dimensions that reads, and for free units that none
    reads the last one that makes them."""
    found: dict[str, tuple[Site, ...]] = {}
    read = np.zeros(trace.units, dtype=bool)
    makers: dict[str, npt.NDArray[np.int64]] = {}
    for (name, dim), units in trace.slots.items():
        if len(trace.parameters.get(name, ())) < 2 or dim > 1:
            continue
        if trace.roles[name, dim] in READERS:
            found[name] = (Site(name, False, torch.from_numpy(units)),)
            read[units] = True
        elif trace.roles[name, dim] == "producer":
            makers[name] = units
    unread = {int(unit) for group in trace.groups for unit in group.units if not read[unit]}
    for name, units in reversed(makers.items()):
        if unread.intersection(units.tolist()):
            found[name] = (*found.get(name, ()), Site(name, True, torch.from_numpy(units)))
            unread -= set(units.tolist())
    return found


def unseen(trace: Trace, counts: Tensor) -> None:
    """Raises PlanError where a free unit was seen nowhere: no criterion that looks at activations can judge it."""
    for group in trace.groups:
        if bool((counts[torch.from_numpy(group.units)] == 0).any()):
            raise PlanError(
                f"No convolution or matrix product was seen to read the channels of '{group.name}', so this "
                "criterion cannot judge them; take one of weights, or 'taylor', or protect them."
            )


def images_first(x: Tensor, images: int, along: int) -> Tensor:
    """Sums [.., channels, ..] over all but images and channels: [images, channels], or [1, channels] where images
    cannot be told apart."""
    channels = x.dim() + along
    if x.shape[0] != images and channels > 1 and x.shape[1] == images:
        x = x.transpose(0, 1)
    x = x.movedim(channels, -1)
    first = images if x.shape[0] % images == 0 else 1
    return x.reshape(first, -1, x.shape[-1]).sum(1)


_SETTINGS = ("stride", "padding", "dilation", "groups", "output_padding")
_CONV = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_TRANSPOSED = ("input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation")
_PRODUCTS: dict[Callable[..., Any], tuple[str, tuple[str, ...]]] = {
    F.linear: ("linear", ("input", "weight", "bias")),
    F.conv1d: ("conv", _CONV),
    F.conv2d: ("conv", _CONV),
    F.conv3d: ("conv", _CONV),
    F.conv_transpose1d: ("transposed", _TRANSPOSED),
    F.conv_transpose2d: ("transposed", _TRANSPOSED),
    F.conv_transpose3d: ("transposed", _TRANSPOSED),
    torch.matmul: ("matmul", ("input", "weight")),
    torch.mm: ("matmul", ("input", "weight")),
    Tensor.matmul: ("matmul", ("input", "weight")),
    Tensor.mm: ("matmul", ("input", "weight")),
    Tensor.__matmul__: ("matmul", ("input", "weight")),
    torch.addmm: ("matmul", ("bias", "input", "weight")),
}
"""Function -> what it is, and the names of its arguments in order."""
