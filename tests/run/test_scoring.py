"""A recipe's criterion and reconstruction: scored on the run's images, solved without labels, told in the ledger."""

import json

import pytest
import torch
import yaml
from torch import nn
from typer.testing import CliRunner

from compress import prune
from compress.cli.app import app
from compress.errors import RecipeError
from compress.recipe.loading import load_recipe
from compress.run.prepare import prepare
from compress.run.progress import StageView
from compress.run.scoring import calibration_batches
from compress.run.stages import prune as stage
from compress.run.stages import train
from compress.train import evaluate


def tiny(num_classes):
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 32, 3, 2, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, num_classes),
    )  # fmt: skip


def loaded(folder, **cut):
    recipe = {
        "name": "scored",
        "model": {"factory": f"{__name__}:tiny"},
        "target": {"kind": "handwritten_digits"},
        "preprocessing": {"size": [8, 8], "mode": "L", "mean": [0.3], "std": [0.4], "resize": "stretch"},
        "transfer": {"epochs": 6, "batch_size": 50, "lr": 0.1, "evaluations": 1},
        "twin": False,
        "prune": {"budget": {"macs": 0.5}, "round_to": 1, "min_kept": 2, **cut},
        "distill": {"epochs": 1, "reuse_classifier": False},
        "deploy": None,
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return load_recipe(folder / "recipe.yaml", trusted=[__name__])


@pytest.fixture(scope="module")
def cut(tmp_path_factory):
    """A function from keys of ``prune`` to the workspace, the outcome of the cut and the pruned network."""
    folder = tmp_path_factory.mktemp("scored")
    taught = prepare(loaded(folder), folder / "taught", False)
    view = StageView(lambda done, total, text: None)
    taught.finish("transfer", "transfer", 0, train.transfer(taught, view))

    def run(**keys):
        work = prepare(loaded(folder, **keys), folder / json.dumps(keys, sort_keys=True).replace("/", ""), False)
        (work.out / "teacher").symlink_to(taught.out / "teacher")
        work.ledger = taught.ledger
        outcome = stage.cut(work, view)
        return work, outcome, work.load("pruned")

    return run


def test_the_images_are_drawn_by_the_seed(cut):
    work = cut(criterion="taylor", images=70)[0]
    one, other = calibration_batches(work), calibration_batches(work)
    assert [len(images) for images, _ in one] == [24, 23, 23]
    assert all(torch.equal(a, b) and torch.equal(x, y) for (a, x), (b, y) in zip(one, other, strict=True))


def test_reconstruction_serves_accuracy_and_says_so(cut):
    _, plain, _ = cut(criterion="taylor", reconstruct=False)
    solved_work, solved, network = cut(criterion="taylor", reconstruct=True)
    assert solved.metrics["macs_share"] == plain.metrics["macs_share"] <= 0.5
    assert solved.metrics["val_accuracy"] > plain.metrics["val_accuracy"] + 0.1
    assert any(note.startswith("Reconstruction on ") for note in solved.notes)
    assert not any(note.startswith("Reconstruction") for note in plain.notes)
    measured = evaluate(network, solved_work.target, "val", solved_work.fabric)["top1"]
    assert measured == solved.metrics["val_accuracy"]


@pytest.mark.parametrize("criterion", ["fisher", "apoz", "bn_scale"])
def test_every_kind_of_criterion_meets_the_budget_in_rounds(cut, criterion):
    outcome = cut(criterion=criterion, rounds=2, recover_epochs=1, scope="isomorphic")[1]
    assert outcome.metrics["macs_share"] <= 0.5


def test_several_budgets_hold_together(cut):
    _, outcome, network = cut(budget={"macs": 0.9, "params": 0.4})
    dense = sum(p.numel() for p in tiny(10).parameters())
    assert sum(p.numel() for p in network.parameters()) <= 0.4 * dense
    assert outcome.metrics["macs_share"] <= 0.9


def test_rounds_want_a_budget_of_macs_alone(tmp_path):
    with pytest.raises(RecipeError, match="budget of macs alone"):
        loaded(tmp_path, rounds=2, budget={"macs": 0.5, "params": 0.5})


def test_an_impossible_budget_is_found_before_anything_is_trained(tmp_path):
    with pytest.raises(Exception, match="ask for params: "):
        prepare(loaded(tmp_path, budget={"params": 0.01}), tmp_path / "out", False)
    assert not (tmp_path / "out").exists()


def test_the_command_lists_every_criterion():
    shown = CliRunner().invoke(app, ["criteria", "--json"])
    rows = json.loads(shown.stdout)
    assert [row["name"] for row in rows] == list(prune.CRITERIA)
    assert all(row["needs"] in ("weights", "gradients", "activations") and row["paper"] for row in rows)
