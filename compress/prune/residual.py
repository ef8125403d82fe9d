"""Residual blocks, y = g(x + f(x)): which of them can go whole, so that g(x) is left, and the plan by which they do.

The network runs once and every operator is watched, as for a trace. A block is the innermost module with weights whose
output is a sum, behind one activation at most, that its own input reaches through sums alone; everything else that is
added on the way is a branch. Where each branch ends in a layer whose zero weights make the branch zero, and nothing
outside reads what the block computes within, the block may be replaced by its activation.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from compress.errors import ModelError, PlanError, said_by
from compress.prune.architecture import named_tensors, shapes_hash, walk
from compress.prune.dispatch import LabelDispatch, Observations, OpCall, Source
from compress.prune.planning import Plan, RemovedBlock
from compress.prune.probe import Forward, clone, input_stand_in, stand_ins, uncollected
from compress.prune.rules import tensors

_ACTIVATIONS = {"aten.relu": "ReLU", "aten.silu": "SiLU", "aten.hardswish": "Hardswish"}
_STANDS_IN: dict[str, type[nn.Module]] = {kind.__name__: kind for kind in (nn.Identity, nn.ReLU, nn.SiLU, nn.Hardswish)}
"""What a plan may name in a block's place."""

_ENDS = (
    nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d,
    nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm,
)  # fmt: skip
"""Layers whose output is multiplied by s where their weight and bias are; so is that of an attention's last layer."""

_SCALED_ALONG = frozenset((
    "aten.add", "aten.cat", "aten.mul", "aten.relu", "aten.leaky_relu", "aten.mean", "aten.avg_pool2d",
    "aten._adaptive_avg_pool2d", "aten.view", "aten.permute", "aten.transpose", "aten.t", "aten.squeeze",
    "aten.unsqueeze", "aten.expand", "aten.slice", "aten.roll", "aten.native_dropout",
))  # fmt: skip
"""Operators whose output is multiplied by s >= 0 where one input is, or of a sum and a concatenation every input."""


@dataclass(frozen=True)
class Block:
    """A residual block that can go.

    Args:
        name: path of the module.
        becomes: what takes its place, the torch class of the activation behind the sum; ``Identity`` where there is
            none, or where its input comes from the same ReLU already.
        ends: the layers whose outputs make up its branches: multiplied by s, they multiply the branches by s >= 0.
        weights: their parameters, with which the same is done for good.
        macs: multiply-accumulates of the block in the pass that was watched.
    """

    name: str
    becomes: str
    ends: tuple[str, ...]
    weights: tuple[str, ...]
    macs: float


@dataclass(frozen=True)
class Blocks:
    """The residual blocks of a network.

    Args:
        architecture: SHA-256 of the names and shapes that were looked at.
        blocks: those that can go, in the order of the pass.
        stays: every other module whose output is such a sum -> why it stays.
        macs: multiply-accumulates of the whole pass.
    """

    architecture: str
    blocks: tuple[Block, ...]
    stays: Mapping[str, str] = field(default_factory=dict)
    macs: float = 0.0

    def __str__(self) -> str:
        lines = [f"{len(self.blocks)} residual blocks may go:"]
        lines += [f"  {b.name}  {100 * b.macs / self.macs:.1f} % of the MACs, leaves {b.becomes}" for b in self.blocks]
        lines += ["These stay:"] if self.stays else []
        return "\n".join(lines + [f"  {name}: {reason}" for name, reason in self.stays.items()])

    def kept_back(self, reasons: Mapping[str, str]) -> Blocks:
        """The same with some blocks staying, name -> why."""
        free = tuple(block for block in self.blocks if block.name not in reasons)
        own = {block.name: reasons[block.name] for block in self.blocks if block.name in reasons}
        return replace(self, blocks=free, stays={**self.stays, **own})

    def required(self) -> Blocks:
        """The same; raise PlanError where no block can go."""
        if self.blocks:
            return self
        why = "; ".join(f"{name} {reason}" for name, reason in list(self.stays.items())[:3])
        raise PlanError(
            f"No residual block of this network can go whole ({why or 'no module gives a sum with its own input'}); "
            "prune its channels instead."
        )


def stand_in(becomes: str, like: nn.Module) -> nn.Module:
    """The module that takes a block's place, in the mode of the block."""
    return _STANDS_IN[becomes]().train(like.training)


