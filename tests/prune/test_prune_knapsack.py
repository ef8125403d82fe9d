"""Widths by milliseconds: optimal on small cases, aligned by the staircase, joint with the other bounds."""

from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from compress import prune
from compress.errors import PlanError
from compress.prune import Budget
from compress.prune.allocation import Limits
from compress.prune.knapsack import (
    MOST_GROUPS,
    REST,
    Option,
    choose,
    dynamic,
    greedy,
    group_keys,
    lagrangian,
    options_of,
    worthwhile,
)


def worth(options, chosen):
    return sum(own[k].worth for own, k in zip(options, chosen, strict=True))


def ms(options, chosen):
    return sum(own[k].ms for own, k in zip(options, chosen, strict=True))


def brute_force(options, limit):
    """The most worth of every combination that fits."""
    fitting = [c for c in product(*(range(len(own)) for own in options)) if ms(options, c) <= limit + 1e-9 * limit]
    return max(worth(options, c) for c in fitting)


one_option = st.builds(Option, st.just(8), st.integers(1, 20).map(float), st.integers(0, 30).map(float))
some_groups = st.lists(st.lists(one_option, min_size=1, max_size=4), min_size=1, max_size=5)


@settings(max_examples=150, deadline=None)
@given(options=some_groups, more=st.integers(0, 40))
def test_dynamic_programming_is_optimal_and_the_others_fit(options, more):
    limit = sum(min(one.ms for one in own) for own in options) + more
    best = brute_force(options, limit)
    assert worth(options, dynamic(options, limit)) == best
    for way in (lagrangian, greedy, choose):
        chosen = way(options, limit)
        assert ms(options, chosen) <= limit and worth(options, chosen) <= best


def test_thinned_sums_stay_near_the_best(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    numbers = torch.rand(8, 4, 2, generator=generator).double()
    options = [[Option(8, float(a), float(b)) for a, b in own] for own in numbers]
    limit = sum(min(one.ms for one in own) for own in options) + 1.0
    best = brute_force(options, limit)
    monkeypatch.setattr("compress.prune.knapsack._MOST_STATES", 64)
    chosen = dynamic(options, limit)
    assert ms(options, chosen) <= limit and worth(options, chosen) >= 0.98 * best


def test_many_groups_get_a_price_that_is_nearly_optimal():
    generator = torch.Generator().manual_seed(1)
    numbers = torch.rand(MOST_GROUPS + 6, 5, 2, generator=generator).double().cumsum(1)
    options = [[Option(8, float(a), float(b)) for a, b in own] for own in numbers]
    limit = 0.6 * sum(own[-1].ms for own in options)
    assert choose(options, limit) == lagrangian(options, limit)
    assert ms(options, choose(options, limit)) <= limit
    assert worth(options, lagrangian(options, limit)) >= 0.999 * worth(options, dynamic(options, limit))


def test_the_best_is_not_always_what_is_greedy():
    options = [[Option(1, 0, 0), Option(2, 6, 60)], [Option(1, 0, 0), Option(2, 10, 90)]]
    assert dynamic(options, 10) == (0, 1) and worth(options, dynamic(options, 10)) == 90
    assert worth(options, greedy(options, 10)) <= 90


def test_what_does_not_fit_says_what_would():
    with pytest.raises(PlanError, match="4 ms is impossible: the groups take 5 ms at their fastest"):
        choose([[Option(1, 5.0, 1.0)]], 4.0)


def test_a_width_as_slow_as_a_wider_one_is_no_step():
    """37 channels that take longer than 48 are worth nothing; a tie goes to the wider one."""
    curve = ((64, 4.0), (48, 3.0), (37, 3.5), (32, 2.0), (24, 2.0), (16, 2.5), (8, 1.0))
    assert worthwhile(curve) == ((8, 1.0), (32, 2.0), (48, 3.0), (64, 4.0))


# --- plans


@pytest.fixture(scope="module")
def traced():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 64, 3), nn.ReLU(), nn.Conv2d(64, 5, 1))
    trace = prune.trace(net, torch.rand(2, 3, 8, 8))
    return net, trace, prune.score(trace, net, "l1")


