"""Record what chosen layers of a network read and return in a pass, under names that student and teacher share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn

from compress.models.weights import classifier_name

OUTPUT, FEATURES, HEAD = "output", "features", "head"
"""What the network returns, what its classifier reads, and the raw outputs of a detector's head."""

LayerOutputs = dict[str, Tensor]
"""Name -> tensor, images first. Parts of a dictionary or list are ``name/part``, a layer's second run is ``name#1``."""


class FeatureHooks:
    """Forward hooks that record the outputs of chosen places of one network.

    Args:
        model: the network itself, not what wraps it.
        places: ``OUTPUT``, ``FEATURES``, ``HEAD``, or paths of modules, whose output is recorded.
    """

    def __init__(self, model: nn.Module, places: Iterable[str]) -> None:
        self._modules = {place: _module(model, place) for place in places}
        # One dictionary for good: a compiled network writes into the one that it was compiled with.
        self._outputs: LayerOutputs = {}

    @contextmanager
    def recording(self) -> Iterator[LayerOutputs]:
        """Attach the hooks and give the dictionary that passes fill; its content is valid until the next call."""
        self._outputs.clear()
        handles = [
            module.register_forward_pre_hook(partial(self._on_input, place))
            if place == FEATURES
            else module.register_forward_hook(partial(self._on_output, place))
            for place, module in self._modules.items()
        ]
        try:
            yield self._outputs
        finally:
            for handle in handles:
                handle.remove()

    def _on_input(self, place: str, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        self._store(place, inputs[0])

    def _on_output(self, place: str, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        self._store(place, output)

    def _store(self, name: str, value: Any) -> None:
        if isinstance(value, Tensor):
            again = sum(known.split("#")[0] == name for known in self._outputs)
            self._outputs[f"{name}#{again}" if again else name] = value
        elif isinstance(value, Mapping):
            for part, inner in value.items():
                self._store(f"{name}/{part}", inner)
        elif isinstance(value, list | tuple):
            for part, inner in enumerate(value):
                self._store(f"{name}/{part}", inner)


def names_under(outputs: Mapping[str, Any], place: str) -> list[str]:
    """The names in ``outputs`` that belong to ``place``, in the order of the pass."""
    return [name for name in outputs if name == place or name.startswith((f"{place}/", f"{place}#"))]


def logits_among(outputs: Mapping[str, Tensor]) -> Tensor:
    """Pick the logits out of what a network returned: all of it, a segmenter's ``out``, or the first of several."""
    name = next((n for n in (OUTPUT, f"{OUTPUT}/out", f"{OUTPUT}/0") if n in outputs), None)
    assert name is not None, f"no logits among {list(outputs)}"
    return outputs[name]


def forward_for(model: nn.Module, task: str) -> Callable[[Tensor], Any]:
    """The forward pass, in eval mode, as far as the losses read it: a detector's stops at its raw head."""
    return partial(_raw_head, model) if task == "detection" else model


def _raw_head(model: Any, images: Tensor) -> Any:
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
