"""Trace one forward pass, operator by operator, and find the units and groups of a network's channels."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import replace
from typing import Any, Literal

from torch import nn

from compress.errors import ModelError
from compress.prune.blaming import Trials
from compress.prune.grouping import Choices, Grouping, TracedNetwork, group_units
from compress.prune.passes import Passes
from compress.prune.probe import Forward, uncollected
from compress.prune.remedies import Mender
from compress.prune.sizes import Patch
from compress.prune.units import Trace
from compress.prune.unread import unread


def trace(
    model: nn.Module, *example_inputs: Any, forward: Forward | None = None, heads: Literal["whole", "dims"] = "whole"
) -> Trace:
    """Trace one forward pass of ``model`` and find the channels that live or die together.

    The pass runs without storage and computes nothing, or on the real tensors where the code reads their values;
    branches that only training takes are traced too. Sizes that the code fixes are found by cutting every group and
    tracing again.

    Args:
        model: any network that runs in eager mode; it is not changed.
        example_inputs: its inputs: tensors, or lists and dictionaries of them, batch first.
        forward: called as ``forward(model, *example_inputs)`` instead of the model, to trace a part of it.
        heads: what goes of an attention: ``whole`` heads, or the same ``dims`` of every head.

    Raises:
        ModelError: the forward pass fails on these inputs.
    """
    if heads not in ("whole", "dims"):
        raise ModelError(f"heads='{heads}' is unknown; give 'whole' for whole heads or 'dims' for dims of every head.")
    with uncollected():
        return _Tracing(model, example_inputs, forward, heads).trace()


REMEMBERED = 64
"""Groupings that a trace keeps."""


class _Tracing:
    """One network, the choices that are made for it, and the groupings that follow from them."""

    def __init__(
        self, model: nn.Module, inputs: tuple[Any, ...], forward: Forward | None, heads: Literal["whole", "dims"]
    ) -> None:
        self.passes = Passes(model, inputs, forward, heads)
        self.choices = Choices()
        self._known: dict[Hashable, Grouping] = {}
        self._plain: dict[Hashable, Grouping] = {}
        self._asked: tuple[Grouping, tuple[list[Patch], list[tuple[str, str, int]]]] | None = None

    def trace(self) -> Trace:
        own = self.passes
        self.network = TracedNetwork(own.substituted(), own.tensors, own.tied, own.substitutions, own.heads)
        self.observed = own.observe()
        self.trials = Trials(own, self.observed)
        grouping = self._grouping()
        if (at_once := self._at_once(grouping)) is not None:
            return at_once
        mender = Mender(
            modules=self.network.modules,
            observed=self.observed,
            choices=self.choices,
            group=self._grouping,
            blames=self.trials.blames,
            passes=self.trials.passes,
            spent=lambda: self.trials.left <= 0,
            where=own.where,
        )
        while grouping.trace.groups and grouping is not mender.cleared:
            blames = self.trials.blames(grouping)
            if not blames:
                break
            grouping = mender.mend(grouping, blames)
        return self._with_unread(mender.loosened(grouping))

    def _at_once(self, grouping: Grouping) -> Trace | None:
        """The trace with numbers patched that the pass does not read, where nothing goes wrong in any cut."""
        sure, rest = self._unread(grouping)
        if not sure or not grouping.trace.groups or self.observed.loose:
            return None
        self.choices.patches = sure
        tried = self._grouping()
        if self.trials.passes(tried):
            return replace(tried.trace, where=self.passes.where, unfollowed=tuple(rest))
        self.choices.patches = []
        return None

    def _unread(self, grouping: Grouping) -> tuple[list[Patch], list[tuple[str, str, int]]]:
        if self._asked is None or self._asked[0] is not grouping:
            self._asked = grouping, unread(self.network.modules, grouping, self.observed.slots)
        return self._asked[1]

    def _with_unread(self, grouping: Grouping) -> Trace:
        """The trace, with numbers that the pass does not read patched where it is sure what they are."""
        sure, rest = self._unread(grouping)
        waiting = [sorted(sure, key=lambda patch: (patch.name, patch.module))] if sure else []
        # One that is something else after all does not keep the others from being followed: halves are tried.
        while waiting and self.trials.left > 0:
            patches, before = waiting.pop(), list(self.choices.patches)
            self.choices.patches = [*before, *patches]
            tried = self._grouping()
            self.trials.left -= 1
            if self.trials.passes(tried):
                grouping = tried
                continue
            self.choices.patches = before
            if len(patches) > 1:
                middle = len(patches) // 2
                waiting += [patches[middle:], patches[:middle]]
        known = {(patch.module, patch.name) for patch in self.choices.patches}
        rest = [*rest, *((p.module, p.name, p.value) for p in sure if (p.module, p.name) not in known)]
        return replace(grouping.trace, where=self.passes.where, unfollowed=tuple(rest))

    def _grouping(self) -> Grouping:
        """The grouping under the choices of the moment; remedies are piled up again and again on the same ones."""
        key = self.choices.key()
        if key not in self._known:
            if len(self._known) >= REMEMBERED:
                self.trials.forget(self._known.pop(next(iter(self._known))))
            units = self.choices.units_key()
            if units not in self._plain:
                if len(self._plain) >= REMEMBERED:
                    self._plain.pop(next(iter(self._plain)))
                self._plain[units] = group_units(self.network, self.observed, self.choices)
            self._known[key] = self._plain[units].patched(self.choices.patches)
        return self._known[key]