def stairs(size, step, ms):
    """So many milliseconds for each begun step of channels."""
    return [(width, ms * -(-width // step)) for width in range(1, size + 1)]


def planned(traced, budget, steps, **limits):
    _, trace, scores = traced
    return prune.plan(trace, scores, budget=budget, steps=steps, **limits)


def widths(plan):
    return {group.name: group.after for group in plan.groups}


STEPS = {"0": stairs(32, 16, 1.0), "2": stairs(64, 8, 1.0), REST: [(0, 2.0)]}


def test_widths_are_those_of_each_groups_own_staircase(traced):
    net, trace, _ = traced
    assert group_keys(trace) == ("0", "2")
    plan = planned(traced, Budget(latency=0.5), STEPS, round_to=7)
    found = widths(plan)
    assert found["0"] in (16, 32) and found["2"] % 8 == 0
    assert 2.0 + found["0"] / 16 + found["2"] / 8 <= 0.5 * 12
    assert "steps" not in plan.to_json() and plan.asked["budget"] == {"latency": 0.5}
    prune.validate(net, plan)


def test_milliseconds_are_taken_as_they_are(traced):
    found = widths(planned(traced, Budget(latency="5 ms"), STEPS))
    assert 2.0 + found["0"] / 16 + found["2"] / 8 <= 5


def test_limits_hold_and_the_whole_share_cuts_nothing(traced):
    assert widths(planned(traced, Budget(latency=1.0), STEPS)) == {"0": 32, "2": 64}
    found = widths(planned(traced, Budget(latency=0.7), STEPS, min_kept=24))
    assert found["0"] == 32 and found["2"] >= 24


def test_other_bounds_hold_together_with_the_latency(traced):
    loose = planned(traced, Budget(latency=0.75), STEPS)
    joint = planned(traced, Budget(latency=0.75, macs=0.35, params=0.4), STEPS)
    assert loose.costs["macs_after"] > 0.35 * loose.costs["macs_before"]
    assert joint.costs["macs_after"] <= 0.35 * joint.costs["macs_before"]
    assert 2.0 + widths(joint)["0"] / 16 + widths(joint)["2"] / 8 <= 0.75 * 12


@pytest.mark.parametrize(
    ("budget", "said"),
    [
        (Budget(latency=0.2), r"0.2 of the dense latency is impossible: at least 4 of 12 ms .*0.334 or more"),
        (Budget(latency="1 ms"), "A latency of 1 ms is impossible"),
        (Budget(latency=0.9, macs=0.01), r"worth having these remain: macs 0\.\d+, not 0.01"),
    ],
)  # fmt: skip
def test_what_is_impossible_says_what_can_be_reached(traced, budget, said):
    with pytest.raises(PlanError, match=said):
        planned(traced, budget, STEPS)


def test_steps_that_do_not_fit_are_refused(traced):
    with pytest.raises(PlanError, match="no widths for the group '2' of 64"):
        planned(traced, Budget(latency=0.5), {"0": stairs(32, 16, 1.0)})
    with pytest.raises(PlanError, match="end at 48 channels, the group has 64"):
        planned(traced, Budget(latency=0.5), {**STEPS, "2": stairs(48, 8, 1.0)})
    with pytest.raises(PlanError, match="both or neither"):
        planned(traced, Budget(latency=0.5), None)
    with pytest.raises(PlanError, match="both or neither"):
        planned(traced, Budget(macs=0.5), STEPS)


def test_a_group_below_its_least_width_stays_whole(traced):
    _, trace, scores = traced
    options = options_of(trace, scores.numpy(), {"0": [(8, 1.0), (32, 2.0)], "2": [(64, 1.0)]}, Limits(min_kept=33))
    assert [[one.width for one in own] for own in options] == [[32], [64]]


@pytest.mark.parametrize("latency", [0, 1.5, "0 ms", "ms", "-1 ms", "1 s", "1e3 ms"])
def test_a_latency_is_a_share_or_milliseconds(latency):
    with pytest.raises(ValueError, match="latency"):
        Budget(latency=latency)
