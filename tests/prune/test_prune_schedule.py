"""How much is left after each round, by schedule."""

import itertools

import pytest

from compress.prune.schedule import left_after


@pytest.mark.parametrize("schedule", ["linear", "cubic", "exponential"])
@pytest.mark.parametrize("rounds", [1, 3, 7])
def test_every_schedule_falls_to_its_target(schedule, rounds):
    left = [left_after(turn, rounds, 0.4, schedule) for turn in range(rounds + 1)]
    assert left[0] == pytest.approx(1)
    assert left[-1] == pytest.approx(0.4)
    assert all(after < before for before, after in itertools.pairwise(left))


def test_the_steps_of_each_schedule():
    def steps(schedule):
        left = [left_after(turn, 4, 0.2, schedule) for turn in range(5)]
        return list(itertools.pairwise(left))

    assert [before - after for before, after in steps("linear")] == pytest.approx([0.2] * 4)
    assert [after / before for before, after in steps("exponential")] == pytest.approx([0.2**0.25] * 4)
    # (1 - t)^3 at quarters: 27, 8, 1 and 0 of 64.
    assert [after for _, after in steps("cubic")] == pytest.approx([0.2 + 0.8 * k / 64 for k in (27, 8, 1, 0)])
