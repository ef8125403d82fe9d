"""A plan bound to a network: which indices of each tensor stay, and how tensors and modules are cut to them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral

import numpy as np
import torch
from torch import Tensor, nn

import cpp_ext
from compress.errors import PlanError
from compress.prune.architecture import walk
from compress.prune.attention import SUBSTITUTES, substitute, substitute_for
from compress.prune.attributes import set_size, size_at
from compress.prune.planning import Plan
from compress.prune.probe import clone
from compress.prune.residual import check_blocks, stand_in


class Indices:
    """Kept indices of one dimension, rising and not empty: made once, moved to each device once."""

    def __init__(self, kept: tuple[int, ...]) -> None:
        # Several times faster than torch.tensor on a tuple.
        values = np.fromiter(kept, np.int64, len(kept))
        if not len(values) or values[0] < 0 or bool((values[1:] <= values[:-1]).any()):
            raise ValueError("not rising")
        self.last = int(values[-1])
        self._count = len(values)
        self._on = {torch.device("cpu"): torch.from_numpy(values)}

    def __len__(self) -> int:
        return self._count

    def on(self, device: torch.device) -> Tensor:
        """int64 [kept]."""
        if device not in self._on:
            self._on[device] = self._on[torch.device("cpu")].to(device)
        return self._on[device]


@dataclass(frozen=True)
class Cut:
    """A plan that is legal for a network.

    Args:
        plan: the plan.
        tensors: the network's parameters and buffers, a shared one under each of its names.
        kept: name -> dimension -> the indices that stay, under each name of a shared tensor.
    """

    plan: Plan
    tensors: dict[str, Tensor]
    kept: dict[str, dict[int, Indices]]

    def copy(self, root: nn.Module, tensors: Mapping[str, Tensor], memo: dict[int, object]) -> nn.Module:
        """A cut deep copy of ``root``; ``memo`` then maps the ids of what was copied to the copies.

        Args:
            root: the network, or a module with its tensors, such as averaged weights.
            tensors: those of ``root``, by the network's names.
            memo: as for ``copy.deepcopy``.
        """
        dense = {id(tensors[name]): (tensors[name], kept) for name, kept in self.kept.items() if name in tensors}
        new = {key: pair for key, pair in dense.items() if key not in memo}
        memo.update(zip(new, sliced(list(new.values())), strict=True))
        # What stands in a block's place is its copy, so that nothing inside is copied.
        for path, block in self.plan.blocks.items():
            whole = root.get_submodule(path)
            memo[id(whole)] = stand_in(block.becomes, whole)
        # Deep-copying with the cut tensors already in the memo keeps ties and never copies a dense weight.
        small = clone(root, memo)
        modules = dict(walk(small))
        for path, name in self.plan.substitutions.items():
            # One module may be reached by several paths.
            if not isinstance(modules[path], SUBSTITUTES[name]):
                substitute(modules[path], name)
        for path, changes in self.plan.attributes.items():
            for attribute, (before, after) in changes.items():
                set_size(modules[path], attribute, before, after)
        return small

    def check_modules(self, root: nn.Module) -> None:
        """Raise PlanError unless ``root`` has what the plan removes, substitutes and patches, as it expects it."""
        check_blocks(root, self.plan)
        modules = dict(walk(root))
        for path, name in self.plan.substitutions.items():
            if name not in SUBSTITUTES:
                raise PlanError(
                    f"The plan puts '{name}' in the place of '{path}'; there is only {', '.join(SUBSTITUTES)}."
                )
            if path not in modules or substitute_for(modules[path]) != name:
                found = f"a {type(modules[path]).__name__}" if path in modules else "no module"
                raise PlanError(f"The plan puts '{name}' in the place of '{path}', the network has {found} there.")
        for path, changes in self.plan.attributes.items():
            for attribute, (before, _) in changes.items():
                module = modules.get(path)
                # Most are one number that a layer of torch's keeps, where nothing else needs to be asked.
                if type(value := getattr(module, attribute, None)) is int and value == before:
                    continue
                # What a substitute adds is there only after the substitution.
                if path in self.plan.substitutions and not hasattr(module, attribute):
                    continue
                try:
                    value = size_at(module, attribute)
                except (AttributeError, LookupError, ValueError):
                    value = None
                entries = value if isinstance(value, tuple | list) else (value,)
                if not any(isinstance(entry, Integral) and entry == before for entry in entries):
                    shown = value if value is None or isinstance(value, int | tuple | list) else type(value).__name__
                    raise PlanError(f"The plan expects {path}.{attribute} = {before}, the network has {shown}.")


def sliced(tensors: Sequence[tuple[Tensor, Mapping[int, Indices]]]) -> list[Tensor]:
    """The kept part of each tensor, in fresh contiguous memory; parameters of parameters.

    Dimensions 0 and 1 take one call of the kernel for each device, further ones ``index_select``.
    """
    results: list[Tensor] = []
    lists: dict[torch.device, list[int]] = {}
    for k, (tensor, kept) in enumerate(tensors):
        out = tensor.detach()
        if tensor.is_meta or not kept:
            # Nothing to gather: a shape, or everything.
            shape = [len(kept[d]) if d in kept else size for d, size in enumerate(tensor.shape)]
            out = out.new_empty(shape) if tensor.is_meta else out.clone()
        else:
            for d in sorted(d for d in kept if d > 1):
                out = out.index_select(d, kept[d].on(tensor.device))
            if not kept.keys().isdisjoint((0, 1)):
                lists.setdefault(tensor.device, []).append(k)
        results.append(out)
    for device, places in lists.items():
        # Groups share their indices: each is asked for once.
        indices = {id(own): own for k in places for own in tensors[k][1].values()}
        on = {key: own.on(device) for key, own in indices.items()}
        pairs = [(on.get(id(kept.get(0))), on.get(id(kept.get(1)))) for _, kept in (tensors[k] for k in places)]
        sliced = cpp_ext.multi_channel_slice([results[k] for k in places], pairs)
        for k, out in zip(places, sliced, strict=True):
            results[k] = out
    return [
        nn.Parameter(out, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else out
        for out, (tensor, _) in zip(results, tensors, strict=True)
    ]
