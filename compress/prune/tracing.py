"""Trace one forward pass, operator by operator, and find the units and groups of a network's channels."""

from __future__ import annotations

from collections.abc import Hashable
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from compress.errors import ModelError, said_by
from compress.prune.architecture import named_tensors, walk
from compress.prune.attention import substitute, substitute_for
from compress.prune.attributes import distinct, set_size
from compress.prune.determinism import Repeatable
from compress.prune.dispatch import LabelDispatch, Observations
from compress.prune.grouping import Choices, Grouping, TracedNetwork, group_units
from compress.prune.leaves import tell
from compress.prune.modes import Listener
from compress.prune.probe import Copier, Forward, WholeRMSNorm, input_stand_in, stand_ins, uncollected
from compress.prune.recurrent import tie_hidden_units
from compress.prune.remedies import Mender
from compress.prune.rules import tensors
from compress.prune.sizes import Patch
from compress.prune.trial import ANOTHER_WAY, Blame, Reshapes, StoppedError, TrialDispatch, uneven
from compress.prune.units import Group, Trace
from compress.prune.unread import Variant, unread, variants


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


TRIALS = 120
"""The number of cuts that a trace may try to find what a size follows."""

CLOSING = 40
"""Further cuts, by which it protects what still fails; whatever fails after them is protected as a whole."""


REMEMBERED = 64
"""Groupings that a trace keeps."""


