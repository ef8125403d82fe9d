"""A recipe's criterion and reconstruction: scored on the run's images, solved without labels, told in the ledger."""

import json
import re
from dataclasses import replace

import pytest
import torch
import yaml
from torch import nn
from typer.testing import CliRunner

from compress import prune
from compress.cli.app import app
from compress.errors import PlanError, RecipeError
from compress.recipe.loading import load_recipe
from compress.run.prepare import prepare
from compress.run.progress import StageView
from compress.run.scoring import scored, scoring_images
from compress.run.stages import prune as stage
from compress.run.stages import train
from compress.train import TASKS, evaluate
from deploy.report import render

pytestmark = pytest.mark.heavy


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
        "prune": {**({} if "ratio" in cut else {"budget": {"macs": 0.5}}), "round_to": 1, "min_kept": 2, **cut},
        "distill": {"epochs": 1, "reuse_classifier": False},
        "deploy": None,
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    return load_recipe(folder / "recipe.yaml", trusted=[__name__])


@pytest.fixture(scope="module")
def cut(tmp_path_factory):
    """A function from keys of ``prune`` to the workspace, the outcome of the cut and the pruned network."""
    folder = tmp_path_factory.mktemp("scored")
    taught = prepare(loaded(folder), folder / "taught", False)
    view = StageView(lambda done, total, text: None)
    taught.finish("transfer", "transfer", 0, train.transfer(taught, view))

    known = {}

    def run(**keys):
        name = json.dumps(keys, sort_keys=True).replace("/", "")
        if name not in known:
            known[name] = made(name, keys)
        return known[name]

    def made(name, keys):
        work = prepare(loaded(folder, **keys), folder / name, False)
        (work.out / "teacher").symlink_to(taught.out / "teacher")
        work.ledger = taught.ledger
        outcome = stage.cut(work, view)
        return work, outcome, work.load("pruned")

    return run