def check_blocks(model: nn.Module, plan: Plan) -> None:
    """Raise PlanError unless ``model`` has the blocks that a plan removes, with nothing else of the plan inside."""
    if not plan.blocks:
        return
    modules, names = dict(walk(model)), set(named_tensors(model))
    for path, block in plan.blocks.items():
        if not path or path not in modules:
            raise PlanError(f"The plan removes the block '{path}', which the network does not have; make it again.")
        if block.becomes not in _STANDS_IN:
            raise PlanError(
                f"The plan leaves a '{block.becomes}' in the place of '{path}'; there is {', '.join(_STANDS_IN)}."
            )
        if foreign := [name for name in block.weights if name not in names or not name.startswith(f"{path}.")]:
            raise PlanError(f"The plan ends the branch of '{path}' in '{foreign[0]}', which the block does not have.")
    touched = [key.rpartition(":")[0] for key in plan.slots]
    for path in (*touched, *plan.attributes, *plan.substitutions, *plan.blocks):
        if (block_of := plan.removed_with(path)) and path != block_of:
            raise PlanError(f"The plan removes the block '{block_of}' and changes '{path}' inside it; make it again.")


def plan_of_blocks(found: Blocks, gone: Iterable[str]) -> Plan:
    """The plan that removes exactly these blocks, one inside another with that, and leaves all channels.

    Args:
        found: the network's.
        gone: names of blocks.

    Raises:
        PlanError: one of them is no block, or has to stay.
    """
    free = {block.name: block for block in found.blocks}
    names = list(dict.fromkeys(gone))
    for name in names:
        if name in found.stays:
            raise PlanError(f"The block '{name}' cannot go: it {found.stays[name]}.")
        if name not in free:
            there = ", ".join(list(free)[:5]) or "none"
            raise PlanError(f"There is no residual block '{name}'; those that can go are: {there}.")
    # In the order of the pass; what lies in a block goes with it.
    within = tuple(f"{name}." for name in names)
    going = [block for block in found.blocks if block.name in names and not block.name.startswith(within)]
    return Plan(
        architecture=found.architecture,
        slots={},
        attributes={},
        blocks={block.name: RemovedBlock(becomes=block.becomes, weights=block.weights) for block in going},
        costs={
            "macs_before": found.macs,
            "macs_after": found.macs - sum(block.macs for block in going),
            "units_not_preserving": 0,
        },
        asked={"blocks": [block.name for block in going]},
    )


def blocks(model: nn.Module, *example_inputs: Any, forward: Forward | None = None) -> Blocks:
    """Find the residual blocks of a network that can go whole.

    Args:
        model: any network that runs in eager mode; it is not changed.
        example_inputs: its inputs, batch first.
        forward: called as ``forward(model, *example_inputs)`` instead of the model, to look at a part of it.

    Raises:
        ModelError: the forward pass fails on these inputs.
    """
    with uncollected():
        try:
            return _found(model, example_inputs, forward, real=False)
        except Exception:  # noqa: BLE001  (code that reads values fails without storage in its own ways)
            pass
        try:
            return _found(model, example_inputs, forward, real=True)
        except Exception as error:
            raise ModelError(
                f"The forward pass of {type(model).__name__} fails on this example ({said_by(error, 160)}); "
                "give an example input that the model accepts."
            ) from error


def _found(model: nn.Module, inputs: tuple[Any, ...], forward: Forward | None, real: bool) -> Blocks:
    own = named_tensors(model)

    def probe(gone: Iterable[Block]) -> tuple[nn.Module, dict[int, Any]]:
        memo: dict[int, Any] = stand_ins(own, {}, real)
        for block in gone:
            module = model.get_submodule(block.name)
            memo[id(module)] = stand_in(block.becomes, module)
        return clone(model, memo).eval(), memo

    def run(net: nn.Module, given: list[Any]) -> Any:
        with torch.no_grad():
            return net(*given) if forward is None else forward(net, *given)

    def runs_without(gone: Iterable[Block]) -> str:
        """Why the network does not run, or not to the same shapes, without some blocks; nothing where it does."""
        try:
            out = run(probe(gone)[0], [input_stand_in(value, real) for value in inputs])
        except Exception as error:  # noqa: BLE001  (whatever the user's code raises)
            return f"is one without which the network does not run ({said_by(error, 120)})"
        same = [t.shape for t in tensors(out)] == [t.shape for t in outputs]
        return "" if same else "is one without which the outputs have other shapes"

    net, memo = probe(())
    dispatch = _Dispatch({name: memo[id(tensor)] for name, tensor in own.items()}, Observations(), "whole")
    watch = _Watch(net, dispatch, own)
    given = [input_stand_in(value, real) for value in inputs]
    dispatch.enter(given, "graph input")
    with dispatch:
        outputs = tensors(run(net, given))
    free, stays = watch.blocks({dispatch.source(t) for t in outputs})
    if runs_without(free):
        reasons = {block.name: reason for block in free if (reason := runs_without([block]))}
        free, stays = [block for block in free if block.name not in reasons], {**stays, **reasons}
    return Blocks(shapes_hash(own), tuple(free), stays, watch.macs(0, None))


