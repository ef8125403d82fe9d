"""What is in doubt is timed again before it fails, and the best of several processes counts."""

import numpy as np
import pytest
from test_gate_sees import bench

from deploy.bench.again import gate_again, merged
from deploy.bench.conditions import Conditions
from deploy.bench.figures import About, ratio_of_best, records_of
from deploy.bench.gate import gate
from deploy.bench.sitting import Sitting
from deploy.bench.warmup import Warm

SLOW = {"ratio_of_best": 0.6, "best_interval": (0.59, 0.61), "min_ms": 0.6, "ratio_to_dense": 0.6,
        "ratio_interval": (0.59, 0.61), "by_sitting": ((0.6, 0.6),)}  # fmt: skip


def judged(records, baseline=None):
    """The verdict where each further sitting gives the next of ``records``."""
    left = iter(records[1:])
    return gate_again(records[0], lambda found: gate(found, baseline or bench()), lambda: next(left))


def test_a_process_that_was_slow_by_chance_passes_after_another():
    """One process in twenty lays out its memory so that int8 is half as slow again, even at best."""
    found = judged([bench(SLOW), bench()])
    assert (found.passed, found.repeats) == (True, 1)


def test_what_is_slow_each_time_fails_after_all_repeats():
    found = judged([bench(SLOW)] * 4)
    assert (found.passed, found.repeats) == (False, 3)
    assert not found.doubtful()


def test_what_no_timing_can_mend_is_not_timed_again():
    found = judged([bench(SLOW | {"accuracy": 0.5})])
    assert (found.passed, found.repeats) == (False, 0)
    found = gate_again(bench(SLOW), lambda one: gate(one, bench()), None)
    assert (found.passed, found.repeats, found.doubtful()) == (False, 0, True)


def test_of_two_sittings_best_times_and_the_better_percentiles_are_kept():
    both = merged(bench(SLOW), bench())
    int8 = both.records[1]
    assert int8.ratio_of_best == pytest.approx(0.4)
    assert (int8.min_ms, int8.ratio_to_dense, int8.p99_ms) == (0.4, 0.4, 0.6)
    assert int8.by_sitting == ((0.6, 0.6), (0.4, 0.4))
    assert int8.best_interval == (0.4, 0.6)
    assert int8.speedup == pytest.approx(2.5)


def sitting(dense, small):
    """Times of two engines, (rounds, runs) each, as one process's."""
    return Sitting(np.stack([dense, small]), (Warm(20, 1e-3, True),) * 2, Conditions(load=0.1, cores=2))


def test_records_of_several_processes_take_the_best_of_each():
    rng = np.random.default_rng(0)
    dense, small = 1 + 0.02 * rng.random((2, 50, 5)), 0.5 + 0.01 * rng.random((2, 50, 5))
    engines = [About("dense", "r", "fp32"), About("small", "r", "int8")]
    sittings = [sitting(dense[0], 1.5 * small[0]), sitting(dense[1], small[1])]
    first, second = records_of(engines, sittings, reference="dense", batch=4)
    assert first.speedup == 1
    assert second.ratio_of_best == pytest.approx(0.5, rel=0.01)
    assert second.ratio_to_dense == pytest.approx(0.5, rel=0.01)
    assert second.by_sitting[0] == pytest.approx((0.75, 0.75), rel=0.01)
    assert second.throughput == pytest.approx(4000 / second.median_ms)


def test_the_headline_is_the_smaller_of_the_two_speed_ups():
    """A busy machine printed 12x where it was 5.5x by best times."""
    dense, small = np.full((50, 5), 12.0), np.full((50, 5), 1.0)
    dense[7, 2] = 5.5  # the one moment that nothing else ran
    engines = [About("dense", "r", "fp32"), About("small", "r", "int8")]
    _, record = records_of(engines, [sitting(dense, small)], reference="dense", batch=1)
    assert record.ratio_to_dense == pytest.approx(1 / 12)
    assert record.speedup == pytest.approx(5.5)


def test_the_interval_of_best_times_holds_the_ratio_and_is_as_wide_as_chance_makes_it():
    rng = np.random.default_rng(1)
    inside, widths = 0, []
    for seed in range(40):
        times, base = (t * (1 + rng.gamma(1.0, 0.05, (60, 5))) for t in (0.5, 1.0))
        ratio, (low, high) = ratio_of_best([times], [base], seed)
        assert low <= ratio <= high
        inside += low <= 0.5 <= high
        widths.append(high / low - 1)
    assert inside >= 36
    assert np.median(widths) < 0.01


@pytest.mark.parametrize(
    ("said", "noisy"),
    [
        ({"load": 7.0, "cores": 2}, "a load of 7.0 on 2 cores"),
        ({"load": 1.0, "cores": 2, "processor_share": 0.5}, "the process had the processor for 50 % of the time"),
        ({"load": 1.0, "cores": 2, "processor_share": 1.6}, None),
        ({}, None),
    ],
)
def test_a_noisy_machine_is_said_to_be_one(said, noisy):
    assert Conditions(**said).noise() == noisy
