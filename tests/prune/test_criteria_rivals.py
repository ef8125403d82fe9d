"""The study's rounds with Torch-Pruning, its transformer and its sensitivity: fair, resumable, counted once."""

import json
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

from benchmarks.criteria import cells, cifar, rivals, truth, vit
from benchmarks.criteria.__main__ import app
from benchmarks.criteria.cells import read_lines
from benchmarks.criteria.subjects import Subject
from compress import prune
from compress.errors import DataError
from compress.models.cifar_resnet import cifar_resnet
from compress.prune import CRITERIA, Sensitivity


@pytest.fixture
def home(monkeypatch):
    """Noise in the place of CIFAR-10, with a small ResNet's own answers for labels."""
    torch.manual_seed(0)
    network = cifar_resnet(8, 8, shortcut="pad").eval()
    images = torch.randn(256, 3, 32, 32)
    with torch.no_grad():
        labels = network(images).argmax(1)
    own = cifar.Images(images, labels)
    monkeypatch.setattr(cifar, "network", lambda depth: network)
    monkeypatch.setattr(cifar, "test", lambda: own)
    monkeypatch.setattr(cifar, "calibration", lambda count, seed: cifar.Images(images[:64], labels[:64]))
    monkeypatch.setattr(cifar, "training", lambda first, end: own)
    # The commands are processes of their own; here their settings would outlive them.
    monkeypatch.setattr("os.nice", lambda by: 0)
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    return network, own


def test_a_selection_is_the_padded_shortcut_and_no_parameter(home):
    network, own = home
    with torch.no_grad():
        for _, parameter in network.named_parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    same = rivals.with_selections(network, own.images[:4])
    selections = [m for m in same.modules() if isinstance(m, rivals.Selected)]
    assert [tuple(m.selection.shape[:2]) for m in selections] == [(16, 8), (32, 16)]
    assert sum(p.numel() for p in same.parameters()) == sum(p.numel() for p in network.parameters())
    assert rivals.macs(same) == rivals.macs(network)
    with torch.no_grad():
        assert torch.equal(same(own.images), network(own.images))


def test_macs_are_those_of_the_trace(home):
    network, own = home
    trace = prune.trace(network, own.images[:1])
    assert rivals.macs(network) == trace.macs(np.ones(trace.units, dtype=bool))


def test_both_tools_meet_the_same_limit_and_are_tuned_alike(home, tmp_path):
    pytest.importorskip("torch_pruning", reason="Torch-Pruning is not installed.")
    network, own = home
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    file = tmp_path / "rivals.jsonl"
    asked = ["rivals", "8", "--seed", "0", "--results", str(file)]
    assert CliRunner().invoke(app, asked).exit_code == 0
    assert CliRunner().invoke(app, asked).exit_code == 0
    lines = read_lines(file)
    assert [line["method"] for line in lines] == list(rivals.METHODS)
    for line in lines:
        assert 0.3 < line["share"] <= 1 / 2.1
        assert line["dense"] == line["judged"] == len(own.labels)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    text = rivals.table(lines)
    assert "dense 100.0 %" in text
    assert all(f"| {method} |" in text for method in rivals.METHODS)


def test_an_unknown_rival_is_refused(home, tmp_path):
    found = CliRunner().invoke(app, ["rivals", "8", "--only", "tp l7", "--results", str(tmp_path / "r.jsonl")])
    assert found.exit_code == 2
    assert not (tmp_path / "r.jsonl").exists()


def test_a_transformer_killed_between_epochs_ends_with_the_same_weights(home, tmp_path, monkeypatch):
    monkeypatch.setattr(vit, "BATCH", 64)
    whole, killed = tmp_path / "whole.safetensors", tmp_path / "killed.safetensors"
    vit.train(3, whole)
    epoch = vit._epoch

    def stopping(model: nn.Module, *given: object) -> float:
        if given[2] == 2:
            raise KeyboardInterrupt
        return epoch(model, *given)

    monkeypatch.setattr(vit, "_epoch", stopping)
    with pytest.raises(KeyboardInterrupt):
        vit.train(3, killed)
    with pytest.raises(DataError, match="no vision transformer trained to the end"):
        vit.network(killed)
    monkeypatch.setattr(vit, "_epoch", epoch)
    vit.train(3, killed)
    ends = [vit.network(file).state_dict() for file in (whole, killed)]
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])
    with pytest.raises(DataError, match="is of 3 epochs, not 4"):
        vit.train(4, killed)


def test_the_transformer_can_be_cut_and_solved(home):
    _, own = home
    torch.manual_seed(0)
    network = vit.vit().eval()
    images = list(own.images[:96].split(32))
    trace = prune.trace(network, images[0][:2])
    scores = prune.score(trace, network, "kfac", data=images)
    plan = prune.plan(trace, scores, budget=prune.Budget(macs=0.5), max_ratio=0.95)
    cut = prune.apply(network, plan)
    prune.check(network, plan, images[0][:2])
    _, report = prune.reconstruct(network, cut, plan, images)
    assert report.after <= report.before


def test_every_criterion_is_held_against_what_cutting_cost(home, tmp_path, monkeypatch):
    network, own = home

    def judged(split: str) -> Iterator[tuple[Tensor, Tensor]]:
        yield own.images[:64], own.labels[:64]

    small = Subject("small", network, lambda count, seed: [(own.images[:count], None)], judged)
    monkeypatch.setattr(truth, "subject", lambda name: small)
    file = truth.measure("small", 32, tmp_path, lambda _: None)
    found = Sensitivity.model_validate_json(file.read_text())
    assert set(found.correlations) == set(CRITERIA)
    assert found.accuracy == 1.0
    assert file.with_suffix(".svg").read_text().count("<svg") == 1
    shown = truth.table(tmp_path).splitlines()
    assert shown[2] == "| criterion | small |"
    values = [float(row.split("|")[2]) for row in shown[4:] if row.split("|")[2].strip()]
    assert values == sorted(values, reverse=True)


def test_cells_of_before_are_known_and_other_norms_are_new():
    plain = cells.Cell("small", "l1")
    settings = {**vars(plain)}
    del settings["normalize"]
    assert plain.key == cells.hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]
    assert cells.Cell("small", "l1", normalize="max").key != plain.key
