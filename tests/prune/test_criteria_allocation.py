"""From scores of criteria to what goes: scopes, shares by pattern, and several budgets at once."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from prune_nets import Net, conv, image
from pydantic import ValidationError
from torch.nn import functional as F

from compress import prune
from compress.errors import PlanError
from compress.models.cifar_resnet import cifar_resnet
from compress.prune.planning import plan_from_kept


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    return cifar_resnet(8, 16)


@pytest.fixture(scope="module")
def trace(net):
    return prune.trace(net, image(2, 16))


@pytest.fixture(scope="module")
def scores(trace, net):
    return prune.score(trace, net)


def kept_of(trace, plan):
    """bool, one a unit."""
    kept = np.ones(trace.units, dtype=bool)
    for (name, dim), units in trace.slots.items():
        gone = np.ones(len(units), dtype=bool)
        gone[plan.kept_indices((name, dim), len(units))] = False
        kept[units[gone]] = False
    return kept


def bytes_of(net, width, vectors):
    tensors = {id(t): t for t in [*net.parameters(), *net.buffers()]}
    return sum(t.numel() * (width if t.dim() > 1 else vectors) for t in tensors.values())


def test_the_costs_of_an_allocation_are_those_of_the_cut_network(net, trace, scores):
    plan = prune.plan(trace, scores, ratio=0.4)
    kept, small = kept_of(trace, plan), prune.apply(net, plan)
    assert trace.params(kept) == sum(p.numel() for p in small.parameters())
    for width, vectors in ((4, 4), (2, 2), (1, 4)):
        assert trace.size(kept, width) == bytes_of(small, width, vectors)


def test_memory_by_hand():
    """3 x 64 in is no activation; a: 4 x 64 and its relu, alive together; then b: 2 x 64 beside the relu."""
    net = Net(lambda m, x: m.b(F.relu(m.a(x))).flatten(1), a=conv(3, 4), b=conv(4, 2))
    trace = prune.trace(net, image(5))
    whole = np.ones(trace.units, dtype=bool)
    assert trace.memory(whole, 4) == (4 + 4) * 64 * 4
    kept = whole.copy()
    kept[trace.slots["a.weight", 0][:3]] = False
    assert trace.memory(kept, 2) == (2 + 1) * 64 * 2, "now b and what it reads are the most"
    assert prune.trace(prune.apply(net, plan_from_kept(trace, kept)), image(1)).memory(
        np.ones(99, dtype=bool), 2
    ) == trace.memory(kept, 2)


def test_memory_holds_a_shortcut_until_it_is_added():
    net = Net(lambda m, x: m.c((y := m.a(x)) + m.b(torch.relu_(y + 0))), a=conv(3, 4), b=conv(4, 4), c=conv(4, 1))
    trace = prune.trace(net, image(1))
    # y, y + 0 (its relu is in place) and what b gives.
    assert trace.memory(np.ones(trace.units, dtype=bool), 1) == 3 * 4 * 64


BUDGETS = [
    {"macs": 0.5},
    {"params": 0.4},
    {"macs": 0.7, "params": 0.4},
    {"macs": 0.4, "params": 0.7},
    {"size": 0.5, "precision": "int8"},
    {"size": 60_000},
    {"memory": 0.7, "macs": 0.9},
    {"memory": 40_000, "precision": "fp16", "batch": 4},
    {"macs": 0.8, "params": 0.8, "size": 200_000, "memory": 0.8},
]


@pytest.mark.parametrize("given", BUDGETS, ids=str)
def test_criteria_never_allocate_beyond_any_budget(net, trace, scores, given):
    budget = prune.Budget(**given)
    plan = prune.plan(trace, scores, budget=budget, round_to=2)
    kept, whole = kept_of(trace, plan), np.ones(trace.units, dtype=bool)
    width = {"fp32": 4, "fp16": 2, "int8": 1}[budget.precision]
    costs = {
        "macs": trace.macs(kept) / trace.macs(whole),
        "params": trace.params(kept) / trace.params(whole),
        "size": trace.size(kept, width) / (trace.size(whole, width) if (budget.size or 2) <= 1 else 1),
        "memory": trace.memory(kept, width) * budget.batch / (
            trace.memory(whole, width) * budget.batch if (budget.memory or 2) <= 1 else 1
        ),
    }  # fmt: skip
    bounds = {name: getattr(budget, name) for name in costs if getattr(budget, name) is not None}
    assert all(costs[name] <= bound for name, bound in bounds.items())
    assert max(costs[name] / bound for name, bound in bounds.items()) > 0.8, "and one of them is all but used"
    assert plan.asked["budget"] == given


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"macs": 0.9, "params": 0.01}, r"0.01 of the parameters is impossible.*ask for params: 0\.\d+ or more"),
        ({"macs": 0.01, "params": 0.01}, r"of the MACs is impossible.*of the parameters.*ask for macs: .*params: "),
        ({"size": 100}, r"100 bytes of size is impossible.*no less than \d+ can remain; ask for size: \d+ or more"),
        ({"memory": 0.01}, "0.01 of the memory is impossible"),
    ],
)
def test_impossible_budgets_say_what_can_be_reached(trace, scores, given, said):
    with pytest.raises(PlanError, match=said) as caught:
        prune.plan(trace, scores, budget=prune.Budget(**given), min_kept=4)
    asked = str(caught.value).split("ask for ")[1].split(" or more")[0]
    reachable = {name: float(value) for name, value in (part.split(": ") for part in asked.split(", "))}
    prune.plan(trace, scores, budget=prune.Budget(**{**given, **reachable}), min_kept=4)


@pytest.mark.parametrize("wrong", [{"params": 0}, {"size": -1}, {"memory": 0}, {"batch": 0, "macs": 1}, {"params": 2}])
def test_budgets_that_make_no_sense_are_refused(wrong):
    with pytest.raises(ValidationError):
        prune.Budget(**wrong)


def test_global_allocation_takes_the_lowest_scores_as_they_are(trace):
    scores = torch.from_numpy(np.random.default_rng(0).permutation(trace.units)).double()
    gone = ~kept_of(trace, prune.plan(trace, scores, ratio=0.2))
    units = np.concatenate([g.units for g in trace.groups])
    lowest = units[np.argsort(scores[units].numpy())][: round(0.2 * len(units))]
    assert set(np.flatnonzero(gone).tolist()) == set(lowest.tolist())


def test_allocation_per_mac_spares_what_costs_little(trace):
    """Equal scores: the units with the most MACs go first."""
    scores, macs = torch.ones(trace.units, dtype=torch.float64), trace.unit_macs()
    gone = ~kept_of(trace, prune.plan(trace, scores, ratio=0.05, scope="per_mac"))
    left = np.concatenate([g.units for g in trace.groups])
    assert macs[gone].min() >= macs[[u for u in left if not gone[u]]].max()


def test_isomorphic_allocation_takes_the_same_share_of_each_kind(trace, scores):
    """The insides of blocks are of one kind, whatever their widths; scores rank within it."""
    kinds = {"trunk": [], "inside": []}
    for group in trace.groups:
        kinds["inside" if group.name.endswith("conv1") and group.name != "conv1" else "trunk"].append(group)
    scaled = scores.clone()
    scaled[torch.from_numpy(kinds["inside"][0].units)] *= 0.1
    plan = prune.plan(trace, scaled, ratio=0.25, scope="isomorphic")
    gone = ~kept_of(trace, plan)
    inside = np.concatenate([g.units for g in kinds["inside"]])
    assert gone[inside].mean() == pytest.approx(0.25, abs=0.01)
    lost = [gone[g.units].mean() for g in kinds["inside"]]
    assert lost[0] == pytest.approx(1, abs=0.1)
    assert max(lost[1:]) < 0.3


def test_shares_by_pattern(trace, scores):
    plan = prune.plan(
        trace, scores, ratio={"layer3.*": 0.5, "layer1.0.conv1.weight": 0.25, "layer2.*": 0.0, "*": 0.125}
    )
    for group in plan.groups:
        share = 0.5 if group.name.startswith("layer3") else 0.25 if group.name == "layer1.0.conv1" else 0.125
        share = 0.0 if group.name.startswith("layer2") else share
        assert group.before - group.after == round(share * group.before), group.name
    assert plan.asked["ratio"]["layer3.*"] == 0.5
    assert prune.Plan.from_json(plan.to_json()) == plan


def test_shares_by_pattern_that_make_no_sense_are_refused(trace, scores):
    with pytest.raises(PlanError, match="No free group matches 'layer9"):
        prune.plan(trace, scores, ratio={"layer9.*": 0.5})
    with pytest.raises(PlanError, match=r"ratio of 1\.5 is impossible"):
        prune.plan(trace, scores, ratio={"layer1.*": 1.5})


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 1000),
    max_ratio=st.sampled_from([0.1, 0.3, 0.5, 0.7, 1.0]),
    round_to=st.sampled_from([1, 3, 8]),
    min_kept=st.integers(0, 9),
    scope=st.sampled_from(["global", "group", "isomorphic", "per_mac"]),
    ratio=st.one_of(st.floats(0, 0.99), st.fixed_dictionaries({"layer1.*": st.floats(0, 0.99)})),
)
def test_limits_of_groups_hold_whatever_criteria_say(trace, seed, max_ratio, round_to, min_kept, scope, ratio):
    scores = torch.rand(trace.units, generator=torch.Generator().manual_seed(seed))
    plan = prune.plan(
        trace, scores, ratio=ratio, scope=scope, round_to=round_to, min_kept=min_kept, max_ratio=max_ratio
    )
    for group in plan.groups:
        assert group.after >= min(max(min_kept, 1), group.before)
        assert group.before - group.after <= max_ratio * group.before + 1e-9
        assert group.after % round_to == 0 or group.after == group.before


@pytest.mark.parametrize("wrong", [0, -0.1, 1.5])
def test_a_largest_share_that_is_none_is_refused(trace, scores, wrong):
    with pytest.raises(PlanError, match=r"max_ratio=.* is impossible"):
        prune.plan(trace, scores, ratio=0.5, max_ratio=wrong)


def test_a_largest_share_is_named_where_it_makes_a_budget_impossible(trace, scores):
    with pytest.raises(PlanError, match=r"at most 0\.2 of a group gone"):
        prune.plan(trace, scores, budget=prune.Budget(macs=0.2), max_ratio=0.2)
    assert prune.smallest_share(trace, 1, 1, 0.2) > 0.6
