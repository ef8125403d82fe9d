"""Two processes on the CPU train as one does."""

import socket
from pathlib import Path

import processes
import pytest
import torch
from safetensors.torch import load_file

pytestmark = pytest.mark.heavy

CHILD = Path(__file__).with_name("ddp_child.py")
RANKS = Path(__file__).with_name("ranks_child.py")


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def started(out, kind, ranks):
    """Starts `ranks` processes as torchrun would, and gives the weights of each."""
    together(CHILD, out, kind, ranks)
    return [load_file(f"{out}.{rank}.safetensors") for rank in range(ranks)]


def together(script, out, kind, ranks):
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(ranks)}
    children = [
        processes.started(
            out,
            kind,
            script=script,
            cwd=out.parent,
            env=processes.ENVIRONMENT | (where if ranks > 1 else {}) | dict.fromkeys(("RANK", "LOCAL_RANK"), str(rank)),
        )
        for rank in range(ranks)
    ]
    for child in map(processes.finished, children):
        assert child.returncode == 0, child.stderr[-2000:]


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


@pytest.mark.slow
def test_processes_with_other_weights_are_found(tmp_path):
    assert outcomes(tmp_path, "other") == ["process 1 holds other weights"] * 2
    assert outcomes(tmp_path, "same") == ["fine"] * 2


@pytest.mark.slow
def test_what_one_process_does_reaches_all_and_so_does_its_failure(tmp_path):
    assert outcomes(tmp_path, "once") == ["told [1, 'two', None]"] * 2
    assert outcomes(tmp_path, "fails") == ["MissingError 3 the disk is full", "ElsewhereError 3 the disk is full"]


@pytest.mark.slow
def test_a_loss_that_one_process_finds_infinite_stops_all(tmp_path):
    assert outcomes(tmp_path, "finite") == ["True False"] * 2


def outcomes(folder, kind):
    """What each of two processes wrote of itself."""
    together(RANKS, folder / kind, kind, 2)
    return [Path(f"{folder / kind}.{rank}").read_text(encoding="utf-8") for rank in range(2)]
