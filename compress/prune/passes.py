"""Passes over a network without storage, whole or cut: which there are, and what those over the whole one show."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from compress.errors import ModelError, said_by
from compress.prune.architecture import named_tensors, walk
from compress.prune.attention import substitute, substitute_for
from compress.prune.attributes import distinct
from compress.prune.determinism import Repeatable
from compress.prune.dispatch import LabelDispatch, Observations
from compress.prune.leaves import tell
from compress.prune.modes import Listener
from compress.prune.probe import Copier, Forward, WholeRMSNorm, input_stand_in, stand_ins
from compress.prune.recurrent import tie_hidden_units
from compress.prune.rules import tensors
from compress.prune.unread import Variant, variants


@dataclass
class Passes:
    """One network, and the passes over it and over cuts of it.

    Args:
        model: the network, which is not changed.
        inputs: what it is called with.
        forward: called with the network and its inputs in place of the network.
        heads: what goes of an attention, ``whole`` heads or ``dims`` of every head.

    Attributes:
        real: whether passes compute with the network's values.
        where: reason for which channels stay -> the module and the line where it first held.
        variants: what other methods do in place of ``forward``, each followed in a pass of its own after the others.

    Raises:
        ModelError: the network has lazy layers that have seen no input.
    """

    model: nn.Module
    inputs: tuple[Any, ...]
    forward: Forward | None
    heads: str
    real: bool = field(default=False, init=False)
    where: dict[str, str] = field(default_factory=dict, init=False)
    variants: list[Variant] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        self.tensors = named_tensors(self.model)
        first: dict[int, str] = {}
        owners = {name: first.setdefault(id(tensor), name) for name, tensor in self.tensors.items()}
        self.tied = {name: owner for name, owner in owners.items() if owner != name}
        self.by_path = dict(walk(self.model))
        self.modules = list(distinct(self.by_path))
        self.trains = any(module.training for _, module in self.modules)
        self.substitutions = {path: name for path, module in self.modules if (name := substitute_for(module))}
        if any(nn.parameter.is_lazy(t) for t in self.tensors.values()):
            raise ModelError(
                f"{type(self.model).__name__} has lazy layers that have seen no input; run it once on an example first."
            )
        self._copier = Copier(self.model)

    def substituted(self) -> dict[str, nn.Module]:
        """The modules by all their paths, substitutes in place."""
        return dict(walk(self.probe({})[0])) if self.substitutions else self.by_path

    def observe(self) -> Observations:
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
        net, state = self.probe({})
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
            other, state = self.probe({})
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
        out = self.run(net, dispatch, training, variant)
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

    def run(self, net: nn.Module, dispatch: LabelDispatch, training: bool, variant: Variant | None = None) -> Any:
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

    def probe(
        self, kept: dict[str, dict[int, Any]], copies: dict[int, Any] | None = None
    ) -> tuple[nn.Module, dict[str, torch.Tensor]]:
        """A copy to run, and its parameters and buffers by the names of their slots; ``copies`` maps ids to copies."""
        memo = stand_ins(self.tensors, kept, self.real)
        copies = {} if copies is None else copies
        copies.update(memo)
        try:
            net = self._copier.copy(copies)
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
