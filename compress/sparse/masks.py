"""Which weights are zero, by parameter name: frozen data that a network is held to while an optimizer steps."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from math import prod
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, Protocol

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from compress.errors import ArtifactError, ModelError, said_by
from compress.files import replacing

FORMAT = "niwaki-masks-1"
Layers = Literal["all", "conv", "linear"]
_KINDS: Mapping[Layers, tuple[type[nn.Module], ...]] = MappingProxyType(
    {
        "all": (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d),
        "conv": (nn.Conv1d, nn.Conv2d, nn.Conv3d),
        "linear": (nn.Linear,),
    }
)


@dataclass(frozen=True, eq=False)
class Masks:
    """For each masked parameter, True where its weight stays.

    The tensors are copied in and belong to the masks: nothing here writes to them, nothing outside should.

    Raises:
        ModelError: a mask is not boolean, or there is none.
    """

    kept: Mapping[str, Tensor]

    def __post_init__(self) -> None:
        for name, mask in self.kept.items():
            if mask.dtype != torch.bool:
                raise ModelError(f"The mask of '{name}' is of {mask.dtype}; give booleans, True where a weight stays.")
        if not self.kept:
            raise ModelError("Masks need at least one parameter; name a layer that has weights.")
        own = {name: mask.detach().clone() for name, mask in self.kept.items()}
        object.__setattr__(self, "kept", MappingProxyType(own))

    @property
    def total(self) -> int:
        """Weights that the masks speak of."""
        return sum(mask.numel() for mask in self.kept.values())

    @property
    def nonzeros(self) -> int:
        """Weights that stay."""
        return sum(int(mask.sum()) for mask in self.kept.values())

    @property
    def ratio(self) -> float:
        """How many times fewer weights stay than there are; infinity when none does."""
        return self.total / self.nonzeros if self.nonzeros else float("inf")

    def density(self) -> dict[str, float]:
        """Share of each parameter's weights that stay."""
        return {name: float(mask.float().mean()) for name, mask in self.kept.items()}

    def complement(self) -> Masks:
        """The masks that keep what these drop."""
        return Masks({name: ~mask for name, mask in self.kept.items()})

    def same(self, other: Masks) -> bool:
        """Whether both keep the same weights of the same parameters."""
        return set(self.kept) == set(other.kept) and all(
            torch.equal(mask, other.kept[name].to(mask.device)) for name, mask in self.kept.items()
        )

    def parameters(self, model: nn.Module) -> Iterator[tuple[str, nn.Parameter, Tensor]]:
        """Give name, parameter and mask, the mask on the parameter's device.

        Raises:
            ModelError: the network has no such parameter, or one of another shape.
        """
        own = dict(bare(model).named_parameters(remove_duplicate=False))
        for name, mask in self.kept.items():
            if name not in own:
                raise ModelError(f"The network has no parameter '{name}' to mask; make the masks from this network.")
            if own[name].shape != mask.shape:
                raise ModelError(
                    f"The mask of '{name}' is {tuple(mask.shape)}, the parameter {tuple(own[name].shape)}; make the "
                    "masks from this network."
                )
            yield name, own[name], mask.to(own[name].device)

    @torch.no_grad()
    def apply_(self, model: nn.Module) -> None:
        """Set the weights that do not stay to zero, in place."""
        for _, parameter, mask in list(self.parameters(model)):
            parameter.masked_fill_(~mask, 0)

    def broken(self, model: nn.Module) -> list[str]:
        """Names of parameters that have a nonzero weight where the masks say zero."""
        return [name for name, p, mask in self.parameters(model) if bool((p.detach()[~mask] != 0).any())]

    def hold(self, model: nn.Module, optimizer: Optimizer) -> RemovableHandle:
        """Zero the weights now, and after every step of ``optimizer``, with what its state holds for them.

        Momentum and running averages of a dropped weight are zeroed too, so that it starts from nothing when it is
        released by the handle's ``remove()``. The network itself is not changed: no parametrization, no buffer, the
        same state dict. Under data parallelism every rank does the same to the same weights.
        """
        self.apply_(model)
        pairs = [(parameter, ~mask) for _, parameter, mask in self.parameters(model)]

        @torch.no_grad()
        def after(stepped: Optimizer, *_: Any) -> None:
            for parameter, dropped in pairs:
                parameter.masked_fill_(dropped, 0)
                for state in states(stepped, parameter):
                    state.masked_fill_(dropped, 0)

        return optimizer.register_step_post_hook(after)

    def freeze(self, model: nn.Module, optimizer: Optimizer) -> RemovableHandle:
        """Keep the weights that stay at the values they have now; those that the masks drop learn."""
        pairs = [(p, mask, p.detach().clone()) for _, p, mask in self.parameters(model)]

        @torch.no_grad()
        def after(stepped: Optimizer, *_: Any) -> None:
            for parameter, kept, values in pairs:
                parameter.copy_(torch.where(kept, values, parameter))
                for state in states(stepped, parameter):
                    state.masked_fill_(kept, 0)

        return optimizer.register_step_post_hook(after)

    def save(self, path: str | Path) -> None:
        """Write one safetensors file of packed bits, eight weights a byte, whose header tells the shapes."""
        packed = {name: torch.from_numpy(np.packbits(m.cpu().numpy().reshape(-1))) for name, m in self.kept.items()}
        about = {"format": FORMAT, "shapes": {name: list(mask.shape) for name, mask in self.kept.items()}}
        with replacing(Path(path)) as temporary:
            save_file(packed, temporary, {"niwaki": json.dumps(about)})

    @classmethod
    def load(cls, path: str | Path) -> Masks:
        """Read what ``save`` wrote; the whole file is checked before anything is used.

        Raises:
            ArtifactError: the file is missing, damaged or holds something else.
        """
        path = Path(path)
        if not path.is_file():
            raise ArtifactError(f"There is no file of masks {path}; save them first.")
        try:
            with safe_open(path, "np") as file:
                about = json.loads((file.metadata() or {}).get("niwaki", "{}"))
                packed = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
            return cls({n: torch.from_numpy(m) for n, m in _unpacked(about, packed)})
        except (SafetensorError, OSError, ValueError, TypeError, AttributeError, ModelError) as error:
            raise ArtifactError(f"{path} is not a file of masks ({said_by(error)}); save them again.") from None