class _Dispatch(LabelDispatch):
    """As in a trace; beside a tensor that is written in place, what shares its memory is another value too."""

    def _written(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()._cdata
        for other in self.alive:
            if isinstance(other, Tensor) and other is not tensor and other.untyped_storage()._cdata == storage:
                self.sources[id(other)] = f"written by call {len(self.calls)}"
        super()._written(tensor)


@dataclass
class _Visit:
    """One call of a module: what it was given and gave, and the calls of modules and operators meanwhile."""

    at: int
    path: str
    module: nn.Module
    given: list[Tensor]
    source: Source
    shapes: list[tuple[int, ...]]
    first: int
    spent: int
    until: int = 0
    last: int = 0
    spent_after: int = 0
    made: Source = None
    left: Source = None  # where what it was given comes from afterwards: it may have been written to
    gave: tuple[int, ...] | None = None


class _Watch:
    """What modules do in a pass over a copy that nobody else uses.

    Args:
        net: the copy.
        dispatch: the pass.
        own: parameters and buffers of the network by name, a shared one under each of its names.
    """

    def __init__(self, net: nn.Module, dispatch: LabelDispatch, own: Mapping[str, Tensor]) -> None:
        self.dispatch, self.own = dispatch, own
        self.visits: list[_Visit] = []
        self.open: list[_Visit] = []
        for path, module in net.named_modules():
            module.register_forward_pre_hook(partial(self._entered, path), with_kwargs=True)
            module.register_forward_hook(self._left)

    def _entered(self, path: str, module: nn.Module, args: Any, kwargs: Any) -> None:
        given = tensors((args, kwargs))
        source = self.dispatch.source(given[0]) if given else None
        shapes = [tuple(t.shape) for t in given]
        calls, costs = self.dispatch.calls, self.dispatch.observed.costs
        visit = _Visit(len(self.visits), path, module, given, source, shapes, len(calls), len(costs))
        self.visits.append(visit)
        self.open.append(visit)

    def _left(self, module: nn.Module, args: Any, output: Any) -> None:
        visit = self.open.pop()
        visit.until, visit.last = len(self.visits), len(self.dispatch.calls)
        visit.spent_after = len(self.dispatch.observed.costs)
        visit.left = self.dispatch.source(visit.given[0]) if visit.given else None
        output = output[0] if isinstance(module, nn.MultiheadAttention) else output
        if isinstance(output, Tensor):
            visit.made, visit.gave = self.dispatch.source(output), tuple(output.shape)

    def macs(self, first: int, last: int | None) -> float:
        """Multiply-accumulates of a run of those that were counted."""
        costs = self.dispatch.observed.costs[first:last]
        return sum(macs * prod(labels.shape[-1] for labels in factors) for macs, factors in costs)

    def blocks(self, outputs: set[Source]) -> tuple[list[Block], dict[str, str]]:
        """The blocks that can go, and why others stay."""
        self.calls, self.outputs = self.dispatch.calls, outputs
        self.readers: dict[Source, list[int]] = {}
        for k, call in enumerate(self.calls):
            for source in call.sources:
                self.readers.setdefault(source, []).append(k)
        self.times: dict[str, int] = {}
        innermost: dict[int, _Visit] = {}
        for visit in self.visits:
            self.times[visit.path] = self.times.get(visit.path, 0) + 1
            if next(visit.module.parameters(), None) is not None:
                innermost |= dict.fromkeys(range(visit.first, visit.last), visit)
        # Only a layer that is called once can be scaled for one branch.
        self.layers = {v.made: v for v in self.visits if self.times[v.path] == 1 and _parameters(v.module)}
        users: dict[int, list[str]] = {}
        for name, tensor in self.own.items():
            users.setdefault(id(tensor), []).append(name)
        self.shared = [names for names in users.values() if len(names) > 1]
        free: list[Block] = []
        stays: dict[str, str] = {}
        for visit in self.visits:
            becomes, total = self._sum(visit)
            if total is None or innermost.get(total) is not visit or not visit.path:
                continue
            found = self._block(visit, becomes, total)
            if isinstance(found, Block):
                free.append(found)
            else:
                stays[visit.path] = found
        return free, stays

    def _sum(self, visit: _Visit) -> tuple[str, int | None]:
        """The activation behind the sum that a module gives, and the sum's call; None where it gives none."""
        becomes, last = "Identity", self._place(visit.made, visit)
        if last is not None and _name(self.calls[last]) in _ACTIVATIONS:
            becomes, last = _ACTIVATIONS[_name(self.calls[last])], self._place(self.calls[last].sources[0], visit)
        return becomes, last if last is not None and _is_sum(self.calls[last]) else None

    def _place(self, source: Source, visit: _Visit) -> int | None:
        """The call within a module that made a value; None where none there did."""
        return source[0] if isinstance(source, tuple) and visit.first <= source[0] < visit.last else None

    def _block(self, visit: _Visit, becomes: str, total: int) -> Block | str:
        """The block that a module is, or why it has to stay."""
        if self.times[visit.path] > 1:
            return f"is called {self.times[visit.path]} times"
        if len(visit.shapes) != 1:
            return f"is called with {len(visit.shapes)} tensors, not one"
        if not isinstance(visit.source, tuple) and not str(visit.source).startswith("graph input"):
            return "is called with a constant"
        if visit.shapes[0] != visit.gave:
            return f"turns {list(visit.shapes[0])} into {list(visit.gave or ())}, a shape that its input does not have"
        branches = self._branches(total, visit, set())
        if branches is None:
            return "has a shortcut that is not its input as it is"
        wrote = visit.left != visit.source
        if wrote and (visit.left != visit.made or becomes != "Identity"):
            return "writes into its input"
        if (reader := self._read_elsewhere(visit)) is not None:
            return reader
        ends: list[str] = []
        for branch in branches:
            found = self._ends(branch, visit)
            if found is None:
                return "has a branch that does not end in a layer whose weights could make it zero"
            ends += found
        if becomes == "ReLU" and isinstance(visit.source, tuple) and _name(self.calls[visit.source[0]]) == "aten.relu":
            becomes = "Identity"
        ends = list(dict.fromkeys(ends))
        layers = {v.path: v.module for v in self.layers.values()}
        weights = [f"{end}.{name}" for end in ends for name in _parameters(layers[end])]
        macs = self.macs(visit.spent, visit.spent_after)
        return Block(visit.path, becomes, tuple(ends), tuple(weights), macs)

    def _branches(self, total: int, visit: _Visit, seen: set[int]) -> list[Source] | None:
        """What is added to a module's input on the way to a sum; None where the sum does not hold the input itself."""
        if total in seen:
            return None
        seen.add(total)
        pair = self.calls[total].sources
        for shortcut, branch in (pair,) if self.calls[total].numbers else (pair, pair[::-1]):
            if shortcut == visit.source:
                return [branch]
            before = self._place(shortcut, visit)
            if before is not None and _is_sum(self.calls[before]):
                found = self._branches(before, visit, seen)
                if found is not None:
                    return [*found, branch]
        return None

    def _ends(self, source: Source, visit: _Visit) -> list[str] | None:
        """The layers whose outputs a value is made of, in such a way that it is scaled as they are."""
        if len(self.readers.get(source, ())) != 1 or source in self.outputs:
            return None
        layer = self.layers.get(source)
        if layer is not None and layer.path.startswith(f"{visit.path}."):
            return [layer.path]
        place = self._place(source, visit)
        if place is None or _name(self.calls[place]) not in _SCALED_ALONG:
            return None
        call = self.calls[place]
        found = [self._ends(given, visit) for given in call.sources]
        if _name(call) in ("aten.add", "aten.cat"):
            return None if None in found or len(found) < 2 else [end for ends in found for end in ends or ()]
        return next((ends for ends in found if ends), None)

    def _read_elsewhere(self, visit: _Visit) -> str | None:
        """Say whether something outside reads what a module computes or holds."""
        for other in self.visits:
            if other.path.startswith(f"{visit.path}.") and not visit.at < other.at < visit.until:
                return f"holds '{other.path}', which is called elsewhere"
        for names in self.shared:
            if len({name.startswith(f"{visit.path}.") for name in names}) > 1:
                return f"shares '{names[0]}' with another module"
        inside = range(visit.first, visit.last)
        for source, readers in self.readers.items():
            own = isinstance(source, tuple) and source[0] in inside and source != visit.made
            held = isinstance(source, str) and source.startswith(f"{visit.path}.")
            if (own or held) and any(k not in inside for k in readers):
                return "computes or holds what is read elsewhere"
            if own and source in self.outputs:
                return "computes what the network returns"
        return None


def _name(call: OpCall) -> str:
    """The operator of a call, whether it works in place or not."""
    return call.name.rstrip("_")


def _is_sum(call: OpCall) -> bool:
    """Whether a call adds two tensors, of which it may multiply the second."""
    return _name(call) == "aten.add" and len(call.sources) == 2


def _parameters(module: nn.Module) -> tuple[str, ...]:
    """The parameters with which a layer's output is scaled; none where that cannot be done."""
    if type(module) is nn.MultiheadAttention:
        return tuple(f"out_proj.{name}" for name, _ in module.out_proj.named_parameters())
    names = tuple(name for name, _ in module.named_parameters())
    return names if type(module) in _ENDS and "weight" in names and set(names) <= {"weight", "bias"} else ()
