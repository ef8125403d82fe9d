"""A latency in a recipe: through real files with planted times, refused before training, replaced from outside."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from compress import prune
from compress.errors import RecipeError
from compress.models.cifar_resnet import cifar_resnet
from compress.recipe.loading import load_recipe
from compress.run import latency
from compress.run.latency import LatencyJob, after_training, check_latency, reached, within_latency
from compress.run.probes import write_probe
from compress.run.tracing import traced
from deploy.latency.layers import LayerTime
from deploy.latency.profile import Timing
from deploy.latency.table import Table
from deploy.onnx.wire_graph import parse_graph
from deploy.report.latency import render_latency

EXAMPLE = torch.rand(8, 1, 32, 32)


class Planted:
    """A machine on which a file takes a millisecond for every thousand weights, and a whole network one more."""

    def __init__(self):
        self.weights = {}

    def __call__(self, jobs, how):
        found = []
        for path in (Path(job.path) for job in jobs):
            tensors = parse_graph(path.read_bytes()).tensors.values()
            whole = sum(int(np.prod(t.shape)) for t in tensors if len(t.shape) > 1)
            ms = self.weights[path.stem] / 1000 if path.stem in self.weights else whole / 1000 + 1.0
            found.append(Timing(path=str(path), ms=ms, processes=(ms,) * 3, load=(0.1,)))
        return found


@pytest.fixture
def job(monkeypatch, tmp_path):
    """What a recipe with a latency asks for, on a machine that is planted."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    machine = Planted()

    def noted(probe, path):
        machine.weights[path.stem] = probe.inputs * probe.outputs * max(1, int(np.prod(probe.layer.kernel)))
        write_probe(probe, path)

    monkeypatch.setattr("compress.run.filling.write_probe", noted)

    def make(*overrides):
        recipe = load_recipe("recipes/digits.yaml", ["deploy.ship=fp32", "prune.min_kept=4", *overrides])
        return LatencyJob(recipe, "classification", EXAMPLE, list(EXAMPLE[:2].numpy()), machine)

    return make


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return cifar_resnet(8, 16, in_channels=1)


class Target:
    """Data of which only the size is asked for."""

    task = "classification"

    @staticmethod
    def example(count):
        return EXAMPLE[:count]


@pytest.mark.heavy
def test_a_recipe_with_a_latency_is_cut_to_it(job, network, tmp_path):
    made = job("prune.budget.latency=0.5")
    trace = traced(made.recipe, network, EXAMPLE, "classification")
    scores = prune.score(trace, network, "l1")
    found, said = within_latency(made, (network, network), trace, scores)
    assert 0.5 * 0.95 <= found.reading.share <= 0.5 * 1.05
    assert "0.500 asked for" in said and found.plan.costs["macs_after"] < found.plan.costs["macs_before"]
    assert latency.cache_path() == tmp_path / "niwaki/latency.json"
    assert Table.read(latency.cache_path()).entries
    two = job("prune.budget.latency=0.5", "prune.rounds=2")
    half, _ = within_latency(two, (network, network), trace, scores, 1)
    assert half.asked == 0.75


@pytest.mark.heavy
def test_an_impossible_latency_is_refused_before_any_training(job, network):
    made = job("prune.budget.latency=0.05", "prune.min_kept=12")
    trace = traced(made.recipe, network, EXAMPLE, "classification")
    said = r"prune.budget: A latency of 0.05 is impossible here: .*ask for latency: 0\.\d+"
    with pytest.raises(RecipeError, match=said):
        check_latency(made.recipe, Target, network, trace, made.timer)
    possible = job("prune.budget.latency=0.9")
    check_latency(possible.recipe, Target, network, trace, possible.timer)


def test_what_ships_is_measured_again_after_training(tmp_path, job):
    times = {"dense.onnx": 4.0, "student.onnx": 2.2}

    def timer(jobs, how):
        assert (how.runtime, how.threads, how.agree) == ("openvino", 1, 0.03)
        return [Timing(path=j.path, ms=times[Path(j.path).name], processes=(1.0,) * 3) for j in jobs]

    made = replace(job("prune.budget.latency=0.5", "deploy.runtime=openvino"), timer=timer)
    found = reached(made, tmp_path / "student.onnx", tmp_path / "dense.onnx")
    assert found["share"] == pytest.approx(0.55) and "10 % above it" in found["said"]
    times["student.onnx"] = 2.05
    assert "within 5 % of it" in reached(made, tmp_path / "student.onnx", tmp_path / "dense.onnx")["said"]


@pytest.mark.heavy
def test_the_report_says_where_the_time_goes(tmp_path, job, network):
    made = job("prune.budget.latency=0.5")
    small = made.write(network, tmp_path / "student.onnx")

    def timer(jobs, how):
        layers = LayerTime("a", "Conv", "Conv", "fp32", 1.0, ((1, 16, 8, 8), (16, 1, 3, 3)), ((1, 16, 8, 8),)).to_dict()
        return [Timing(path=j.path, ms=2.0, processes=(2.0,), layers=(layers,)) for j in jobs]

    found = after_training(replace(made, timer=timer), network, small)
    (row,) = found["explained"]["rows"]
    assert row["before_ms"] == row["after_ms"] == 1.0 and found["explained"]["before"] == "dense"
    page = render_latency({"latency": found})
    assert "Where the time goes" in page and "asked for 0.500" in page
    assert render_latency({}) == ""


# --- recipes


@pytest.mark.parametrize(
    ("overrides", "bounds"),
    [
        (["prune.budget.latency=0.5"], {"latency": 0.5}),
        (["prune.budget.latency=3.5 ms"], {"latency": "3.5 ms"}),
        (["prune.budget.macs=0.4"], {"macs": 0.4}),
        (["prune.budget.latency=0.5", "prune.budget.macs=0.4"], {"latency": 0.5, "macs": 0.4}),
        (["prune.budget={latency: 0.5, params: 0.4}"], {"latency": 0.5, "params": 0.4}),
        (["prune.budget.params=0.3", "prune.budget.precision=int8"], {"params": 0.3, "precision": "int8"}),
        (["prune.budget.precision=int8"], {"macs": 0.25, "precision": "int8"}),
    ],
)
def test_a_bound_from_outside_takes_the_place_of_the_files_other(overrides, bounds):
    budget = load_recipe("recipes/digits.yaml", overrides).prune.budget
    assert budget.model_dump(exclude_defaults=True) == bounds


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["prune.budget.latency=0.5", "deploy.ship=fp16"], "fp32 or int8, not fp16"),
        (["prune.latency_table=t.json"], "latency_table holds the times"),
        (["prune.budget={latency: 0.5, macs: 0.5}", "prune.rounds=2"], "macs or latency alone"),
        (["prune.budget.latency=1.5"], "prune.budget.latency"),
    ],
)
def test_what_makes_no_sense_is_refused(overrides, said):
    with pytest.raises(RecipeError, match=said):
        load_recipe("recipes/digits.yaml", overrides)


def test_rounds_go_with_a_latency():
    assert load_recipe("recipes/digits.yaml", ["prune.budget.latency=0.5", "prune.rounds=3"]).prune.rounds == 3
