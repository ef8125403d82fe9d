"""A recipe's sparse training: killed it goes on to the same network, and two processes find the same masks."""

import json
import socket
from pathlib import Path

import processes
import pytest
import torch
import yaml
from test_failures import RECIPE
from test_sparse_recipe import SHORT, SPARSE

from compress import sparse

pytestmark = pytest.mark.slow

CHILD = Path(__file__).with_name("sparse_child.py")
METHODS = {
    "gsm": {"method": "gsm", "ratio": 4},
    "gradual": {"method": "gradual", "ratio": 4},
    "dns": {"method": "dns", "c": 0.5},
    "iterative": {"method": "iterative", "ratio": 4, "rounds": 2},
    "dsd": {"method": "dsd", "ratio": 2},
    "ticket": {"method": "ticket", "ratio": 4},
}
SCALES = {"kind": "structures", "epochs": 2, "strength": 20.0}


def written(folder, method, **change):
    short = RECIPE | {"transfer": SHORT, "distill": SHORT | {"compare": []}, "sparse": SPARSE | METHODS[method]}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(short | change))
    return folder / "recipe.yaml"


def as_left(out):
    """What a run left of its sparse network, and what it says of it."""
    files = sorted(
        p for folder in ("sparse", "checkpoints/sparse", "pruned") for p in (out / folder).rglob("*.safetensors")
    )
    stages = json.loads((out / "ledger.json").read_text())["stages"]
    said = {s["name"]: (s["metrics"], s["training_flops"], s["notes"]) for s in stages}
    return {str(p.relative_to(out)): p.read_bytes() for p in files}, said


@pytest.mark.parametrize(
    ("method", "killed_in", "after"),
    [
        ("gsm", "sparse-gsm", 2),
        ("gradual", "sparse-gradual", 3),
        ("dns", "sparse-dns", 2),
        ("iterative", "sparse-round-2", 1),
        ("dsd", "sparse-", 5),
        ("ticket", "sparse-ticket", 1),
        ("gsm", "sparsify", 2),
    ],
)
def test_killed_in_the_middle_it_goes_on_to_the_same_network(tmp_path, command, method, killed_in, after):
    change = (
        {"prune": RECIPE["prune"] | {"criterion": "bn_scale", "sparsify": SCALES}} if killed_in == "sparsify" else {}
    )
    recipe = written(tmp_path, method, **change)
    asked = ("run", recipe, "--trust", "test_failures", "--quiet", "--out")
    assert command(*asked, tmp_path / "whole")[0] == 0
    child = processes.started(recipe, tmp_path / "out", killed_in, after, script=CHILD, cwd=tmp_path)
    assert processes.finished(child).returncode == -9
    states = {p.name for p in (tmp_path / "out/checkpoints").iterdir()}
    assert any(killed_in in name for name in states)
    code, _, error = command(*asked, tmp_path / "out", "--resume")
    assert (code, error) == (0, "")
    files, said = as_left(tmp_path / "out")
    whole, of_whole = as_left(tmp_path / "whole")
    assert list(files) == list(whole)
    for name, content in whole.items():
        assert files[name] == content, name
    assert said == of_whole


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@pytest.mark.parametrize("method", ["gsm", "gradual", "dns"])
def test_two_processes_find_the_same_masks(tmp_path, method):
    prune = RECIPE["prune"] | {"criterion": "bn_scale", "sparsify": SCALES}
    recipe = written(tmp_path, method, prune=prune)
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2"}
    ranks = [
        processes.started(
            recipe,
            tmp_path / "out",
            "",
            0,
            script=CHILD,
            cwd=tmp_path,
            env=processes.ENVIRONMENT | where | dict.fromkeys(("RANK", "LOCAL_RANK"), str(rank)),
        )
        for rank in range(2)
    ]
    for child in map(processes.finished, ranks):
        assert child.returncode == 0, child.stderr[-2000:]
    first, second = (sparse.Masks.load(tmp_path / f"out.masks.{rank}") for rank in range(2))
    assert first.nonzeros < first.total
    assert all(torch.equal(mask, second.kept[name]) for name, mask in first.kept.items())
    weights = [torch.load(tmp_path / f"out.weights.{rank}", weights_only=True) for rank in range(2)]
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())
    assert first.broken(_network(weights[0])) == []


def _network(state):
    from compress.models.factory import build

    network = build(RECIPE["model"]["factory"], RECIPE["model"]["arguments"], 2)
    network.load_state_dict(state)
    return network
