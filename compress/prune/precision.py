"""Make a network compute in double precision throughout, where its code asks for a lower one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

_LOWER = (torch.float16, torch.bfloat16, torch.float32)
_CASTS = (Tensor.float, Tensor.half, Tensor.bfloat16)


def doubled(model: nn.Module) -> nn.Module:
    """Turn a network into double precision in place, with the tensors that its modules hold as plain attributes."""
    model.double()
    for module in model.modules():
        for name, value in vars(module).items():
            if isinstance(value, Tensor) and value.dtype in _LOWER:
                vars(module)[name] = value.double()
    return model


class DoublePrecision(TorchFunctionMode):
    """Every cast to a lower floating type gives float64, and so does every new tensor of no other type.

    A norm that is computed in float32 inside a network of another type is then compared as exactly as the rest.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _CASTS:
            return args[0].double()
        if func in (Tensor.to, Tensor.type_as) and len(args) > 1 and _is_lower(args[1]):
            return args[0].double()
        if func is Tensor.type and len(args) > 1 and isinstance(args[1], str) and "Tensor" in args[1]:
            lower = any(args[1].endswith(name) for name in (".FloatTensor", ".HalfTensor", ".BFloat16Tensor"))
            return args[0].double() if lower else func(*args, **kwargs)
        args = tuple(_double(value) for value in args)
        kwargs = {name: _double(value) for name, value in kwargs.items()}
        out = func(*args, **kwargs)
        made = _is_lower(out) and not any(isinstance(value, Tensor) for value in (*args, *kwargs.values()))
        return out.double() if made else out


def _is_lower(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dtype in _LOWER


def _double(value: Any) -> Any:
    return torch.float64 if isinstance(value, torch.dtype) and value in _LOWER else value
