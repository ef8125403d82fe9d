"""Two processes on the CPU train as one does."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from compress.errors import RecipeError
from compress.recipe import load_recipe
from compress.run import run
from compress.ui import Ui

CHILD = Path(__file__).with_name("ddp_child.py")
RECIPES = Path(__file__).parents[2] / "recipes"


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def started(out, kind, ranks):
    """Starts `ranks` processes as torchrun would, and gives the weights of each."""
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(ranks)}
    children = [
        subprocess.Popen(
            [sys.executable, CHILD, out, kind],
            env={**os.environ, **(where if ranks > 1 else {}), **dict.fromkeys(("RANK", "LOCAL_RANK"), str(rank))},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        for rank in range(ranks)
    ]
    for child in children:
        _, said = child.communicate(timeout=300)
        assert child.returncode == 0, said.decode()[-2000:]
    return [load_file(f"{out}.{rank}.safetensors") for rank in range(ranks)]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["group", "frozen"])
def test_two_processes_follow_one_with_the_same_batch(tmp_path, kind):
    (alone,) = started(tmp_path / "alone", kind, 1)
    first, second = started(tmp_path / "two", kind, 2)
    for name, tensor in alone.items():
        assert torch.equal(first[name], second[name]), name
        torch.testing.assert_close(first[name], tensor, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_with_live_statistics_both_ranks_end_with_the_same_weights(tmp_path):
    first, second = started(tmp_path / "live", "live", 2)
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


def test_a_run_under_torchrun_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RecipeError, match="torchrun started 2"):
        run(load_recipe(RECIPES / "digits.yaml"), tmp_path / "run", Ui.choose(quiet=True))
    assert not (tmp_path / "run").exists()
