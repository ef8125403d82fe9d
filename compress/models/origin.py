"""What a network remembers of how it was made, so that it can be saved without being told again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

_KEY = "_niwaki_origin"


@dataclass(frozen=True, slots=True)
class Origin:
    """How a network came to be. It has slots, so that no number in it is taken for a size that the network keeps.

    Args:
        factory: what made it; empty where that is not known.
        arguments: what the factory was given.
        outputs: the number of classes that it was made for.
        about: ``task``, ``classes`` and ``preprocessing``, where they are known.
        plan: what was cut since, a ``compress.prune.Plan``.
    """

    factory: str = ""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    outputs: int | None = None
    about: Mapping[str, Any] = field(default_factory=dict)
    plan: Any = None


def origin_of(model: nn.Module) -> Origin:
    """Return what ``model`` remembers; an empty ``Origin`` where that is nothing."""
    found = model.__dict__.get(_KEY)
    return found if isinstance(found, Origin) else Origin()


def remember(model: nn.Module, origin: Origin) -> None:
    """Let ``model`` remember how it was made; copies of it remember it too."""
    model.__dict__[_KEY] = origin


def cut_by(model: nn.Module, small: nn.Module, plan: Any) -> None:
    """Let ``small``, which ``plan`` made of ``model``, remember all that was cut since its factory."""
    before = origin_of(model)
    remember(small, replace(before, plan=plan if before.plan is None else before.plan.then(plan)))
