"""What a log says while a stage goes on."""

import io

import pytest
from rich.console import Console

from compress.run import progress
from compress.run.progress import PAUSE, Ui


@pytest.fixture
def clock(monkeypatch):
    class Clock:
        now = 1000.0

    monkeypatch.setattr(progress.time, "monotonic", lambda: Clock.now)
    return Clock


def said_by(style, steps, clock):
    """The lines that a stage prints between its first and its last, of steps as (seconds, done, total, text)."""
    console = Console(file=io.StringIO(), width=40)
    with Ui(console, style).stage(3, 7, "Train the teacher") as view:
        for seconds, *step in steps:
            clock.now += seconds
            view.advance(*step)
    return [line.strip() for line in console.file.getvalue().splitlines()][1:-1]


def test_a_log_hears_once_a_minute_how_far_a_stage_is_and_when_it_ends(clock):
    steps = [(1.0, done, 600, f"loss {600 - done}") for done in range(1, 151)]
    assert PAUSE == 60
    assert said_by("lines", steps, clock) == [
        "60 of 600  loss 540  about 9 min left",
        "120 of 600  loss 480  about 8 min left",
    ]


def test_a_short_stage_says_nothing_in_between(clock):
    assert said_by("lines", [(0.5, done, 100, "loss") for done in range(100)], clock) == []


def test_what_was_done_before_a_resumption_makes_no_step_faster(clock):
    steps = [(2.0, done, 600, "") for done in range(501, 540)]
    # 29 steps in 58 seconds after the first one.
    assert said_by("lines", steps, clock) == ["530 of 600  about 2 min left"]


def test_the_next_piece_of_a_stage_counts_from_its_own_start(clock):
    steps = [(50.0, 10, 10, "scoring"), (1.0, 0, 40, "epoch"), *[(5.0, done, 40, "epoch") for done in range(1, 4)]]
    assert said_by("lines", steps, clock) == ["2 of 40  epoch  about 3 min left"]


def test_so_does_a_second_training_of_as_many_steps(clock):
    steps = [(0.5, done, 40, "epoch") for done in range(1, 41)] + [(5.0, done, 40, "epoch") for done in range(1, 10)]
    # 7 steps in 35 seconds, and 32 are left.
    assert said_by("lines", steps, clock) == ["8 of 40  epoch  about 3 min left"]


def test_what_cannot_be_counted_is_named(clock):
    assert said_by("lines", [(70.0, 0, 1, "proving the cut")], clock) == ["proving the cut"]


def test_each_piece_of_work_is_named_when_it_begins(clock):
    steps = [(1.0, 0, 1, "scoring"), (1.0, 0, 1, "scoring"), (1.0, 3, 40, "epoch"), (1.0, 0, 1, "proving the cut")]
    assert said_by("lines", steps, clock) == ["scoring", "proving the cut"]


def test_quiet_says_nothing(clock):
    console = Console(file=io.StringIO())
    with Ui(console, "quiet").stage(1, 1, "Train") as view:
        clock.now += 200
        view.advance(1, 2, "loss")
    assert console.file.getvalue() == ""
