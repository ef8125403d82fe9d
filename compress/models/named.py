"""Build or load the network that a user names at the keyboard."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from compress import artifact
from compress.errors import ModelError, said_by
from compress.models import factory, torchvision
from compress.models.adapters import ADAPTERS
from compress.models.detection import RawHeads, example_input, raw_heads
from compress.models.names import RENAMED
from compress.models.origin import Origin, remember

BATCH = 2
"""One image would make the batch look like a dimension of size 1."""


class NamedNetwork(NamedTuple):
    """A network, a batch that it accepts and, where its own forward pass cannot be followed, another one."""

    name: str
    model: nn.Module
    example: Tensor
    forward: RawHeads | None = None


def named_network(name: str, *, size: int | None = None, trusted: tuple[str, ...] = ()) -> NamedNetwork:
    """Build or load the network that a user names.

    Args:
        name: ``torchvision:NAME``, ``niwaki:NAME``, ``module:function``, or a folder with a ``model.json``.
        size: height and width of the images; by default what the network was made or saved for.
        trusted: modules of a saved network's factory that may be imported.

    Raises:
        ModelError: there is no such network, or its code fails.
        ArtifactError: the folder holds no whole saved network.
    """
    sides: tuple[int, ...] | None = None
    # What the user's code prints would end up in the JSON.
    with redirect_stdout(sys.stderr):
        if Path(name).is_dir():
            model, sides = _saved(Path(name), trusted)
        else:
            model = _made(name)
        if next(model.parameters(), None) is None:
            raise ModelError(f"{name} has no parameters; there is nothing to cut.")
        if size:
            sides = (*(sides or ())[:-2], size, size)
        return _with_example(name, model, sides)


def _saved(folder: Path, trusted: tuple[str, ...]) -> tuple[nn.Module, tuple[int, ...] | None]:
    """Load a saved network; return it and the shape of the images that it was saved for."""
    inside = sorted(path.parent.name for path in folder.glob("*/model.json"))
    if inside and not (folder / "model.json").is_file():
        raise ModelError(f"{folder} is not a saved network but holds some: name {folder / inside[-1]}.")
    about = artifact.describe(folder)
    sides = about.preprocessing.get("size")
    channels = {"L": (1,), "RGB": (3,)}.get(about.preprocessing.get("mode", ""), ())
    return artifact.load(folder, trusted=trusted), (*channels, *sides) if sides else None


def _made(name: str) -> nn.Module:
    module, _, function = RENAMED.get(name, name).partition(":")
    if not function:
        close = f"torchvision:{name}" if name in torchvision.names() else "torchvision:resnet18"
        what = "is a file" if Path(name).is_file() else "is not a folder"
        raise ModelError(f"'{name}' {what}; name torchvision:NAME ({close}), module:function or a saved network.")
    if module == "torchvision":
        made = torchvision.maker(function)()
        remember(made, Origin(f"torchvision:{function}", {}, _TORCHVISION[torchvision.names()[function]]))
        return made
    if module in ADAPTERS:
        return factory.build(name, {}, _LIBRARY_CLASSES)
    try:
        make = factory.own(function) if module == "niwaki" else getattr(importlib.import_module(module), function)
    except ModelError:
        raise
    except (Exception, SystemExit) as error:
        raise ModelError(
            f"'{name}' cannot be imported ({said_by(error, 160)}); check the name and that file."
        ) from error
    if not callable(make):
        raise ModelError(f"'{name}' is of type {type(make).__name__}, not a function that makes a network.")
    try:
        made = make(**_arguments(make, name))
    except ModelError:
        raise
    except (Exception, SystemExit) as error:
        raise ModelError(
            f"'{name}' fails ({type(error).__name__}: {said_by(error, 160)}); correct that function."
        ) from error
    if not isinstance(made, nn.Module):
        raise ModelError(f"'{name}' returns {type(made).__name__}, not a torch.nn.Module.")
    remember(made, Origin(RENAMED.get(name, name), {}, _outputs(make, made)))
    return made


_LIBRARY_CLASSES = 80
"""Classes that networks of other libraries are made for where nothing says how many: COCO's."""

_TORCHVISION = {"classification": 1000, "segmentation": 21, "detection": 91}
"""Classes that torchvision's builders make a network for where they are not told."""


def _outputs(make: Callable[..., Any], made: nn.Module) -> int | None:
    """For how many classes a function made a network: what it was told, its own default, or what its last layer has."""
    told = inspect.signature(make).parameters.get("num_classes")
    if told is not None:
        return told.default if isinstance(told.default, int) else 1000
    linears = [module for module in made.modules() if isinstance(module, nn.Linear)]
    return linears[-1].out_features if linears else None


def _arguments(make: Callable[..., Any], name: str) -> dict[str, int]:
    """``num_classes`` where the function requires it; a default of its own stands."""
    wanted = [
        parameter.name
        for parameter in inspect.signature(make).parameters.values()
        if parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    ]
    if any(other != "num_classes" for other in wanted):
        raise ModelError(f"'{name}' takes {', '.join(wanted)}; name a function that takes num_classes or nothing.")
    return {"num_classes": 1000} if wanted else {}


def _with_example(name: str, model: nn.Module, sides: tuple[int, ...] | None) -> NamedNetwork:
    """Put a network and a batch for it together; ``sides`` are (H, W) or (C, H, W), None where nothing says them."""
    # The one torchvision network that does not tell its size itself.
    side = 299 if type(model).__name__ == "Inception3" else None
    library = name.partition(":")[0]
    if library in ADAPTERS and not Path(name).is_dir():
        side = ADAPTERS[library].side(model)
    example = example_input(model, side, BATCH)
    if sides is not None:
        example = torch.rand((BATCH, *example.shape[1:2], *sides) if len(sides) == 2 else (BATCH, *sides)).to(example)
    return NamedNetwork(name, model, example, raw_heads(model))
