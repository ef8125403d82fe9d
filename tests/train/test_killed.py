"""A training that is killed goes on to the same weights, to the bit."""

import os
import random
import signal
import time
from pathlib import Path

import processes
import pytest
import torch
from safetensors.torch import load_file

pytestmark = pytest.mark.heavy

STEPS = 12 * 64 // 16  # of kill_child
CHILD = Path(__file__).with_name("kill_child.py")


def start(folder):
    return processes.started(folder, cwd=folder, script=CHILD)


def finished(folder):
    child = processes.finished(start(folder))
    assert child.returncode == 0, child.stderr
    return load_file(folder / "weights.safetensors")


def steps(folder):
    file = folder / "steps"
    return int(file.read_text() or 0) if file.exists() else 0


def killed(folder, share, moment):
    """Kills it so many seconds after a share of the steps that are left; whether it was still at work.

    By steps, for how many a second makes is the processor's affair; the moment lets a kill fall into a step.
    """
    before, begun = steps(folder), time.monotonic()
    child, aim = start(folder), before + max(1, round(share * (STEPS - before)))
    while steps(folder) < aim and child.poll() is None and time.monotonic() - begun < 120:
        time.sleep(0.001)
    time.sleep(moment)
    at_work = child.poll() is None
    child.send_signal(signal.SIGKILL)
    child.communicate()
    return at_work


@pytest.mark.parametrize("kills", [3, pytest.param(30, marks=pytest.mark.zoo(part="light"))])
@pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL")
def test_killed_and_resumed_it_is_the_run_in_one_piece(tmp_path, kills):
    whole = tmp_path / "whole"
    whole.mkdir()
    expected = finished(whole)
    draw, hits, folder = random.Random(kills), 0, None
    for number in range(kills):
        if folder is None or (folder / "weights.safetensors").exists():
            folder = tmp_path / f"run-{number}"
            folder.mkdir()
        hits += killed(folder, draw.uniform(0, 0.6), draw.uniform(0, 0.02))
    assert hits >= kills // 2, "most kills meet a process at work"
    for run in tmp_path.glob("run-*"):
        found = load_file(run / "weights.safetensors") if (run / "weights.safetensors").exists() else finished(run)
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
        assert not list(run.glob(".*.tmp"))
