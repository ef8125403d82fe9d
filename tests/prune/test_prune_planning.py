"""What stays: scores against a slow reference, budgets met and not overdone, bounds respected."""

import numpy as np
import pytest
import torch
from prune_nets import conv, image, sizes
from pydantic import ValidationError
from torch import nn

from compress import prune
from compress.errors import PlanError
from compress.models.cifar_resnet import cifar_resnet


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


@pytest.mark.parametrize(("criterion", "p"), [("l1", 1), ("l2", 2)])
def test_a_score_is_the_norm_of_a_units_filters(net, trace, criterion, p):
    """One element at a time: every matrix or kernel row that makes a unit adds to it."""
    parameters = dict(net.named_parameters())
    expected = [0.0] * trace.units
    for (name, dim), units in trace.slots.items():
        if trace.roles[name, dim] == "producer" and name in parameters and parameters[name].dim() > 1:
            for index, unit in enumerate(units):
                row = parameters[name].select(dim, index).detach().double()
                expected[unit] += float((row.abs() ** p).sum())
    expected = torch.tensor(expected, dtype=torch.float64) ** (1 / p)
    found = prune.score(trace, net, criterion, normalize="none")
    assert found.shape == (trace.units,)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)


def test_random_scores_depend_on_the_seed_alone(net, trace):
    first, again, other = (prune.score(trace, net, "random", seed=s) for s in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_an_unknown_criterion_names_those_there_are(net, trace):
    with pytest.raises(PlanError, match=r"No criterion is called 'magic'; there are .*l1.*l2.*random"):
        prune.score(trace, net, "magic")


@pytest.mark.parametrize("share", [0.3, 0.5, 0.8])
@pytest.mark.parametrize("scope", ["global", "group"])
@pytest.mark.parametrize(("round_to", "min_kept"), [(1, 1), (4, 4)])
def test_a_budget_is_met_and_not_overdone(trace, scores, share, scope, round_to, min_kept):
    settings = {"scope": scope, "round_to": round_to, "min_kept": min_kept}
    plan = prune.plan(trace, scores, budget=prune.Budget(macs=share), **settings)
    assert plan.costs["macs_after"] <= share * plan.costs["macs_before"]
    gone = plan.costs["units_before"] - plan.costs["units_after"]
    free = sum(len(g.units) for g in trace.groups)
    # Of all the plans that a ratio can give, none within the budget keeps more.
    for fewer in range(free):
        other = prune.plan(trace, scores, ratio=fewer / free, **settings)
        if other.costs["macs_after"] <= share * plan.costs["macs_before"]:
            assert other.costs["macs_after"] == plan.costs["macs_after"]
            assert other.costs["units_before"] - other.costs["units_after"] == gone
            break


@pytest.mark.parametrize("round_to", [1, 3, 8])
@pytest.mark.parametrize("min_kept", [1, 5, 8])
def test_rounding_and_the_minimum_are_respected(trace, scores, round_to, min_kept):
    plan = prune.plan(trace, scores, ratio=0.95, round_to=round_to, min_kept=min_kept)
    assert any(g.after < g.before for g in plan.groups)
    for group in plan.groups:
        assert group.after >= min(min_kept, group.before)
        assert group.after % round_to == 0 or group.after == group.before


def test_the_weakest_units_of_a_group_go(trace, scores):
    plan = prune.plan(trace, scores, ratio=0.5)
    for group in trace.groups:
        slot = next(s for s in group.slots if trace.roles[s] == "producer")
        kept = set(trace.slots[slot][plan.kept_indices(slot, len(trace.slots[slot]))])
        stay = [float(scores[u]) for u in group.units if u in kept]
        gone = [float(scores[u]) for u in group.units if u not in kept]
        assert not gone or max(gone) <= min(stay)


def test_scopes_differ_where_groups_do():
    """Global ranks relative to a group's mean; group takes the same share everywhere."""
    net = nn.Sequential(conv(3, 8), nn.ReLU(), conv(8, 8), nn.ReLU(), conv(8, 4))
    with torch.no_grad():
        net[0].weight[:6].mul_(1e-3)
    trace = prune.trace(net, image())
    scores = prune.score(trace, net)
    assert [g.after for g in prune.plan(trace, scores, ratio=0.5, scope="group").groups] == [4, 4]
    spread = [g.after for g in prune.plan(trace, scores, ratio=0.375, scope="global").groups]
    assert spread == [2, 8]


def test_scaling_a_layer_changes_no_global_ranking(net, trace, scores):
    scaled = scores.clone()
    scaled[torch.from_numpy(trace.groups[0].units)] *= 1000
    one, other = (prune.plan(trace, prune.normalized(trace, s, "mean"), ratio=0.4) for s in (scores, scaled))
    assert one.slots == other.slots


def test_an_impossible_budget_says_what_is_possible(trace, scores):
    with pytest.raises(PlanError, match="impossible") as caught:
        prune.plan(trace, scores, budget=prune.Budget(macs=0.01), min_kept=8)
    floor = float(str(caught.value).split("ask for macs: ")[1].split(" ")[0])
    assert floor == pytest.approx(prune.smallest_share(trace, 1, 8), abs=1e-3)
    plan = prune.plan(trace, scores, budget=prune.Budget(macs=floor), min_kept=8)
    assert plan.costs["macs_after"] <= floor * plan.costs["macs_before"]


def test_protecting_by_pattern_keeps_those_channels(net, trace):
    held = prune.protect(trace, ["layer1.*"])
    assert len(held.groups) < len(trace.groups)
    plan = prune.plan(held, prune.score(held, net), ratio=0.8)
    assert not any(key.startswith("layer1.") for key in plan.slots)
    assert "the user's choice" in held.protected.values()
    assert plan.slots
    prune.check(net, plan, image(8, 16))


def test_protecting_all_leaves_nothing_to_plan(net, trace):
    held = prune.protect(trace, ["*"])
    assert held.groups == ()
    with pytest.raises(PlanError, match="No channel of this network is free to go"):
        prune.plan(held, prune.score(held, net), ratio=0.5)


@pytest.mark.parametrize("ratio", [-0.1, 1.0, 1.5, float("nan")])
def test_an_impossible_ratio_is_refused(trace, scores, ratio):
    with pytest.raises(PlanError, match=r"ratio of .* is impossible"):
        prune.plan(trace, scores, ratio=ratio)


def test_budget_and_ratio_exclude_each_other(trace, scores):
    with pytest.raises(PlanError, match="either a budget or a ratio"):
        prune.plan(trace, scores)
    with pytest.raises(PlanError, match="either a budget or a ratio"):
        prune.plan(trace, scores, ratio=0.5, budget=prune.Budget(macs=0.5))
    with pytest.raises(PlanError, match="A latency is planned from steps"):
        prune.plan(trace, scores, budget=prune.Budget(latency=0.5))


def test_scores_of_another_trace_are_refused(trace, scores):
    with pytest.raises(PlanError, match="scores have shape"):
        prune.plan(trace, scores[:-1], ratio=0.5)


@pytest.mark.parametrize("given", [{}, {"macs": 0}, {"macs": 1.1}, {"flops": 0.5}])
def test_a_budget_is_one_share(given):
    with pytest.raises(ValidationError):
        prune.Budget(**given)


def test_a_plan_says_what_was_asked_for_and_what_it_costs(trace, scores):
    plan = prune.plan(trace, scores, budget=prune.Budget(macs=0.5), round_to=4, asked={"criterion": "l1"})
    assert plan.asked == {
        "scope": "global", "round_to": 4, "min_kept": 1, "ratio": None, "criterion": "l1", "budget": {"macs": 0.5}
    }  # fmt: skip
    assert plan.costs["units_not_preserving"] == 0
    assert plan.protected["conv1.weight:1"] == "graph input"
    assert [g.before for g in plan.groups] == np.concatenate([np.atleast_1d(n) for n in sizes(trace).values()]).tolist()
    assert prune.Plan.from_json(plan.to_json()) == plan


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"format": "niwaki-plan-2"}', "nonsense"])
def test_what_is_no_plan_is_refused_in_a_sentence(text):
    with pytest.raises(PlanError, match="Not a pruning plan") as caught:
        prune.Plan.from_json(text)
    assert "\n" not in str(caught.value)


def test_a_plan_and_a_trace_are_short_in_a_notebook():
    network, images = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 5, 1)).eval(), torch.randn(1, 3, 4, 4)
    trace = prune.trace(network, images)
    plan = prune.plan(trace, prune.score(trace, network, "l1"), ratio=0.5, scope="group")
    assert repr(trace) == "<Trace: 8 of 16 channels may go, in 1 groups>"
    assert repr(plan) == "<Plan: cut of 3 parameter dimensions in 1 groups, 0.0 of 0.0 M MACs>"
    assert str(plan).splitlines()[1:] == ["  0      4 of 8"]
