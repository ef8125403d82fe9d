"""Networks by name: torchvision's, ours, or a factory that can be imported."""

from __future__ import annotations

import importlib
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_parameter_registration_hook,
)
from torch.nn.parameter import is_lazy
from torch.utils.weak import WeakIdKeyDictionary

from compress.errors import ModelError, said_by
from compress.models import torchvision
from compress.models.arguments import (
    Arguments,
    CifarResNetArguments,
    DeepLabArguments,
    LeNetArguments,
    LrasppArguments,
    SsdliteArguments,
    TorchvisionArguments,
    checked,
)
from compress.models.names import RENAMED
from compress.trust import trusted_function


class Own(NamedTuple):
    """A factory of ours: the module that holds it under its name, and the schema of its arguments."""

    module: str
    arguments: type[Arguments]


OWN: Mapping[str, Own] = MappingProxyType(
    {
        "cifar_resnet": Own("compress.models.cifar_resnet", CifarResNetArguments),
        "lenet300": Own("compress.models.lenet", LeNetArguments),
        "lenet5": Own("compress.models.lenet", LeNetArguments),
        "mobilenet_v2_ssdlite": Own("compress.models.mobilenet", SsdliteArguments),
        "mobilenet_v2_lraspp": Own("compress.models.mobilenet", LrasppArguments),
        "mobilenet_v2_deeplabv3": Own("compress.models.mobilenet", DeepLabArguments),
    }
)
"""The networks of ``niwaki:NAME``."""

# What a factory may raise when it is given arguments that make no sense.
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


def build(factory: str, arguments: Mapping[str, Any], num_classes: int, *, trusted: Sequence[str] = ()) -> nn.Module:
    """Build a network with random weights.

    Args:
        factory: ``torchvision:NAME``, ``niwaki:NAME`` or ``module:function``; the function takes ``num_classes``.
        arguments: keyword arguments for the factory; torchvision's and ours take numbers within bounds alone.
        num_classes: outputs of the classifier; detectors and segmenters count the background.
        trusted: modules of the user's own whose functions may run.

    Raises:
        ModelError: no such factory, it is not trusted, or it refuses the arguments.
    """
    module, _, name = RENAMED.get(factory, factory).partition(":")
    if not name:
        raise ModelError(
            f"The model factory '{factory}' is not 'torchvision:NAME', 'niwaki:NAME' or 'module:function'."
        )
    if module == "torchvision":
        make, given = torchvision.maker(name), checked(TorchvisionArguments, arguments, factory)
    elif module == "niwaki":
        make = own(name)
        given = checked(OWN[name].arguments, arguments, factory)
    else:
        make, given = trusted_function(factory, trusted, "model factory", ModelError), dict(arguments)
    try:
        model = make(num_classes=num_classes, **given)
    except _REFUSALS as error:
        raise ModelError(f"The factory '{factory}' refuses {dict(arguments)}: {said_by(error)}.") from None
    if not isinstance(model, nn.Module):
        raise ModelError(f"The factory '{factory}' made a {type(model).__name__}, not a torch.nn.Module.")
    return model


def own(name: str) -> Callable[..., nn.Module]:
    """Return the factory of ``niwaki:NAME``; raise ModelError where there is none of that name."""
    if name not in OWN:
        raise ModelError(f"Niwaki has no model '{name}'; it has {', '.join(OWN)}.")
    return getattr(importlib.import_module(OWN[name].module), name)


@contextmanager
def on_meta() -> Iterator[None]:
    """Inside, networks that this thread builds have no storage for what a state dict holds.

    Parameters and saved buffers are on the meta device. Everything else that a constructor computes (widths,
    anchors, buffers that are not saved) is real; under ``torch.device("meta")`` it would never get its values.
    """
    thread = threading.get_ident()
    empties = WeakIdKeyDictionary()

    def parameter(module: nn.Module, name: str, value: nn.Parameter | None) -> Any:
        # Lazy parameters have no shape yet.
        if threading.get_ident() != thread or value is None or value.is_meta or is_lazy(value):
            return None
        # A parameter that is registered twice stays one.
        if value not in empties:
            empties[value] = nn.Parameter(value.detach().to("meta"), value.requires_grad)
        return empties[value]

    def buffer(module: nn.Module, name: str, value: Tensor | None) -> Any:
        if threading.get_ident() != thread or value is None or value.is_meta or is_lazy(value):
            return None
        # The module does not know yet whether it is one to save: its register_buffer, which calls this, was told.
        # One that is not saved may be filled, or computed with, at any time after this, so it has to be real.
        return value.detach().to("meta") if sys._getframe(1).f_locals.get("persistent", True) else None

    handles = [
        register_module_parameter_registration_hook(parameter),
        register_module_buffer_registration_hook(buffer),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
