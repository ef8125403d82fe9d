"""Random networks: drawn as data, built, examined, and reduced where one is a counter-example."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from prune_nets import Net, draw, image
from random_block import B, Shape, pick
from random_blocks import IMAGES
from random_tokens import tokens
from torch import nn

from compress import cost, prune
from compress.prune.rules import tensors

CLASSES = 4
SIDES = (6, 8, 7)

Choose = Callable[[Sequence[Any]], Any]
"""Picks one of a sequence; the earlier ones are the simpler ones."""


@dataclass(frozen=True)
class Spec:
    """A network as data.

    Args:
        blocks: what lies between stem and head.
        head: which head.
        width: channels of the stem.
        side: pixels of a side of the image.
        frozen: every how manieth parameter is frozen, 0 for none.
        dims: whether dims of heads go instead of whole heads.
        seed: of the weights and of what is cut.
    """

    blocks: tuple[B, ...]
    head: int = 0
    width: int = 8
    side: int = 6
    frozen: int = 0
    dims: bool = False
    seed: int = 0


# Drawing -------------------------------------------------------------------------------------------------

_IMAGE_WEIGHTS = {
    "conv": 6, "unit": 6, "residual": 7, "act": 3, "norm": 3, "dense": 3, "branches": 4, "halves": 4, "grouped": 3,
    "depthwise": 3, "transposed": 2, "conv1d": 1, "math": 2, "space": 3, "shuffle": 2, "order": 2, "pixels": 1,
    "mix": 2, "gate": 4, "glu": 2, "tied": 2, "scale": 2, "widen": 1, "tokens": 4,
    "byhand": 2, "foreign": 4,
}  # fmt: skip
_TOKEN_WEIGHTS = {"mlp": 4, "norm": 2, "residual": 6, "attention": 6, "multihead": 4, "first": 1, "recurrent": 0.25}


def _weighted(weights: dict[str, float]) -> list[str]:
    return [kind for kind, n in weights.items() for _ in range(round(4 * n))]


_IMAGE_KINDS, _TOKEN_KINDS = _weighted(_IMAGE_WEIGHTS), _weighted(_TOKEN_WEIGHTS)
_CHOICES = tuple(range(12))


def drawn(choose: Choose) -> Spec:
    """A network out of choices."""
    return Spec(
        _run(choose, choose((2, 3, 3, 4, 4, 5, 5)), 2, _IMAGE_KINDS),
        head=choose(range(len(HEADS))),
        width=choose((8, 6, 12, 10, 9, 16)),
        side=choose(SIDES),
        frozen=choose((0, 0, 2, 3)),
        dims=choose((False, False, False, True)),
        seed=choose(range(1000)),
    )


def _run(choose: Choose, count: int, depth: int, kinds: list[str]) -> tuple[B, ...]:
    return tuple(_block(choose, depth, kinds) for _ in range(count))


def _block(choose: Choose, depth: int, kinds: list[str]) -> B:
    kind = choose(kinds)
    if depth == 0:
        flat = {"residual": "unit", "branches": "gate", "halves": "glu", "dense": "conv", "tokens": "conv"}
        kind = flat.get(kind, kind) if kinds is _IMAGE_KINDS else {"residual": "mlp", "first": "norm"}.get(kind, kind)
    a, b = choose(_CHOICES), choose(_CHOICES)
    if kind == "tokens":
        return B(kind, a, b, _run(choose, choose((1, 2)), depth, _TOKEN_KINDS))
    if kind in ("branches", "halves"):
        return B(kind, a, b, _run(choose, choose((1, 2)), depth - 1, kinds), _run(choose, choose((0, 1)), 0, kinds))
    if kind in ("residual", "dense", "first"):
        return B(kind, a, b, _run(choose, choose((1, 2, 3)), depth - 1, kinds))
    return B(kind, a, b)


def from_seed(seed: int) -> Spec:
    """The network of a number."""
    rng = np.random.default_rng(seed)
    return drawn(lambda options: options[int(rng.integers(len(options)))])


# Building ------------------------------------------------------------------------------------------------

_BUILDERS = {**IMAGES, "tokens": tokens}


def chain(s: Shape, blocks: Sequence[B]) -> tuple[nn.Module, Shape]:
    """Blocks one after another."""
    made = []
    for block in blocks:
        layer, s = _BUILDERS[block.kind](s, block, chain)
        made.append(layer)
    return nn.Sequential(*made), s


def _mean(s: Shape) -> nn.Module:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(s[0], CLASSES))


def _flat(s: Shape) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(s[0] * s[1] * s[2], CLASSES))


def _several(s: Shape) -> nn.Module:
    def run(m: Any, x: torch.Tensor) -> Any:
        return {"scores": m.a(x.mean((2, 3))), "map": [m.b(x)], "norm": x.flatten(1).norm(dim=1)}

    return Net(run, a=nn.Linear(s[0], CLASSES), b=nn.Conv2d(s[0], 5, 1))


def _two(s: Shape) -> nn.Module:
    layers = {"a": nn.Conv2d(s[0], 6, 3, padding=1), "b": nn.Linear(6, CLASSES), "c": nn.Linear(s[0], CLASSES)}
    return Net(lambda m, x: (m.b(m.a(x).relu().amax((2, 3))), m.c(x.mean((-2, -1)))), **layers)


def _deep(s: Shape) -> nn.Module:
    own = nn.Sequential(nn.Linear(s[0], 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Dropout(0.2), nn.Linear(12, CLASSES))
    return Net(lambda m, x: m.a(F.adaptive_max_pool2d(x, 1).flatten(1)), a=own)


def _map(s: Shape) -> nn.Module:
    return nn.Sequential(nn.Conv2d(s[0], CLASSES, 1), nn.Upsample(scale_factor=2, mode="bilinear"))


def _pooled(s: Shape) -> nn.Module:
    def run(m: Any, x: torch.Tensor) -> torch.Tensor:
        y = m.norm(x.flatten(2).transpose(1, 2))
        return m.out((m.score(y).softmax(1) * y).sum(1))

    return Net(run, norm=nn.LayerNorm(s[0]), score=nn.Linear(s[0], 1), out=nn.Linear(s[0], CLASSES))


def _cosine(s: Shape) -> nn.Module:
    def run(m: Any, x: torch.Tensor) -> torch.Tensor:
        return F.normalize(m.a(x.mean((2, 3))), dim=-1) @ F.normalize(m.w, dim=-1).t() * m.t.exp()

    return Net(run, a=nn.Linear(s[0], 10), w=nn.Parameter(torch.randn(CLASSES, 10)), t=nn.Parameter(torch.zeros(1)))


def _bilinear(s: Shape) -> nn.Module:
    def run(m: Any, x: torch.Tensor) -> torch.Tensor:
        y = m.a(x).flatten(2)
        return m.b((y @ y.transpose(1, 2) / y.shape[2]).flatten(1))

    return Net(run, a=nn.Conv2d(s[0], 5, 1), b=nn.Linear(25, CLASSES))


HEADS: tuple[Callable[[Shape], nn.Module], ...] = (
    _mean, _flat, _mean, _several, _two, _deep, _map, _pooled, _cosine, _bilinear,
)  # fmt: skip


def built(spec: Spec) -> nn.Module:
    """The network of a spec: the same one each time."""
    torch.manual_seed(spec.seed)
    stem = nn.Conv2d(3, spec.width, 3, padding=1)
    body, s = chain((spec.width, spec.side, spec.side), spec.blocks)
    net = nn.Sequential(stem, body, pick(HEADS, spec.head)(s))
    for k, parameter in enumerate(net.parameters()):
        parameter.requires_grad_(not (spec.frozen and k % spec.frozen == 1))
    return net


# Examining -----------------------------------------------------------------------------------------------

SECONDS = 20.0
"""How long one trace may take."""


@dataclass(frozen=True)
class Outcome:
    """What one network showed.

    Args:
        free: share of its units of channels that are free to go.
        lost: whether a plan took a channel.
        counted: whether the multiply-accumulates could be counted by other means.
        worst: largest error of its proofs.
        seconds: of the processor, for the trace.
        unknown: operators without a rule.
    """

    free: float
    lost: bool
    counted: bool
    worst: float
    seconds: float
    unknown: tuple[str, ...]


def examine(spec: Spec, draws: int = 2) -> Outcome:
    """Holds one network to all that pruning promises; AssertionError, PlanError or ModelError where it fails."""
    net, batch = built(spec), 1 + spec.seed % 2
    x = image(batch=8, side=spec.side, seed=spec.seed)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    began = time.process_time()
    trace = prune.trace(net, x[:batch], heads="dims" if spec.dims else "whole")
    seconds = time.process_time() - began
    assert seconds < SECONDS, f"the trace took {seconds:.1f} s"
    scores = prune.score(trace, net)
    _nothing_is_the_identity(net, prune.plan(trace, scores, ratio=0), x)
    plans = [draw(trace, 10 * spec.seed + k, least=2) for k in range(draws)]
    if trace.groups:
        plans.append(prune.plan(trace, scores, ratio=0.5, scope="group"))
    counted = _countable(net)
    worst = 0.0
    for k, plan in enumerate(plans):
        worst = max(worst, prune.check(net, plan, x, seed=k).worst)
        small = prune.apply(net, plan)
        _looks_the_same(net, small, x)
        assert prune.Plan.from_json(plan.to_json()) == plan
        if counted:
            assert plan.costs["macs_before"] == batch * cost.macs(net, x)
            said, found = plan.costs["macs_after"], batch * cost.macs(small, x)
            # Torch computes an einsum over the one channel that is left as a product, of which it counts nothing.
            assert said == found or (said > found and any(1 == g.after < g.before for g in plan.groups))
    _two_plans_are_one(net, plans[0], x, spec)
    after = net.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items()), "the network was changed"
    produced = {s for g in trace.groups for s in g.units}
    makers = np.unique(np.concatenate([u for s, u in trace.slots.items() if trace.roles[s] == "producer"]))
    lost = any(plan.slots for plan in plans)
    return Outcome(len(produced) / len(makers), lost, counted, worst, seconds, trace.unknown_ops)


def _nothing_is_the_identity(net: nn.Module, plan: prune.Plan, x: torch.Tensor) -> None:
    assert plan.slots == {}
    assert plan.attributes == {}
    same = prune.apply(net, plan)
    assert all(torch.equal(value, same.state_dict()[name]) for name, value in net.state_dict().items())
    _equal_outputs(net, same, x)


def _equal_outputs(one: nn.Module, other: nn.Module, x: torch.Tensor) -> None:
    with torch.no_grad():
        for y, z in zip(tensors(one.eval()(x.clone())), tensors(other.eval()(x.clone())), strict=True):
            assert torch.equal(y, z)


def _looks_the_same(net: nn.Module, small: nn.Module, x: torch.Tensor) -> None:
    assert list(small.state_dict()) == list(net.state_dict())
    frozen = {name: not p.requires_grad for name, p in net.named_parameters()}
    assert {name: not p.requires_grad for name, p in small.named_parameters()} == frozen
    with torch.no_grad():
        sizes = [y.shape for y in tensors(net.eval()(x.clone()))]
        assert [y.shape for y in tensors(small.eval()(x.clone()))] == sizes


def _two_plans_are_one(net: nn.Module, first: prune.Plan, x: torch.Tensor, spec: Spec) -> None:
    small = prune.apply(net, first)
    trace = prune.trace(small, x[:1], heads="dims" if spec.dims else "whole")
    second = draw(trace, 10 * spec.seed + 7, least=2)
    prune.check(small, second, x)
    twice, once = prune.apply(small, second), prune.apply(net, first.then(second))
    values = once.state_dict()
    assert all(torch.equal(value, values[name]) for name, value in twice.state_dict().items())
    _equal_outputs(once, twice, x)


def _countable(net: nn.Module) -> bool:
    """Torch counts neither what a recurrent layer does nor, in its own attention, what a fused kernel does."""
    hidden = (nn.MultiheadAttention, nn.RNNBase)
    return not any(isinstance(module, hidden) for module in net.modules())


# Reducing ------------------------------------------------------------------------------------------------


def smaller(spec: Spec) -> Iterator[Spec]:
    """Simpler networks, the simplest first."""
    for blocks in _fewer(spec.blocks):
        yield replace(spec, blocks=blocks)
    plain = Spec(())
    for name in ("head", "width", "side", "frozen", "dims"):
        if getattr(spec, name) != getattr(plain, name):
            yield replace(spec, **{name: getattr(plain, name)})


def _fewer(blocks: tuple[B, ...], simple: str = "conv") -> Iterator[tuple[B, ...]]:
    for k, block in enumerate(blocks):
        left, right = blocks[:k], blocks[k + 1 :]
        inside = "mlp" if block.kind == "tokens" else simple
        yield (*left, *right)
        if block.kind != "tokens" and block.inner + block.other:
            yield (*left, *block.inner, *block.other, *right)
        yield from ((*left, replace(block, inner=inner), *right) for inner in _fewer(block.inner, inside))
        yield from ((*left, replace(block, other=other), *right) for other in _fewer(block.other, inside))
        if block.kind != simple:
            yield (*left, B(simple), *right)
        for name in ("a", "b"):
            if getattr(block, name):
                yield (*left, replace(block, **{name: 0}), *right)


def failure(spec: Spec) -> str:
    """What is wrong with a network, in one line; "" where nothing is."""
    try:
        examine(spec)
    except Exception as error:  # noqa: BLE001  (whatever fails is a counter-example)
        return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"
    return ""


def reduced(spec: Spec, wrong: Callable[[Spec], bool], seconds: float = 120.0) -> Spec:
    """A smaller network that is still wrong."""
    ends = time.perf_counter() + seconds
    while time.perf_counter() < ends:
        simpler = next((s for s in smaller(spec) if wrong(s)), None)
        if simpler is None:
            break
        spec = simpler
    return spec
