"""The papers' tables whose rows are recipes: rows, orders, correlations, and what the report makes of them."""

from dataclasses import replace

import pytest
import torch
import yaml
from typer.testing import CliRunner

from benchmarks.papers import animals, recipes
from benchmarks.papers.__main__ import app
from benchmarks.papers.runner import Asked, read_lines
from benchmarks.papers.settings import HERE
from compress import artifact, prune
from compress.errors import RecipeError
from compress.recipe.loading import load_recipe

pytestmark = pytest.mark.heavy

OF_RECIPES = sorted(path.stem for path in HERE.glob("*.yaml") if recipes.is_recipes(path.stem))
SHORT = {"epochs": 1, "batch_size": 16}
ORDERS = recipes.read("orders")


@pytest.fixture
def short(monkeypatch, tmp_path):
    """The table of ants and bees over pictures made up here, from a drawn network."""
    recipe = {
        "name": "short",
        "model": {"factory": "niwaki:cifar_resnet", "arguments": {"depth": 8, "width": 8}},
        "target": {"kind": "function", "function": "made_up:pictures"},
        "preprocessing": {"size": [8, 8], "resize": "stretch"},
        "transfer": SHORT,
        "twin": False,
        "prune": {"criterion": "l1", "budget": {"macs": 0.6}, "round_to": 4, "min_kept": 4},
        "distill": {**SHORT, "compare": []},
        "deploy": None,
    }
    (tmp_path / "short.yaml").write_text(yaml.safe_dump(recipe))
    (tmp_path / "made_up.py").write_text(
        "import numpy as np\nfrom PIL import Image\n"
        "def pictures():\n"
        "    own = [(Image.fromarray(np.full((8, 8, 3), 8 * k, np.uint8)), k % 2) for k in range(32)]\n"
        "    return {'train': own, 'val': own, 'test': own}\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    rows = recipes.read("hymenoptera").rows
    table = recipes.RecipeTable(
        title="short",
        recipe=str(tmp_path / "short.yaml"),
        rows={name: rows[name] for name in ("S-T-P-T", "S-T-P", "random", "before", "after")},
        sizes={"small": recipes.Size(seeds=(0,))},
    )
    monkeypatch.setattr(recipes, "read", lambda name: table)
    return Asked("hymenoptera", "small", results=tmp_path / "results", work=tmp_path / "work")


def test_rows_that_are_recipes_share_what_they_share_and_count_it(short, tmp_path):
    said = []
    assert recipes.run(short, said.append, ("made_up",))
    lines = {line["method"]: line for line in read_lines(tmp_path / "results/hymenoptera.jsonl")}
    assert list(lines) == ["S-T-P-T", "S-T-P", "random", "before", "after"]
    table = [lines[name] for name in ("S-T-P-T", "S-T-P", "random")]
    assert lines["random"]["criterion"] == "random"
    assert lines["S-T-P"]["order"] == "S-T-P"
    assert lines["S-T-P"]["training_flops"] == 0 < lines["random"]["training_flops"]
    assert len({line["base"] for line in table}) == 1
    assert all(0.3 < line["macs_share"] <= 0.6 for line in table)
    # Orders have one teacher, so that it is trained once; before transfer it is another.
    assert len(list((tmp_path / "work").glob("hymenoptera-*/ledger.json"))) == 2
    assert recipes.run(short, said.append, ("made_up",))
    assert sum("done before" in text for text in said) == 5
    text = recipes.markdown("hymenoptera", list(lines.values()))
    assert text.count("| **") == 3
    assert "open" in recipes.markdown("hymenoptera", list(lines.values())[:2])


def test_orders_have_a_source_and_one_teacher_and_sparse_rows_show_the_sparse_network(short, tmp_path, monkeypatch):
    rows = ORDERS.rows
    table = recipes.read("hymenoptera").model_copy(
        update={
            "rows": {name: rows[name] for name in ("S-T-P-T", "SP-T", "pacnet")},
            "change": {"source": {"data": {"kind": "function", "function": "made_up:pictures"}, "train": SHORT}},
        }
    )
    monkeypatch.setattr(recipes, "read", lambda name: table)
    assert recipes.run(short, lambda _: None, ("made_up",))
    lines = {line["method"]: line for line in read_lines(tmp_path / "results/hymenoptera.jsonl")}
    assert len(list((tmp_path / "work").glob("hymenoptera-*/ledger.json"))) == 1
    assert len({line["base"] for line in lines.values()}) == 1
    # The cut network learns the source once more, which is counted.
    assert lines["SP-T"]["training_flops"] > 1.2 * lines["S-T-P-T"]["training_flops"]
    assert (lines["pacnet"]["criterion"], lines["pacnet"]["macs_share"]) == ("pacnet", 1.0)


def test_correlations_are_those_of_the_losses_that_were_measured(short, tmp_path):
    said = []
    assert recipes.run(replace(short, methods=("before", "after")), said.append, ("made_up",))
    before, after = read_lines(tmp_path / "results/hymenoptera.jsonl")
    assert said[0].startswith("before seed 0: foreseen best by ")
    assert before["rises"].keys() == after["rises"].keys()
    assert before["loss"] != after["loss"]
    assert "accuracy" in after and "macs_share" not in after
    teacher = artifact.load(next(tmp_path.glob("work/hymenoptera-small-0-*/teacher")))
    trace = prune.trace(teacher, torch.zeros(2, 3, 8, 8))
    # All but the channels that a reused classifier reads.
    assert {group.name for group in trace.groups} - set(after["rises"]) == {"layer3.0.conv2"}
    for line in (before, after):
        assert set(line["correlations"]) == set(prune.CRITERIA)
        assert all(value is None or -1 <= value <= 1 for value in line["correlations"].values())


def test_correlations_are_told_before_and_after_transfer_with_what_is_open():
    line = {"method": "after", "seed": 0, "size": "small", "correlations": {"l1": 0.2, "kfac": 0.6, "apoz": None}}
    other = line | {"seed": 1, "correlations": {"l1": 0.4, "kfac": 0.8, "apoz": 0.1}}
    text = recipes.markdown("hymenoptera", [line, other]).splitlines()
    start = text.index("| criterion | before transfer | after transfer |")
    assert [row.split("|")[1].strip() for row in text[start + 2 :]] == ["kfac", "l1", "seeds"]
    assert text[start + 2].startswith("| kfac |  | 0.70 ± ")
    assert text[-1] == "| seeds | open | 0, 1 |"


@pytest.mark.parametrize("name", OF_RECIPES)
def test_every_row_of_a_table_of_recipes_is_a_recipe(tmp_path, monkeypatch, name):
    monkeypatch.setenv("NIWAKI_DATA", str(tmp_path))
    table = recipes.read(name)
    for size in table.sizes.values():
        for row in table.rows:
            (tmp_path / "r.yaml").write_text(yaml.safe_dump(recipes._settings(table, size, row, 1)))
            assert load_recipe(tmp_path / "r.yaml", trusted=recipes.OWN).seed == 1


@pytest.mark.data
def test_the_animals_are_as_many_as_they_are_said_to_be():
    found = animals.pictures()
    assert {name: len(own) for name, own in found.items()} == {"train": 400, "val": 200, "test": 379}
    assert [sum(label == k for _, label in found["train"]) for k in range(4)] == [100] * 4
    assert found["test"][0][0].size == (32, 32)
    source = animals.others()
    assert {name: len(own) for name, own in source.items()} == {"train": 1600, "val": 200, "test": 429}
    assert not set(animals.OTHERS) & set(animals.CLASSES)


def test_a_row_or_a_size_that_a_table_of_recipes_has_not_is_refused():
    with pytest.raises(RecipeError, match="no row 'nothing'; it has S-T-P-T"):
        recipes.run(Asked("hymenoptera", "small", ("nothing",)))
    with pytest.raises(RecipeError, match="no size 'huge'; it has smoke, small, full"):
        recipes.run(Asked("hymenoptera", "huge"))
    with pytest.raises(RecipeError, match="recipes with epochs of their own, not equal"):
        recipes.run(Asked("hymenoptera", "small", terms="equal"))
    assert CliRunner().invoke(app, ["report", "hymenoptera", "--plots", "plots"]).exit_code == 2
