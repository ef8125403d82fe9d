"""Networks by name: any of torchvision's, or a factory that can be imported."""

from __future__ import annotations

import importlib
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_parameter_registration_hook,
)
from torch.nn.parameter import is_lazy
from torch.utils.weak import WeakIdKeyDictionary

from compress.errors import ModelError
from compress.models import torchvision

TRUSTED = ("torchvision", "niwaki")
"""What a factory may begin with, whoever names it: torchvision's networks and ours."""

OWN: Mapping[str, str] = MappingProxyType(
    {
        "cifar_resnet": "compress.models.cifar_resnet",
        "mobilenet_v2_ssdlite": "compress.models.mobilenet",
        "mobilenet_v2_lraspp": "compress.models.mobilenet",
        "mobilenet_v2_deeplabv3": "compress.models.mobilenet",
    }
)
"""The networks of ``niwaki:NAME``, each with the module of its factory."""

RENAMED: Mapping[str, str] = MappingProxyType(
    {
        "compress.models:cifar_resnet": "niwaki:cifar_resnet",
        "compress.backbones:mobilenet_v2_ssdlite": "niwaki:mobilenet_v2_ssdlite",
        "compress.backbones:mobilenet_v2_lraspp": "niwaki:mobilenet_v2_lraspp",
        "compress.backbones:mobilenet_v2_deeplabv3": "niwaki:mobilenet_v2_deeplabv3",
    }
)
"""What saved networks and recipes of earlier versions call our factories, and what these are called now."""

# What a factory may raise on arguments that make no sense to it.
_REFUSALS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    MemoryError,
    RuntimeError,
    TypeError,
    ValueError,
)


def build(
    factory: str, arguments: Mapping[str, Any], num_classes: int, *, trusted: tuple[str, ...] | None = None
) -> nn.Module:
    """Builds a network with random weights.

    Args:
        factory: ``torchvision:NAME``, ``niwaki:NAME`` or ``module:function``; the function takes ``num_classes``.
        arguments: keyword arguments for the factory.
        num_classes: outputs of the classifier; detectors and segmenters count the background.
        trusted: modules that may be imported; None for any (a recipe is the user's own, an artifact is not).

    Raises:
        ModelError: no such factory, it is not trusted, or it refuses the arguments.
    """
    module, _, name = RENAMED.get(factory, factory).partition(":")
    if not name:
        raise ModelError(
            f"The model factory '{factory}' is not 'torchvision:NAME', 'niwaki:NAME' or 'module:function'."
        )
    if trusted is not None and module not in trusted:
        raise ModelError(
            f"The factory '{factory}' is not one of {', '.join(trusted)}; if you trust that code, "
            f"pass trusted=('{module}',) to load it."
        )
    own_kinds = {"torchvision": torchvision.maker, "niwaki": own}
    make = own_kinds[module](name) if module in own_kinds else _imported(factory, module, name)
    try:
        model = make(num_classes=num_classes, **arguments)
    except _REFUSALS as error:
        raise ModelError(f"The factory '{factory}' refuses {dict(arguments)}: {_short(error)}.") from None
    if not isinstance(model, nn.Module):
        raise ModelError(f"The factory '{factory}' made a {type(model).__name__}, not a torch.nn.Module.")
    return model


def own(name: str) -> Callable[..., nn.Module]:
    """The factory of ``niwaki:NAME``; raise ModelError where there is none of that name."""
    if name not in OWN:
        raise ModelError(f"Niwaki has no model '{name}'; it has {', '.join(OWN)}.")
    return getattr(importlib.import_module(OWN[name]), name)


def _imported(factory: str, module: str, name: str) -> Callable[..., nn.Module]:
    """The function behind ``module:function``; raise ModelError where there is none."""
    try:
        make = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise ModelError(f"The model factory '{factory}' cannot be imported ({error}).") from None
    # What a module merely imports is not its factory, whoever trusts the module.
    if not callable(make) or getattr(make, "__module__", module) != module:
        raise ModelError(f"'{factory}' is not a function of that module; name the factory where it is defined.")
    return make


@contextmanager
def on_meta() -> Iterator[None]:
    """Networks that this thread builds inside have no storage for what a state dict holds.

    Parameters and saved buffers are on the meta device. All else that a constructor computes (widths, anchors,
    buffers that are not saved) is real, which ``torch.device("meta")`` would leave without values for good.
    """
    thread = threading.get_ident()
    empties = WeakIdKeyDictionary()
    replaced: list[tuple[nn.Module, str, Tensor, Tensor]] = []

    def parameter(module: nn.Module, name: str, value: nn.Parameter | None) -> Any:
        # Lazy parameters have no shape yet.
        if threading.get_ident() != thread or value is None or value.is_meta or is_lazy(value):
            return None
        # One that is registered twice stays one.
        if value not in empties:
            empties[value] = nn.Parameter(value.detach().to("meta"), value.requires_grad)
        return empties[value]

    def buffer(module: nn.Module, name: str, value: Tensor | None) -> Any:
        if threading.get_ident() != thread or value is None or value.is_meta or is_lazy(value):
            return None
        empty = value.detach().to("meta")
        replaced.append((module, name, value, empty))
        return empty

    handles = [
        register_module_parameter_registration_hook(parameter),
        register_module_buffer_registration_hook(buffer),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        # Whether a buffer is saved is known only after its registration.
        for module, name, value, empty in replaced:
            if name in module._non_persistent_buffers_set and module._buffers.get(name) is empty:
                module._buffers[name] = value


def _short(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:120]
