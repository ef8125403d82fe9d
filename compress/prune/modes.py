"""Find out whether what a network computes can depend on its mode, training or evaluation."""

from __future__ import annotations

import sys
from typing import Any

from torch import nn

from compress.prune.architecture import walk
from compress.prune.attention import SUBSTITUTES

_DRAWING = frozenset((
    nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm, nn.Dropout, nn.Dropout1d, nn.Dropout2d,
    nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout, nn.RReLU, *SUBSTITUTES.values(),
))  # fmt: skip
"""Modules that read their mode only to draw at random or to choose statistics, neither of which moves a channel."""


class Listener:
    """Detects whether the modules of a network read their mode.

    Args:
        net: a copy that nobody else uses: its modules' classes are replaced by subclasses of the same name.
    """

    def __init__(self, net: nn.Module) -> None:
        self.heard = False
        """Whether any module read its mode, or might have in a way that cannot be detected."""
        kinds: dict[type, type | None] = {}
        for module in {id(m): m for _, m in walk(net)}.values():
            kind = type(module)
            if kind not in kinds:
                silent = kind in _DRAWING or _is_stochastic_depth(kind)
                kinds[kind] = kind if silent else self._listening(kind)
            own = kinds[kind]
            if own is kind:
                continue
            if own is None or "train" in module.__dict__:
                self.heard = True
            else:
                module.__class__ = own

    def _listening(self, kind: type) -> type | None:
        """A subclass whose modules report when their mode is read; None where that would change what they do."""
        if (
            kind.train is not nn.Module.train  # type: ignore[attr-defined]
            or hasattr(kind, "training")
            or type(kind) is not type
            or getattr(kind.__init_subclass__, "__func__", None) is not None
        ):
            return None

        def get(module: nn.Module) -> Any:
            self.heard = True
            return module.__dict__["training"]

        def put(module: nn.Module, mode: Any) -> None:
            module.__dict__["training"] = mode

        told = {"training": property(get, put), "__module__": kind.__module__, "__qualname__": kind.__qualname__}
        return type(kind.__name__, (kind,), told)


def _is_stochastic_depth(kind: type) -> bool:
    home = sys.modules.get("torchvision.ops.stochastic_depth")
    return home is not None and kind is home.StochasticDepth
