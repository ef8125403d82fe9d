"""Networks drawn at random out of the operators that the rules know: whatever is planned, the cut equals the mask.

`benchmarks/random_networks.py` examines more of them, by hand, and reduces what it finds.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prune_nets import image
from random_block import B
from random_blocks import IMAGES
from random_nets import Outcome, Spec, built, chain, drawn, examine, from_seed, reduced
from random_tokens import TOKENS
from torch import nn

from compress import prune

pytestmark = pytest.mark.heavy


@st.composite
def specs(choose):
    return drawn(lambda options: choose(st.sampled_from(options)))


def examined(count: int) -> list[Outcome]:
    """What `count` networks showed; Hypothesis, which draws some of them twice, reduces one that fails."""
    outcomes: dict[Spec, Outcome] = {}

    @settings(max_examples=2 * count, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(specs())
    def holds(spec):
        if spec not in outcomes and len(outcomes) < count:
            outcomes[spec] = examine(spec)

    holds()
    return list(outcomes.values())


def lost(outcomes: list[Outcome]) -> str:
    return f"{sum(o.lost for o in outcomes)} of {len(outcomes)} networks lost a channel"


def test_whatever_is_drawn_the_cut_equals_the_mask():
    outcomes = examined(60)
    assert len(outcomes) == 60
    # Of 500 more than nine in ten do; which 60 Hypothesis takes hangs on what else is loaded, 51 of them at times.
    assert sum(o.lost for o in outcomes) >= 0.75 * len(outcomes), lost(outcomes)
    assert sum(o.counted for o in outcomes) >= 0.5 * len(outcomes), "the costs of most networks can be counted"


@pytest.mark.zoo(part="light")
def test_of_500_networks_none_is_a_counter_example_and_nine_of_ten_lose_a_channel():
    outcomes = examined(500)
    assert len(outcomes) == 500
    # The others put channels in an order by number and then norm them, in clusters of Hypothesis' own making.
    assert sum(o.lost for o in outcomes) >= 0.9 * len(outcomes), lost(outcomes)


@settings(max_examples=20, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(specs(), st.floats(0.1, 0.9))
def test_a_ratio_of_each_group_goes_within_rounding(spec, ratio):
    net = built(spec)
    trace = prune.trace(net, image(batch=1, side=spec.side))
    if not trace.groups:
        return
    plan = prune.plan(trace, prune.score(trace, net), ratio=ratio, scope="group")
    for size in plan.groups:
        assert abs((size.before - size.after) - ratio * size.before) <= 1.5
        assert 1 <= size.after <= size.before
    assert sum(s.before for s in plan.groups) == sum(len(np.unique(g.units)) for g in trace.groups)


# Counter-examples that were found, reduced: each was a fault once ----------------------------------------

FOUND = {
    "halves that are what was put side by side, as long as both lose as many channels": Spec(
        (B("unit", 0, 11), B("dense", 0, 0, (B("unit", 0, 9),)), B("halves", 7, 0, (), (B("conv"),))), seed=439
    ),
    "running statistics of an instance norm that a proof's own passes changed": Spec(
        (B("conv"), B("norm", 8, 11), B("conv"), B("conv")), head=5
    ),
    "the direction of a masked row of a weight norm is 0 / 0": Spec((B("conv", 5),)),
    "an odd number of channels rolled by half of them": Spec((B("gate"), B("order", 11)), width=9, seed=945),
    "odd halves that lose as many channels each": Spec((B("halves", 7, 0, (B("conv"),)),), width=9, seed=705),
    "keys and values that several heads share": Spec(
        (B("tokens", 0, 0, (B("attention", 8),)), B("tokens", 0, 0, (B("multihead"),))), seed=373
    ),
    "dims of heads whose scale follows the head": Spec(
        (B("tokens", 0, 0, (B("attention", 11), B("attention"))),), dims=True, seed=669
    ),
    "a learned query, of which costs cannot be counted": Spec((B("tokens", 0, 0, (B("attention", 7),)),), seed=763),
    "products of heads, which are not heads of products": Spec(
        (B("conv", 3), B("tokens", 0, 0, (B("attention", 10),))), seed=151
    ),
}


@pytest.mark.parametrize("spec", FOUND.values(), ids=[name.replace(" ", "-") for name in FOUND])
def test_what_was_a_counter_example_is_none(spec):
    for seed in range(spec.seed, spec.seed + 4):
        examine(replace(spec, seed=seed))


# The generator -------------------------------------------------------------------------------------------


def kinds_of(blocks):
    for block in blocks:
        yield block.kind
        yield from kinds_of(block.inner)
        yield from kinds_of(block.other)


def test_every_kind_of_block_is_drawn():
    seen = {kind for seed in range(150) for kind in kinds_of(from_seed(seed).blocks)}
    assert seen == {*IMAGES, *TOKENS, "tokens"}


def test_a_spec_is_the_network():
    spec = from_seed(11)
    assert from_seed(11) == spec
    assert eval(repr(spec)) == spec
    one, other = built(spec).state_dict(), built(spec).state_dict()
    assert all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.mark.parametrize("kind", IMAGES)
def test_every_variant_of_a_block_runs_at_every_size(kind):
    for a in range(12):
        for s in ((8, 6, 6), (9, 7, 7), (6, 3, 2), (10, 2, 2), (24, 4, 5)):
            net, shape = chain(s, (B(kind, a, a * 5 % 12, (B("conv"),), (B("act"),)),))
            assert isinstance(net, nn.Module)
            assert net.eval()(torch.randn(2, *s)).shape == (2, *shape)


def test_a_counter_example_is_reduced_to_what_is_wrong():
    spec = next(s for s in map(from_seed, range(100)) if "shuffle" in set(kinds_of(s.blocks)) and len(s.blocks) > 3)
    assert reduced(spec, lambda s: "shuffle" in set(kinds_of(s.blocks))).blocks == (B("shuffle"),)
