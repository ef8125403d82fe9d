"""Build networks without storage for their weights."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_parameter_registration_hook,
)
from torch.nn.parameter import is_lazy
from torch.utils.weak import WeakIdKeyDictionary


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
