"""Networks by name: torchvision's, ours, or a factory that can be imported."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

from torch import nn

from compress.errors import ModelError, said_by
from compress.models import torchvision
from compress.models.adapters import ADAPTERS, adapter
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
from compress.models.origin import Origin, remember
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
        factory: ``torchvision:NAME``, ``niwaki:NAME``, that of another library (``compress.models.adapters``) or
            ``module:function``; the function takes ``num_classes``, or makes a network for a number of its own.
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
    elif module in ADAPTERS:
        library = adapter(module)
        arguments = given = library.whole(name, checked(library.arguments, arguments, factory))
        make, given = partial(library.make, name, num_classes, given), {}
    else:
        make, given = trusted_function(factory, trusted, "model factory", ModelError), dict(arguments)
    if takes_classes(make):
        given = {"num_classes": num_classes, **given}
    try:
        model = make(**given)
    except _REFUSALS as error:
        raise ModelError(f"The factory '{factory}' refuses {str(dict(arguments))[:200]}: {said_by(error)}.") from None
    if not isinstance(model, nn.Module):
        raise ModelError(f"The factory '{factory}' made a {type(model).__name__}, not a torch.nn.Module.")
    remember(model, Origin(RENAMED.get(factory, factory), dict(arguments), num_classes))
    return model


def takes_classes(make: Callable[..., Any]) -> bool:
    """Tell whether a factory takes ``num_classes``; one whose signature cannot be read is taken to."""
    try:
        parameters = inspect.signature(make).parameters.values()
    except (TypeError, ValueError):
        return True
    return any(one.name == "num_classes" or one.kind is one.VAR_KEYWORD for one in parameters)


def own(name: str) -> Callable[..., nn.Module]:
    """Return the factory of ``niwaki:NAME``; raise ModelError where there is none of that name."""
    if name not in OWN:
        raise ModelError(f"Niwaki has no model '{name}'; it has {', '.join(OWN)}.")
    return getattr(importlib.import_module(OWN[name].module), name)