def _unpacked(about: Any, packed: Mapping[str, np.ndarray]) -> Iterator[tuple[str, np.ndarray]]:
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        raise ValueError(f"its header does not say {FORMAT}")
    shapes = about.get("shapes")
    if not isinstance(shapes, dict) or set(shapes) != set(packed):
        raise ValueError("its header names other parameters than it holds")
    for name, bits in packed.items():
        shape = shapes[name]
        if not isinstance(shape, list) or not all(type(side) is int and side >= 0 for side in shape):
            raise ValueError(f"the shape of '{name}' is not a list of sizes")
        count = prod(shape)
        if bits.dtype != np.uint8 or bits.shape != (-(-count // 8),):
            raise ValueError(f"'{name}' does not hold the {count} bits of its shape")
        flags = np.unpackbits(bits)
        if flags[count:].any():
            raise ValueError(f"'{name}' has bits after its end")
        yield name, flags[:count].astype(bool).reshape(shape)


def bare(model: nn.Module) -> nn.Module:
    """The network inside what data parallelism, Fabric and the compiler wrap around it."""
    while True:
        if isinstance(model, DistributedDataParallel):
            model = model.module
        elif "_orig_mod" in model._modules:
            model = model._modules["_orig_mod"]  # type: ignore[assignment]
        elif "_forward_module" in model._modules:
            model = model._modules["_original_module"]  # type: ignore[assignment]
        else:
            return model


def states(optimizer: Optimizer, parameter: nn.Parameter) -> Iterator[Tensor]:
    """What an optimizer remembers for each weight of a parameter: momentum, running averages."""
    for value in optimizer.state.get(parameter, {}).values():
        if isinstance(value, Tensor) and value.shape == parameter.shape and value.is_floating_point():
            yield value


def weights_of(model: nn.Module, layers: Layers = "all", patterns: Iterable[str] = ("*",)) -> dict[str, nn.Parameter]:
    """Weights that unstructured pruning speaks of: of convolutions and linear layers, never biases or norms.

    Args:
        model: a network.
        layers: ``all``, ``conv`` or ``linear``.
        patterns: names of parameters, ``*`` for any letters; a weight counts when one of them fits.

    Returns:
        Name -> parameter, in the network's order; a weight that two layers share counts once.

    Raises:
        ModelError: none fits.
    """
    patterns = tuple(patterns)
    found: dict[str, nn.Parameter] = {}
    for path, module in bare(model).named_modules():
        if isinstance(module, _KINDS[layers]):
            name, weight = f"{path}.weight" if path else "weight", module.weight
            if not isinstance(weight, nn.Parameter) or any(weight is seen for seen in found.values()):
                continue
            if any(fnmatchcase(name, pattern) for pattern in patterns):
                found[name] = weight
    if not found:
        raise ModelError(
            f"The network has no weight of {layers} layers named {', '.join(patterns)}; name others to prune."
        )
    return found


class Handle(Protocol):
    """What ends something that was registered."""

    def remove(self) -> None: ...


Keep = Callable[[nn.Module, Optimizer], Handle]
"""What a network is to keep while an optimizer steps: ``masks.hold``, ``masks.freeze``, or several ``together``."""

Train = Callable[[nn.Module, "Keep | None", str], None]
"""How a procedure of this folder trains: it is handed the network, what to keep, and the name of the phase.

It makes an optimizer, calls ``keep(model, optimizer)`` before the first step and ``remove()`` on what that gives after
the last; the network holds the result.
"""


def together(*keeps: Keep) -> Keep:
    """Several things to keep as one, registered in their order."""

    def register(model: nn.Module, optimizer: Optimizer) -> Handle:
        return _Handles([keep(model, optimizer) for keep in keeps])

    return register


@dataclass(frozen=True)
class _Handles:
    handles: list[Handle]

    def remove(self) -> None:
        for handle in self.handles:
            handle.remove()