def test_the_images_are_drawn_by_the_seed(cut):
    work = cut(criterion="taylor", images=70)[0]
    one, other = scoring_images(work), scoring_images(work)
    assert [len(batch) for batch in one] == [24, 23, 23]
    assert all(torch.equal(a.images, b.images) for a, b in zip(one, other, strict=True))
    assert all(torch.equal(a.targets, b.targets) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("criterion", ["kfac", "fisher", "taylor"])
def test_a_classifier_is_scored_by_its_own_answers_and_no_label(cut, criterion):
    work, _, _ = cut()
    network, images = work.load("teacher").eval(), scoring_images(work)
    trace = prune.trace(network, images[0].images[:2])
    other = [replace(batch, targets=batch.targets.roll(1)) for batch in images]
    first, second = (scored(trace, network, criterion, given, TASKS["classification"]) for given in (images, other))
    assert torch.equal(first, second)
    assert first.abs().max() > 0


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
    outcome = cut(criterion=criterion, rounds=2, recover_epochs=1, scope="isomorphic", schedule="cubic")[1]
    assert outcome.metrics["macs_share"] <= 0.5


def test_several_budgets_hold_together(cut):
    _, outcome, network = cut(budget={"macs": 0.9, "params": 0.4})
    dense = sum(p.numel() for p in tiny(10).parameters())
    assert sum(p.numel() for p in network.parameters()) <= 0.4 * dense
    assert outcome.metrics["macs_share"] <= 0.9


def test_ratios_by_pattern_take_the_budgets_place(cut):
    _, outcome, network = cut(ratio={"3.*": 0.5, "*": 0.25}, criterion="l2")
    assert (network[0].out_channels, network[3].out_channels) == (12, 16)
    assert outcome.plan["ratio"] == {"3.*": 0.5, "*": 0.25}
    assert "budget" not in outcome.plan
    assert cut(ratio=0.5, scope="group")[2][3].out_channels == 16


@pytest.mark.parametrize(
    ("kind", "criterion"),
    [
        ("group_lasso", "l2"), ("growing", "l2"), ("scales", "bn_scale"), ("soft", "l2"),
        ("structures", "bn_scale"), ("unit_gsm", "l2"),
    ],
)  # fmt: skip
def test_a_training_before_the_cut_is_paid_for_and_leaves_the_teacher(cut, kind, criterion):
    more = {"epochs": 12, "strength": 2.0} if kind == "growing" else {"epochs": 3}
    asked = {"kind": kind, "lr": 0.05, **more}
    work, outcome, _ = cut(criterion=criterion, sparsify=asked)
    assert outcome.metrics["macs_share"] <= 0.5
    if kind == "growing":
        # What was to go had all but gone: the cut loses next to nothing.
        said = float(re.search(r"cut: ([\d.]+) %", outcome.notes[0]).group(1)) / 100
        assert outcome.metrics["val_accuracy"] > said - 0.05
        assert outcome.metrics["val_accuracy"] > cut(criterion=criterion)[1].metrics["val_accuracy"] + 0.2
    assert outcome.training_flops == outcome.models[0].training_flops > 0
    assert outcome.notes[0].startswith(f"After training with {kind}, before the cut: ")
    assert outcome.plan["sparsify"] == kind
    teacher = evaluate(work.load("teacher"), work.target, "val", work.fabric)["top1"]
    assert teacher == work.ledger.model("teacher").val_accuracy


def test_a_search_for_the_shares_of_groups_is_no_worse_than_the_same_share_of_all(cut):
    asked = {"criterion": "l2", "images": 32, "search": {"population": 6, "generations": 1}}
    _, outcome, _ = cut(**asked)
    assert outcome.metrics["macs_share"] <= 0.5
    assert outcome.plan["search"] == {"population": 6, "generations": 1}
    told = re.search(r"judged (\d+) networks .*, ([\d.]+) % at first and ([\d.]+) % in the end", outcome.notes[0])
    assert told.group(1) == "8"
    assert float(told.group(2)) <= float(told.group(3))


def test_the_smallest_network_within_the_drop_is_kept_as_it_was_confirmed(cut):
    work, outcome, network = cut(budget={"max_drop": 6.0}, criterion="fisher", images=64)
    lost = work.ledger.model("teacher").val_accuracy - outcome.metrics["val_accuracy"]
    assert lost <= 0.06
    assert outcome.metrics["macs_share"] < 0.9
    said = next(note for note in outcome.notes if "points on validation before any training" in note)
    assert f"lose {100 * lost:.1f} points" in said
    assert evaluate(network, work.target, "val", work.fabric)["top1"] == outcome.metrics["val_accuracy"]


def test_sensitivity_goes_into_the_folder_the_ledger_and_the_report(cut):
    work, outcome, _ = cut(sensitivity=True, images=40)
    found = prune.Sensitivity.from_json((work.out / "sensitivity.json").read_text())
    shown = outcome.plan["sensitivity"]
    assert [curve["group"] for curve in shown["curves"]] == [curve.group for curve in found.curves] == ["0", "3"]
    assert "units" not in shown["curves"][0]["cells"][0]
    assert set(found.correlations) == set(prune.CRITERIA)
    assert found.images == 40
    assert found.metric == "accuracy"
    page = render({"format": "niwaki-ledger-1", "plan": outcome.plan}, {}, "")
    assert "What each group lost" in page
    assert page.count('class="plot') == 2
    assert "Which criteria predicted it" in page


def test_a_run_says_before_it_trains_that_a_pattern_matches_nothing(tmp_path):
    with pytest.raises(PlanError, match=r"No free group matches 'layer9\.\*'"):
        prepare(loaded(tmp_path, ratio={"layer9.*": 0.5}), tmp_path / "out", False)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"ratio": 0.5, "budget": {"macs": 0.4}}, "either a budget or a ratio"),
        ({"ratio": {}, "budget": {"macs": 0.5}}, "ratio is empty"),
        ({"ratio": 0.5, "rounds": 2, "budget": {"macs": 0.5}}, "not a ratio"),
        ({"ratio": {"*": 1.0}, "budget": {"macs": 0.5}}, "less than 1"),
        ({"budget": {"max_drop": 1.0, "macs": 0.5}}, "max_drop is met by measuring and stands alone"),
        ({"budget": {"max_drop": 1.0}, "rounds": 2}, "budget of macs or latency alone"),
        ({"budget": {"macs": []}}, "one share or more"),
        ({"budget": {"max_drop": 1.0}, "sparsify": {"kind": "soft", "epochs": 1}}, "sparsify drives one cut"),
        ({"sparsify": {"kind": "hard", "epochs": 1}}, "sparsify.kind"),
        (
            {"criterion": "l1", "sparsify": {"kind": "structures", "epochs": 1}},
            "which l1 does not see; give criterion: bn_scale",
        ),
        ({"sparsify": {"kind": "soft", "blocks": True, "epochs": 1}}, "blocks belongs to structures; soft has none"),
        (
            {"budget": {"params": 0.5}, "sparsify": {"kind": "structures", "blocks": True, "epochs": 1}},
            "blocks that go count towards a budget of macs alone",
        ),
        ({"search": {}, "rounds": 2}, "search finds one cut within a budget that can be computed"),
        ({"search": {}, "budget": {"max_drop": 1.0}}, "search finds one cut within a budget that can be computed"),
        ({"search": {}, "ratio": 0.5}, "search finds one cut within a budget that can be computed"),
        ({"budget": {"macs": [0.5, 0.5]}}, "names a share twice"),
        ({"budget": {"macs": [0.5, 1.5]}}, "at most 1 is wanted"),
    ],
)
def test_what_does_not_go_together_is_refused(tmp_path, keys, said):
    with pytest.raises(RecipeError, match=said):
        loaded(tmp_path, **keys)


def test_rounds_want_a_budget_of_macs_alone(tmp_path):
    with pytest.raises(RecipeError, match="budget of macs or latency alone"):
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


def test_a_network_without_residual_blocks_is_told_before_anything_is_trained(tmp_path):
    blocks = {"kind": "structures", "blocks": True, "epochs": 1}
    with pytest.raises(PlanError, match="No residual block of this network can go whole"):
        prepare(loaded(tmp_path, criterion="l1", sparsify=blocks), tmp_path / "out", False)
    assert not (tmp_path / "out").exists()
