"""What a saved network has to be when it is loaded again: the same tensors, the same sizes, the same answers."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from compress.errors import said_by
from compress.models.detection import example_input, raw_heads
from compress.prune.rules import tensors

_ROUNDING = {torch.float16: 1e-2, torch.bfloat16: 5e-2, torch.float64: 1e-9}


def unsaved_buffers(model: nn.Module) -> dict[str, Tensor]:
    """The buffers that a state dict leaves out, by name."""
    return {
        f"{path}.{name}" if path else name: module._buffers[name]
        for path, module in model.named_modules()
        for name in sorted(module._non_persistent_buffers_set)
        if module._buffers.get(name) is not None
    }


def without_values(model: nn.Module) -> bool:
    """Whether a tensor that no state dict holds, a buffer or a plain attribute, lies on the meta device."""
    plain = (value for module in model.modules() for value in vars(module).values() if isinstance(value, Tensor))
    return any(tensor.is_meta for tensor in (*unsaved_buffers(model).values(), *plain))


def altered_buffers(model: nn.Module, back: nn.Module) -> dict[str, Tensor]:
    """Those of `model` that its factory does not make as they are: drawn at random, resized, or of another type."""
    made = unsaved_buffers(back)
    return {name: t for name, t in unsaved_buffers(model).items() if name not in made or not _same(t, made[name])}


def set_buffers(model: nn.Module, values: Mapping[str, Tensor]) -> None:
    """Gives buffers other values, and shapes and types."""
    for name, value in values.items():
        path, _, own = name.rpartition(".")
        model.get_submodule(path)._buffers[own] = value


def difference(model: nn.Module, back: nn.Module, example: Any = None, size: Any = None) -> str:
    """How a network that was loaded again differs from the one that was saved; "" where it does not.

    Args:
        model: the network that was saved; it keeps its modes.
        back: what was loaded, in eval mode.
        example: what `model` is fed, a tensor or a tuple of arguments; without it an image, if it takes one.
        size: height and width of that image.
    """
    for name, tensor in {**model.state_dict(), **unsaved_buffers(model)}.items():
        other = {**back.state_dict(), **unsaved_buffers(back)}.get(name)
        if other is None or not _same(tensor, other):
            return f"'{name}' has other values"
    modes = [(module, module.training) for module in model.modules()]
    device = next((t.device for t in model.state_dict().values()), torch.device("cpu"))
    if device.type == "meta":
        return ""
    guessed = example is None
    # A detector's raw outputs: boxes are few, and large images slow.
    forward = (raw_heads(model) if guessed else None) or nn.Module.__call__
    inputs = _guess(model, size if forward is nn.Module.__call__ else None) if guessed else example
    inputs = inputs if isinstance(inputs, tuple) else (inputs,)
    try:
        expected = _answers(forward, model.eval(), inputs)
    except Exception:
        # It takes no image: its tensors are the same, more cannot be said without an example.
        if guessed:
            return ""
        raise
    finally:
        for module, mode in modes:
            module.training = mode
    try:
        found = _answers(forward, back.to(device), inputs)
    except Exception as error:  # noqa: BLE001  (whatever the factory's code raises)
        return f"it does not run ({said_by(error, 160)})"
    finally:
        back.cpu()
    if len(found) != len(expected):
        return "it gives another number of tensors"
    for a, b in zip(expected, found, strict=True):
        limit = _ROUNDING.get(a.dtype, 1e-4) * max(1e-6, float(a.double().abs().amax()) if a.numel() else 0.0)
        if a.shape != b.shape or not torch.allclose(a.double(), b.double(), 0.0, limit, equal_nan=True):
            return "its outputs differ"
    return ""


def _guess(model: nn.Module, size: Any) -> Tensor:
    image = example_input(model)
    return image if size is None else torch.rand((1, image.shape[1], *size)).to(image)


def _answers(forward: Callable[..., Any], model: nn.Module, inputs: tuple[Any, ...]) -> list[Tensor]:
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return tensors(forward(model, *copy.deepcopy(inputs)))


def _same(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if a.is_meta or b.is_meta:
        return True
    a, b = a.detach().cpu(), b.detach().cpu()
    return bool(((a == b) | ((a != a) & (b != b))).all())
