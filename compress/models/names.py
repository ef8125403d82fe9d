"""What a factory is called: names of two closed tables, or ``module:function`` of the user's own. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

TABLES = ("torchvision", "niwaki", "timm", "transformers", "ultralytics", "smp")
"""The tables whose networks anybody may name, such as ``torchvision:NAME``; the last four where they are installed."""

RENAMED: Mapping[str, str] = MappingProxyType(
    {
        "compress.models:cifar_resnet": "niwaki:cifar_resnet",
        "compress.backbones:mobilenet_v2_ssdlite": "niwaki:mobilenet_v2_ssdlite",
        "compress.backbones:mobilenet_v2_lraspp": "niwaki:mobilenet_v2_lraspp",
        "compress.backbones:mobilenet_v2_deeplabv3": "niwaki:mobilenet_v2_deeplabv3",
    }
)
"""What saved networks and recipes of earlier versions call our factories, and what these are called now."""


def is_own_code(factory: str) -> bool:
    """Return whether a factory is ``module:function`` of the user's own rather than a name of a table."""
    module, colon, _ = RENAMED.get(factory, factory).partition(":")
    return bool(colon) and module not in TABLES


def is_untrained(name: str, weights: str | None) -> bool:
    """Return whether a network that a user names has random weights: one of a table with no weights beside it."""
    known = not Path(name).is_dir() and ":" in name and not is_own_code(name)
    return known and weights is None