@dataclass
class _Tracing:
    """One network, and the passes over it and over cuts of it."""

    model: nn.Module
    inputs: tuple[Any, ...]
    forward: Forward | None
    heads: str
    real: bool = False
    trials: int = TRIALS
    choices: Choices = field(default_factory=Choices)
    where: dict[str, str] = field(default_factory=dict)
    variants: list[Variant] = field(default_factory=list)
    known: dict[Hashable, Grouping] = field(default_factory=dict)
    plain: dict[Hashable, Grouping] = field(default_factory=dict)
    judged: dict[int, tuple[Grouping, list[Blame]]] = field(default_factory=dict)
    failures: dict[int, tuple[Grouping, list[Blame] | None]] = field(default_factory=dict)
    failed: dict[int, Grouping] = field(default_factory=dict)
    stops: bool = True
    asked: tuple[Grouping, tuple[list[Patch], list[tuple[str, str, int]]]] | None = None

    def trace(self) -> Trace:
        self.tensors = named_tensors(self.model)
        first: dict[int, str] = {}
        owners = {name: first.setdefault(id(tensor), name) for name, tensor in self.tensors.items()}
        self.tied = {name: owner for name, owner in owners.items() if owner != name}
        self.copier = Copier(self.model)
        self.by_path = dict(walk(self.model))
        self.modules = list(distinct(self.by_path))
        self.trains = any(module.training for _, module in self.modules)
        self.substitutions = {path: name for path, module in self.modules if (name := substitute_for(module))}
        if any(nn.parameter.is_lazy(t) for t in self.tensors.values()):
            raise ModelError(
                f"{type(self.model).__name__} has lazy layers that have seen no input; run it once on an example first."
            )
        modules = self.by_path
        if self.substitutions:
            modules = dict(walk(self._probe({})[0]))
        self.network = TracedNetwork(modules, self.tensors, self.tied, self.substitutions, self.heads)
        self.observed = self._observed()
        grouping = self._grouping()
        if (at_once := self._at_once(grouping)) is not None:
            return at_once
        mender = Mender(
            self.network.modules, self.observed, self.choices, self._grouping, self._all_blames, self._passes,
            lambda: self.trials <= 0, self.where,
        )  # fmt: skip
        while grouping.trace.groups and grouping is not mender.cleared:
            blames = self._all_blames(grouping)
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
        if self._passes(tried):
            return replace(tried.trace, where=self.where, unfollowed=tuple(rest))
        self.choices.patches = []
        return None

    def _unread(self, grouping: Grouping) -> tuple[list[Patch], list[tuple[str, str, int]]]:
        if self.asked is None or self.asked[0] is not grouping:
            self.asked = grouping, unread(self.network.modules, grouping, self.observed.slots)
        return self.asked[1]

    def _with_unread(self, grouping: Grouping) -> Trace:
        """The trace, with numbers that the pass does not read patched where it is sure what they are."""
        sure, rest = self._unread(grouping)
        waiting = [sorted(sure, key=lambda patch: (patch.name, patch.module))] if sure else []
        # One that is something else after all does not keep the others from being followed: halves are tried.
        while waiting and self.trials > 0:
            patches, before = waiting.pop(), list(self.choices.patches)
            self.choices.patches = [*before, *patches]
            tried = self._grouping()
            self.trials -= 1
            if self._passes(tried):
                grouping = tried
                continue
            self.choices.patches = before
            if len(patches) > 1:
                middle = len(patches) // 2
                waiting += [patches[middle:], patches[:middle]]
        known = {(patch.module, patch.name) for patch in self.choices.patches}
        rest = [*rest, *((p.module, p.name, p.value) for p in sure if (p.module, p.name) not in known)]
        return replace(grouping.trace, where=self.where, unfollowed=tuple(rest))

    def _grouping(self) -> Grouping:
        """The grouping under the choices of the moment; remedies are piled up again and again on the same ones."""
        key = self.choices.key()
        if key not in self.known:
            if len(self.known) >= REMEMBERED:
                old = id(self.known.pop(next(iter(self.known))))
                self.judged.pop(old, None)
                self.failures.pop(old, None)
                self.failed.pop(old, None)
            units = self.choices.units_key()
            if units not in self.plain:
                if len(self.plain) >= REMEMBERED:
                    self.plain.pop(next(iter(self.plain)))
                self.plain[units] = group_units(self.network, self.observed, self.choices)
            self.known[key] = self.plain[units].patched(self.choices.patches)
        return self.known[key]

    # Passes ----------------------------------------------------------------------------------------------

    def _probe(
        self, kept: dict[str, dict[int, Any]], copies: dict[int, Any] | None = None
    ) -> tuple[nn.Module, dict[str, torch.Tensor]]:
        """A copy to run, and its parameters and buffers by the names of their slots; ``copies`` maps ids to copies."""
        memo = stand_ins(self.tensors, kept, self.real)
        copies = {} if copies is None else copies
        copies.update(memo)
        try:
            net = self.copier.copy(copies)
        except (TypeError, RuntimeError, NotImplementedError) as error:
            raise ModelError(
                f"{type(self.model).__name__} cannot be copied ({said_by(error, 160)}); "
                "take what cannot be copied off its modules."
            ) from error
        for path, name in self.substitutions.items():
            substitute(net.get_submodule(path), name)
        for path, module in self.modules:
            if type(module) is nn.RMSNorm:
                net.get_submodule(path).__class__ = WholeRMSNorm
        if self.trains:
            net.eval()
        if not self.real:
            tell(copies[id(module)] for _, module in self.modules if id(module) in copies)
        return net, {name: memo[id(tensor)] for name, tensor in self.tensors.items()}

    def _run(self, net: nn.Module, dispatch: LabelDispatch, training: bool, variant: Variant | None = None) -> Any:
        if training:
            net.train()
        swapped = [] if variant is None else [m for m in net.modules() if isinstance(m, variant[0])]
        for module in swapped:
            module.forward = getattr(module, variant[1] if variant else "forward")
        try:
            with torch.no_grad():
                inputs = [input_stand_in(value, self.real) for value in self.inputs]
                dispatch.enter(inputs, "graph input")
                # What training draws at random makes no difference here.
                with Repeatable(batch_statistics=False) if training else nullcontext(), dispatch:
                    dispatch.functions = torch._C._len_torch_function_stack()
                    return net(*inputs) if self.forward is None else self.forward(net, *inputs)
        finally:
            for module in swapped:
                del module.forward

    def _observed(self) -> Observations:
        """Trace the whole network: without storage first, on its real tensors if that fails."""
        on_meta = any(tensor.is_meta for tensor in self.tensors.values())
        try:
            return self._both_modes()
        except Exception as error:
            if on_meta:
                raise self._refusal(error) from error
        self.real = True
        try:
            return self._both_modes()
        except Exception as error:
            raise self._refusal(error) from error

    def _refusal(self, error: Exception) -> ModelError:
        if isinstance(error, ModelError):
            return error
        shapes = ", ".join(str(tuple(t.shape)) for t in tensors(self.inputs))
        return ModelError(
            f"The forward pass of {type(self.model).__name__} fails on inputs of shape {shapes} "
            f"({said_by(error, 160)}); give an example input that the model accepts."
        )

    def _both_modes(self) -> Observations:
        net, state = self._probe({})
        dispatch, listener = LabelDispatch(state, Observations(), self.heads), Listener(net)
        self._pass(net, dispatch, training=False)
        if listener.heard:
            self._train_too(net, dispatch)
        self._others_too(net, dispatch)
        if self.tensors and not dispatch.observed.used:
            raise ModelError(
                f"No parameter of {type(self.model).__name__} is used by its forward pass in a way that can be watched "
                "(its copy computes with other tensors, or with complex ones); give a network of plain torch modules."
            )
        for path, module in self.modules:
            if isinstance(module, nn.RNNBase | nn.RNNCellBase):
                tie_hidden_units(dispatch, path, module)
        paths = {id(module): path for path, module in reversed(walk(net))}
        for reason, (where, line) in dispatch.observed.where.items():
            self.where[reason] = ", ".join(part for part in (paths.get(id(where), ""), line) if part)
        return dispatch.observed

    def _others_too(self, net: nn.Module, dispatch: LabelDispatch) -> None:
        """Follow what other methods would do in place of ``forward``, where they give what it does."""
        self.variants = []
        if self.real:
            return
        for variant in variants([module for _, module in self.modules]):
            other, state = self._probe({})
            scratch = LabelDispatch(state, Observations(), self.heads)
            try:
                self._pass(other, scratch, training=False, variant=variant)
            except Exception:  # noqa: BLE001  (it is no other way of doing the same)
                continue
            if scratch.calls and scratch.calls[-1].shapes == dispatch.observed.passes[0][-1].shapes:
                self.variants.append(variant)
                costs = len(dispatch.observed.costs)
                # By the network of the passes before, as in a trial: it may keep what it has computed once.
                self._pass(net.eval(), dispatch, training=False, variant=variant)
                del dispatch.observed.costs[costs:]

    def _train_too(self, net: nn.Module, dispatch: LabelDispatch) -> None:
        """Trace what training does differently, such as auxiliary heads."""
        observed = dispatch.observed
        lists: tuple[list[Any], ...] = (
            observed.equalities, observed.protections, observed.altered, observed.rectangles, observed.costs,
        )  # fmt: skip
        before = [len(entries) for entries in lists]
        names = {self.tied.get(name, name) for name, _ in self.model.named_parameters()}
        try:
            self._pass(net, dispatch, training=True)
        except Exception:
            # In training a network may need its targets too. Evaluation has used every parameter then.
            if names - observed.used:
                raise
            return
        evaluated, trained = observed.passes
        if [(c.name, c.sources, c.shapes) for c in evaluated] == [(c.name, c.sources, c.shapes) for c in trained]:
            observed.passes.pop()
            for entries, count in zip(lists, before, strict=True):
                del entries[count:]
        del observed.costs[before[-1] :]

    def _pass(self, net: nn.Module, dispatch: LabelDispatch, training: bool, variant: Variant | None = None) -> None:
        dispatch.calls = []
        out = self._run(net, dispatch, training, variant)
        outs = tensors(out)
        if not outs:
            raise ModelError(
                f"{type(self.model).__name__} returns {type(out).__name__}, in which no tensor is found; "
                "return a tensor, or a tuple, list, dictionary or dataclass of tensors."
            )
        for tensor in outs:
            for layer in dispatch.flow(tensor).layers:
                dispatch.role(layer.slot, "producer")
                dispatch.protect(layer.labels, "graph output")
        dispatch.observed.passes.append(dispatch.calls)

    # Trial cuts ------------------------------------------------------------------------------------------

    def _all_blames(self, grouping: Grouping) -> list[Blame]:
        # What was found of a grouping once stays true of it.
        if id(grouping) not in self.judged:
            self.judged[id(grouping)] = grouping, self._blames(grouping, list(grouping.trace.groups))
        return self.judged[id(grouping)][1]

    def _blames(self, grouping: Grouping, groups: list[Group]) -> list[Blame]:
        """What goes wrong when ``groups`` are cut in a few uneven ways."""
        if self.trials <= -CLOSING:
            units = np.concatenate([group.units for group in groups])
            return [Blame(units, "fixed size: too many fixed sizes to tell them apart", -1, "")]
        self.trials -= 1
        blames = self._failure(grouping, groups)
        return [] if blames is None else self._free(grouping, groups, blames)

    def _passes(self, grouping: Grouping) -> bool:
        """Whether all groups can be cut; nobody is sought where they cannot."""
        if id(grouping) in self.failures:
            return self.failures[id(grouping)][1] is None
        if id(grouping) not in self.failed:
            groups = list(grouping.trace.groups)
            for kept in uneven(grouping.trace, groups, self.observed.picks):
                if not self._tried(grouping, kept, hasty=True)[0]:
                    self.failed[id(grouping)] = grouping
                    return False
            self.failures[id(grouping)] = grouping, None
        return id(grouping) not in self.failed

    def _failure(self, grouping: Grouping, groups: list[Group]) -> list[Blame] | None:
        """What goes wrong in the first of the uneven cuts of ``groups`` that fails; None where none does."""
        # What was found of all of them once stays true of them.
        everything = len(groups) == len(grouping.trace.groups)
        if everything and id(grouping) in self.failures:
            return self.failures[id(grouping)][1]
        found = None
        for kept in uneven(grouping.trace, groups, self.observed.picks):
            passed, blames = self._tried(grouping, kept)
            if not passed:
                found = blames
                break
        if everything:
            self.failures[id(grouping)] = grouping, found
        return found

    def _tried(self, grouping: Grouping, kept: npt.NDArray[np.bool_], hasty: bool = False) -> tuple[bool, list[Blame]]:
        """Whether a cut network does what the whole one does, and what goes wrong where it does not.

        Who is to blame is found out unless it is ``hasty``.
        """
        found = grouping.trace
        cut: dict[str, dict[int, Any]] = {}
        # Slots that hold the same units are one array, looked at once.
        stays = {key: np.flatnonzero(kept[units]) for key, units in {id(u): u for u in found.slots.values()}.items()}
        for (name, dim), units in found.slots.items():
            if len(stays[id(units)]) < len(units):
                cut.setdefault(name, {})[dim] = stays[id(units)]
        copies: dict[int, Any] = {}
        net, state = self._probe(cut, copies)
        sizes = {slot: len(stays[id(units)]) for slot, units in found.slots.items()}
        for a in found.attributes:
            after = a.after(kept, sizes)
            if after != a.value:
                module = copies.get(id(self.by_path[a.module]))
                set_size(net.get_submodule(a.module) if module is None else module, a.name, a.value, after)
        trial = TrialDispatch(state, self.observed, grouping, kept, self.heads, net, hasty=hasty)
        free = ~found.protected_units
        try:
            for k, calls in enumerate(self.observed.passes):
                trial.begin(calls)
                with nullcontext() if self.stops or hasty else Reshapes(trial):
                    others = k - len(self.observed.passes) + len(self.variants)
                    variant = self.variants[others] if others >= 0 else None
                    if variant is not None:
                        net.eval()
                    self._run(net, trial, training=k > 0 and variant is None, variant=variant)
        except StoppedError:
            pass
        except Exception as error:  # noqa: BLE001  (whatever the user's code raises, after a cut it means a fixed size)
            if hasty:
                return False, trial.blames
            if self.stops and isinstance(error, RuntimeError):
                # It may be a reshape, after which a trial can go on: that is watched for, at a cost, only from here on.
                self.stops = False
                return self._tried(grouping, kept)
            reason = f"fixed size: {said_by(error, 160)}"
            if not any(free[b.units].any() for b in trial.blames):
                trial.missing(reason, _path(net, error))
        else:
            return not trial.blames, trial.blames
        return False, trial.blames or [Blame(np.empty(0, np.int64), ANOTHER_WAY, trial.at, "")]

    def _free(self, grouping: Grouping, groups: list[Group], blames: list[Blame]) -> list[Blame]:
        """Those blames that hold something free; where none does, what is found to fail alone."""
        free = ~grouping.trace.protected_units
        found = [b for b in blames if free[b.units].any()]
        return found or self._suspected(grouping, groups, blames) or self._culprits(grouping, groups, blames[-1])

    def _suspected(self, grouping: Grouping, groups: list[Group], blames: list[Blame]) -> list[Blame]:
        """What goes wrong when only those groups are cut whose sizes the failing calls were given."""
        units = [np.empty(0, np.int64), *(units for blame in blames for units in blame.suspects)]
        suspected = grouping.touching(np.concatenate(units))
        suspects = [g for g in groups if suspected[g.units].any()]
        return self._blames(grouping, suspects) if 0 < len(suspects) < len(groups) and self.trials > 0 else []

    def _culprits(self, grouping: Grouping, groups: list[Group], blame: Blame) -> list[Blame]:
        """The groups that make a cut fail, found by bisection where no operator tells."""
        if self.trials <= 0 and blame.module:
            # No cuts are left to tell by: what lies in the module stays.
            inside = [g for g in groups if any(name.startswith(f"{blame.module}.") for name, _ in g.slots)]
            groups = inside or groups
        if len(groups) == 1 or self.trials <= 0:
            return [Blame(g.units, blame.reason, blame.call, blame.module) for g in groups]
        half = len(groups) // 2
        found = self._blames(grouping, groups[:half]) + self._blames(grouping, groups[half:])
        # Halves that pass alone and fail together depend on each other: all groups stay.
        return found or [Blame(g.units, blame.reason, blame.call, blame.module) for g in groups]


def _path(net: nn.Module, error: BaseException) -> str:
    """The innermost module in whose code an error was raised."""
    paths = {id(module): path for path, module in net.named_modules()}
    found, step = "", error.__traceback__
    while step is not None:
        own = step.tb_frame.f_locals.get("self")
        found = paths.get(id(own), found)
        step = step.tb_next
    return found
