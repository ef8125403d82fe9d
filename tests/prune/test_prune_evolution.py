"""The evolutionary baseline: within its budget, the same for a seed, better by generation, and the proxy by hand."""

import numpy as np
import pytest
import torch
from torch import nn

from compress import prune
from compress.errors import PlanError
from compress.prune.allocation import Limits
from compress.prune.evolution import Evolution, evolve, recalibrated

SMALL = Evolution(population=6, generations=12, parents=2, seed=3)


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4),
    ).eval()  # fmt: skip


@pytest.fixture(scope="module")
def trace(net):
    return prune.trace(net, torch.rand(2, 3, 8, 8))


def widths(small):
    return [small[k].out_channels for k in (0, 3, 6)]


def search(net, trace, fitness, asked=SMALL, share=0.5, **more):
    return evolve(trace, prune.score(trace, net), net, fitness, budget=prune.Budget(macs=share), search=asked, **more)


def test_it_finds_what_its_fitness_wants_within_the_budget(net, trace):
    told = []
    # Wants the last group whole and does not care for the others.
    found = search(net, trace, lambda small: small[6].out_channels, advance=lambda *said: told.append(said[:2]))
    small = prune.apply(net, found.plan)
    assert found.plan.costs["macs_after"] <= 0.5 * found.plan.costs["macs_before"]
    assert small[6].out_channels == found.fitness > 12
    assert len(found.history) == SMALL.generations + 1
    assert list(found.history) == sorted(found.history)
    assert found.history[-1] > found.history[0]
    assert told == [(n, found.tried) for n in range(1, found.tried + 1)]
    # What the seed draws is what it draws.
    assert search(net, trace, lambda small: small[6].out_channels) == found


def test_no_candidate_is_larger_than_the_budget_or_much_smaller(net, trace):
    shares = []

    def fitness(small):
        kept = widths(small)
        macs = 64 * 9 * (3 * kept[0] + kept[0] * kept[1] + kept[1] * kept[2]) + 4 * kept[2]
        shares.append(macs / (64 * 9 * (3 * 16 + 2 * 256) + 4 * 16))
        return 0.0

    found = search(net, trace, fitness)
    assert max(shares) <= 0.5
    # One more channel of a group is at most 11 % of the MACs.
    assert min(shares) > 0.5 - 0.12
    # Of equals the first: the same ratio for all.
    kept = widths(prune.apply(net, found.plan))
    assert max(kept) == min(kept)


def test_limits_hold(net, trace):
    found = search(net, trace, lambda small: -small[3].out_channels, limits=Limits(round_to=4, min_kept=8))
    assert all(width % 4 == 0 and width >= 8 for width in widths(prune.apply(net, found.plan)))
    assert widths(prune.apply(net, found.plan))[1] == 8


def test_it_refuses_what_cannot_be(net, trace):
    with pytest.raises(PlanError, match="cannot be met"):
        search(net, trace, lambda small: 0.0, limits=Limits(min_kept=15))
    with pytest.raises(PlanError, match="needs a budget that can be computed"):
        evolve(trace, prune.score(trace, net), net, lambda small: 0.0, budget=prune.Budget(max_drop=1.0))
    with pytest.raises(PlanError, match="nothing to search"):
        search(net, prune.protect(trace, "*"), lambda small: 0.0)
    with pytest.raises(PlanError, match="at least 2 parents"):
        Evolution(population=4, parents=4)


def test_statistics_taken_anew_are_those_of_the_batches(net):
    data = [torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(n)) for n in range(3)]
    fresh = recalibrated(prune.apply(net, prune.plan(*_scored(net), ratio=0.25)), data)
    assert not any(module.training for module in fresh.modules())
    with torch.no_grad():
        means = [fresh[0](images).mean((0, 2, 3)) for images in data]
    torch.testing.assert_close(fresh[1].running_mean, torch.stack(means).mean(0))
    assert fresh[1].momentum == 0.1
    with pytest.raises(PlanError, match="at least one batch"):
        recalibrated(fresh, [])


def _scored(net):
    trace = prune.trace(net, torch.rand(2, 3, 8, 8))
    return trace, prune.score(trace, net)


def test_the_proxy_tells_a_broken_network_from_a_whole_one(net):
    images = torch.rand(32, 3, 8, 8, generator=torch.Generator().manual_seed(5))
    broken = prune.apply(net, prune.plan(*_scored(net), ratio=0.0))
    with torch.no_grad():
        broken[1].running_mean += 3
        whole = recalibrated(prune.apply(net, prune.plan(*_scored(net), ratio=0.0)), [images])
        wanted, wrong = whole(images), broken(images)
        mended = recalibrated(broken, [images])(images)
    assert np.allclose(mended, wanted, atol=1e-6)
    assert not np.allclose(wrong, wanted, atol=1e-2)
