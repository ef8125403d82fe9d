"""Accuracy as the budget, on networks whose accuracy is a function of their share of the MACs."""

import pytest
from torch import nn

from compress.errors import PlanError
from compress.prune.drop import TRIES, Judges, smallest_within_drop


class OfShare(nn.Module):
    def __init__(self, share):
        super().__init__()
        self.share = share


def search(accuracy, confirm=None, **how):
    told = []
    found = smallest_within_drop(
        OfShare(1.0),
        lambda budget: budget.macs,
        OfShare,
        Judges(lambda net: accuracy(net.share), lambda net: (confirm or accuracy)(net.share)),
        advance=lambda done, total, text: told.append((done, total)),
        **how,
    )
    return found, told


def test_the_smallest_within_the_drop_is_found_by_bisection():
    found, told = search(lambda share: 0.9 - 0.2 * (1 - share), floor=0.1, max_drop=5.0)
    # A drop of 5 points is reached at 75 %.
    assert found.share == pytest.approx(0.75, abs=0.9 / 2 ** (TRIES - 1))
    assert found.share >= 0.749
    assert found.drop == pytest.approx(20 * (1 - found.network.share), abs=1e-6)
    assert found.drop <= 5.0
    assert told == [(n, TRIES) for n in range(1, TRIES + 1)]


def test_where_the_floor_does_it_is_taken_at_once():
    found, told = search(lambda share: 0.9, floor=0.2, max_drop=1.0)
    assert found.share == 0.2
    assert len(told) == 1


def test_what_does_not_confirm_gives_way_to_the_next_larger():
    found, _ = search(
        lambda share: 0.9 - 0.2 * (1 - share), lambda share: 0.9 if share > 0.8 else 0.5, floor=0.1, max_drop=5.0
    )
    # Of those that the search let pass the largest is 77.5 %: half of the way to the whole network suffices.
    assert found.share == pytest.approx(0.8875)
    assert found.drop == 0


def test_none_within_the_drop_says_what_the_nearest_lost():
    with pytest.raises(PlanError, match=r"within 1 points .* the nearest lost 30\.0; allow max_drop: 30\.1"):
        search(lambda share: 0.9 if share == 1 else 0.6, floor=0.1, max_drop=1.0)
    with pytest.raises(PlanError, match=r"lost 40\.0"):
        search(lambda share: 0.9, lambda share: 0.9 if share == 1 else 0.5, floor=0.1, max_drop=1.0)
