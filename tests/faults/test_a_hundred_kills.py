"""A run that is killed a hundred times, in each of its stages, comes to what one in one piece does, to the bit."""

import json
import os
import random
import shutil
import signal
import time

import pytest
from fault_recipe import STAGES, ended, result, start

pytestmark = [pytest.mark.faults, pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL")]

KILLS = 100
PLACES = ("prepare", *STAGES, "report")


def by_calls(home, place, share, calls):
    """It ends itself at a call of a function, which is the same one on every machine."""
    done = ended(home, "kill_in", place, share, json.dumps(calls))
    return done.returncode == -signal.SIGKILL


def by_the_clock(home, place, share, seconds):
    """It is ended from outside, while a library may be at work on a file."""
    (home / "at").unlink(missing_ok=True)  # of the one before
    process = start(home, "mark_in", place)
    while not (home / "at").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.001)
    # Another stage may have taken its place.
    time.sleep(share * seconds.get((home / "at").read_text(), 0.5))
    at_work = process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.communicate()
    return at_work


def test_a_run_killed_a_hundred_times_is_the_run_in_one_piece(whole, expected, seconds, tmp_path, record_property):
    calls = {name: int(count) for name, count in map(str.split, (whole / "calls").read_text().splitlines())}
    draw, hits = random.Random(0), dict.fromkeys(PLACES, 0)
    killed = 0
    for number in range(KILLS):
        place = PLACES[number * len(PLACES) // KILLS]
        # A stage that goes on from a checkpoint has less to do.
        share = 0.8 * draw.random() ** 2
        hit = (
            by_the_clock(tmp_path, place, share, seconds)
            if number % 3 == 2
            else by_calls(tmp_path, place, share, calls)
        )
        killed += hit
        # A stage that was done meanwhile gave its place to the next.
        hits[(tmp_path / "at").read_text()] += hit
    done = ended(tmp_path, "none")
    assert (done.returncode, done.stderr) == (0, "")
    assert result(tmp_path / "out") == expected
    assert killed == KILLS and min(hits.values()) >= 2, hits
    record_property("kills by stage", hits)
    print(hits)


def test_a_finished_stage_is_not_done_again(whole, tmp_path):
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    (tmp_path / "calls").unlink()
    done = ended(tmp_path, "count_in", "all")
    assert (done.returncode, done.stderr) == (0, "")
    assert [line.split()[0] for line in (tmp_path / "calls").read_text().splitlines()] == ["prepare"]
