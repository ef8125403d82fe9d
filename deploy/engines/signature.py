"""What a module takes and gives: one tensor or several, by place or by name; tensors are known by what they can do."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from deploy.errors import DeployError

Tensor: TypeAlias = Any  # of torch, which what runs a bundle must not import
Module: TypeAlias = Any
Example: TypeAlias = Tensor | Sequence[Tensor] | Mapping[str, Tensor]
"""One input, several by place, or several by the names of ``forward``'s arguments."""

IMAGE, LOGITS = "image", "logits"
"""What a file's only input and only output are called where nobody names them."""


def named_inputs(model: Module, example: Example, names: str | Sequence[str] | None = None) -> dict[str, Tensor]:
    """Return the tensors of ``example`` by the names that a file gives its inputs.

    Args:
        model: the module that takes them.
        example: what it takes.
        names: of the inputs, in order; by default a mapping's keys, ``image`` for one tensor, else the names of
            ``forward``'s arguments.

    Raises:
        DeployError: what is given is no tensor, or there are more or fewer names than tensors.
    """
    if isinstance(example, Mapping):
        tensors, own = list(example.values()), list(example)
    elif _is_tensor(example):
        tensors, own = [example], [IMAGE]
    else:
        tensors, own = list(example), _arguments(model, len(example))
    for tensor in tensors:
        if not _is_tensor(tensor):
            raise DeployError(f"An input of the example is a {type(tensor).__name__}; give tensors.")
    wanted = own if names is None else [names] if isinstance(names, str) else list(names)
    if len(wanted) != len(tensors) or len(set(wanted)) != len(wanted) or not tensors:
        raise DeployError(
            f"The example has {len(tensors)} input(s) and {len(wanted)} name(s) {wanted}; name each once."
        )
    return dict(zip(wanted, tensors, strict=True))


def _arguments(model: Module, count: int) -> list[str]:
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    found = [name for name, one in inspect.signature(model.forward).parameters.items() if one.kind in kinds]
    if count == 1:
        return [IMAGE]
    return found[:count] if len(found) >= count else [f"input_{k}" for k in range(count)]


def call(model: Any, example: Example, tensors: Sequence[Tensor]) -> Any:
    """Call ``model`` with ``tensors`` in the way in which ``example`` is given: by place or by name."""
    if isinstance(example, Mapping):
        return model(**dict(zip(example, tensors, strict=True)))
    return model(*tensors)


def named_outputs(model: Module, result: Any, names: str | Sequence[str] | None = None) -> dict[str, Tensor]:
    """Return the tensors of what a module gave, by the names that a file gives its outputs.

    Args:
        model: the module that gave them.
        result: a tensor, a tuple or a list of them, or a mapping; a None in it is left out.
        names: of the outputs, in order; by default a mapping's keys, ``logits`` for one tensor, else ``output_0`` ...

    Raises:
        DeployError: it is something else, or there are more or fewer names than tensors.
    """
    if isinstance(result, Mapping):
        found = {str(key): value for key, value in result.items() if value is not None}
    elif isinstance(result, tuple | list):
        found = {f"output_{k}": value for k, value in enumerate(result) if value is not None}
    else:
        found = {LOGITS: result}
    for key, value in found.items():
        if not _is_tensor(value):
            raise DeployError(
                f"{type(model).__name__} gives a {type(value).__name__} as {key!r}; only a tensor, or a tuple or a "
                "dict of tensors, can be exported."
            )
    if names is None:
        return found
    wanted = [names] if isinstance(names, str) else list(names)
    if len(wanted) != len(found):
        raise DeployError(
            f"{type(model).__name__} gives {len(found)} tensors but {len(wanted)} names: {', '.join(found)} and "
            f"{wanted}; name each."
        )
    return dict(zip(wanted, found.values(), strict=True))


def batched(tensors: Mapping[str, Tensor]) -> dict[str, bool]:
    """Tell which inputs have a batch: those whose first dimension is as long as that of the first one that has any."""
    rows = next((len(tensor) for tensor in tensors.values() if tensor.ndim), None)
    return {name: bool(tensor.ndim) and len(tensor) == rows for name, tensor in tensors.items()}


def _is_tensor(value: object) -> bool:
    return all(hasattr(value, name) for name in ("detach", "is_floating_point", "ndim"))
