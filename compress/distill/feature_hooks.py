"""Watching networks: what the layers that a loss needs give and are given, under names that both networks share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn

from compress.models.weights import classifier_name

OUTPUT, FEATURES, HEAD = "output", "features", "head"
"""What the network returns, what its classifier is given, and the raw outputs of a detector's head."""

Record = dict[str, Tensor]
"""Name -> tensor, images first. Parts of a dictionary or a list are `name/part`, a layer's second run is `name#1`."""


class Watch:
    """Keeps what chosen places of one network see in a forward pass.

    Args:
        model: the network itself, not what wraps it.
        places: `OUTPUT`, `FEATURES`, `HEAD`, or paths of modules, whose output is kept.
    """

    def __init__(self, model: nn.Module, places: Iterable[str]) -> None:
        self._modules = {place: _module(model, place) for place in places}
        # One dictionary for good: a compiled network writes into the one that it was compiled with.
        self._record: Record = {}

    @contextmanager
    def open(self) -> Iterator[Record]:
        """The record that the passes inside fill; what they leave there is valid until the next."""
        self._record.clear()
        handles = [
            module.register_forward_pre_hook(partial(self._given, place))
            if place == FEATURES
            else module.register_forward_hook(partial(self._gave, place))
            for place, module in self._modules.items()
        ]
        try:
            yield self._record
        finally:
            for handle in handles:
                handle.remove()

    def _given(self, place: str, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        self._keep(place, inputs[0])

    def _gave(self, place: str, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        self._keep(place, output)

    def _keep(self, name: str, value: Any) -> None:
        if isinstance(value, Tensor):
            again = sum(known.split("#")[0] == name for known in self._record)
            self._record[f"{name}#{again}" if again else name] = value
        elif isinstance(value, Mapping):
            for part, inner in value.items():
                self._keep(f"{name}/{part}", inner)
        elif isinstance(value, list | tuple):
            for part, inner in enumerate(value):
                self._keep(f"{name}/{part}", inner)


def parts(record: Mapping[str, Tensor], place: str) -> list[str]:
    """Names under which `record` holds what `place` gave, in the order of the pass."""
    return [name for name in record if name == place or name.startswith((f"{place}/", f"{place}#"))]


def output(record: Mapping[str, Tensor]) -> Tensor:
    """The logits among what a network returned: all of it, a segmenter's `out`, or the first of several."""
    name = next((n for n in (OUTPUT, f"{OUTPUT}/out", f"{OUTPUT}/0") if n in record), None)
    assert name is not None, f"no logits among {list(record)}"
    return record[name]


def runner(model: nn.Module, task: str) -> Callable[[Tensor], Any]:
    """Runs a network in eval mode as far as the losses look: a detector up to its raw head."""
    return partial(_head, model) if task == "detection" else model


def _head(model: Any, images: Tensor) -> Any:
    prepared, _ = model.transform(list(images))
    features = model.backbone(prepared.tensors)
    levels = [features] if isinstance(features, Tensor) else list(features.values())
    return _module(model, HEAD)(levels)


def _module(model: Any, place: str) -> nn.Module:
    if place == OUTPUT:
        return model
    if place == FEATURES:
        return model.get_submodule(classifier_name(model))
    if place == HEAD:
        return model.rpn.head if hasattr(model, "rpn") else model.head
    return model.get_submodule(place)
