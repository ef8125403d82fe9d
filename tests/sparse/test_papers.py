"""The runner of the papers' tables: mechanics at size smoke, on digits made up here."""

import gzip
import re
import struct
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
import yaml
from typer.testing import CliRunner

from benchmarks.papers import animals, mnist, recipes, report, runner
from benchmarks.papers.__main__ import app
from benchmarks.papers.desk import Schedule
from benchmarks.papers.procedures import PROCEDURES, Job, Thinning
from benchmarks.papers.runner import Asked, Cell, read_lines, run
from benchmarks.papers.settings import HERE, read_table
from compress.errors import DataError, RecipeError
from compress.models.factory import build
from compress.recipe.loading import load_recipe
from compress.sparse import largest, weights_of

pytestmark = pytest.mark.heavy

TABLES = sorted(path.stem for path in HERE.glob("*.yaml") if not recipes.is_recipes(path.stem))


@pytest.fixture(scope="module")
def digits():
    """A class is a bright bar; noise elsewhere."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(300) % 10
    images = 0.3 * torch.rand(300, 1, 28, 28, generator=generator)
    for row, label in enumerate(labels.tolist()):
        images[row, :, 2 * label + 3 : 2 * label + 5] += 0.7
    return mnist.Digits(images[:200], labels[:200], images[200:], labels[200:])


def asked(tmp_path, table="lenet300", **more):
    return Asked(table, "smoke", results=tmp_path / "results", work=tmp_path / "work", **more)


def lines_of(asked):
    return read_lines(asked.results / f"{asked.table}.jsonl")


@pytest.fixture(scope="module")
def whole(tmp_path_factory, digits):
    """All rows of LeNet-300 at size smoke."""
    what = asked(tmp_path_factory.mktemp("whole"))
    assert run(what, lambda _: None, digits)
    return what, {line["method"]: line for line in lines_of(what)}


def test_every_row_gives_a_line_with_what_a_table_needs(whole):
    _, lines = whole
    assert list(lines) == list(read_table("lenet300").methods)
    for line in lines.values():
        assert line["environment"]["torch"] == torch.__version__
        assert line["training_flops"] > 0
        assert 0 <= line["accuracy"] <= 100
        if line["method"] != "dsd":
            assert line["nonzeros"] == pytest.approx(
                sum(d * n for d, n in zip(line["density"].values(), (235200, 30000, 1000), strict=True)), abs=0.5
            )
    assert 20_000 < lines["gsm-bytes"]["bytes"] <= 40_000
    assert lines["dsd"]["bytes"] is None
    for name in ("gsm", "magnitude", "gradual", "random", "ticket-magnitude", "ticket-redrawn", "ticket-gsm"):
        assert lines[name]["nonzeros"] == 4437, name
    assert lines["random"]["density"] == lines["magnitude"]["density"]
    assert lines["ticket-gsm"]["density"] == lines["gsm"]["density"]
    assert lines["ticket-redrawn"]["density"] == lines["ticket-magnitude"]["density"]
    assert lines["dsd"]["ratio"] == 1
    assert lines["gsm"]["details"]["survivors"] >= 4437


def test_a_ticket_pays_for_the_masks_it_was_given(whole):
    _, lines = whole
    paid = lines["ticket-gsm"]["training_flops"] - lines["ticket-magnitude"]["training_flops"]
    assert paid == lines["gsm"]["training_flops"]


def test_a_ticket_begins_as_drawn_or_drawn_anew_under_the_same_masks():
    torch.manual_seed(3)
    base, initial = (build("niwaki:lenet300", {}, 10) for _ in range(2))
    desk = SimpleNamespace(seed=0, accuracy=lambda model: 0.0, train=lambda *given, **named: None)
    schedule = Schedule(((0.1, 1),))
    found = [
        PROCEDURES["ticket"](
            Job(desk, base, initial, schedule, {"ratio": 60, **more}, lambda name: None, schedule, 1.0)
        )
        for more in ({}, {"redraw": True})
    ]
    kept = largest(base, 4437).kept["fc2.weight"]
    first, anew = (outcome.model.fc2.weight for outcome in found)
    assert torch.equal(first, initial.fc2.weight * kept)
    assert kept.sum() > 1000
    assert torch.equal(anew != 0, kept)
    assert (anew[kept] != initial.fc2.weight[kept]).float().mean() > 0.9
    assert found[0].masks.nonzeros == found[1].masks.nonzeros == 4437


def test_what_is_done_is_not_done_again(whole, digits):
    what, _ = whole
    said = []
    assert run(what, said.append, digits)
    assert all("done before" in text for text in said)
    assert len(lines_of(what)) == len(said)


@pytest.mark.parametrize("method", ["gsm", "dns", "gradual", "dsd"])
def test_slices_end_where_one_piece_does(tmp_path, digits, whole, method):
    sliced = asked(tmp_path, methods=(method,), minutes=0.0)
    slices = 1
    while not run(sliced, lambda _: None, digits):
        slices += 1
    assert slices > 2
    (line,) = lines_of(sliced)
    straight = whole[1][method]
    for key in ("accuracy", "before", "density", "training_flops", "settings", "details"):
        assert line[key] == straight[key], key


@pytest.mark.parametrize("table", TABLES)
def test_every_table_reads_and_names_procedures_that_are(table):
    for name, method in read_table(table).methods.items():
        assert method.procedure in PROCEDURES, name
        assert method.published is None or method.published.source
        assert method.options.get("of", name) in read_table(table).methods


def test_equal_terms_give_every_row_the_same_epochs():
    table = read_table("lenet300")
    for name, method in table.methods.items():
        cell = Cell(table, Asked("lenet300", "full", terms="equal"), table.sizes["full"], name, 0)
        epochs = method.phases * cell.schedule().epochs
        assert epochs == pytest.approx(table.equal_epochs, abs=method.phases * len(method.train.steps) / 2), name
        assert cell.key != replace(cell, asked=replace(cell.asked, terms="published")).key


@pytest.fixture(scope="module")
def cifar(tmp_path_factory):
    """All rows of ResNet-20 at size smoke, on noise, from a drawn network in place of the published one."""
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(128, 3, 32, 32, generator=generator)
    data = mnist.Digits(images[:64], torch.arange(64) % 10, images[64:], torch.arange(64) % 10)
    drawn = lambda depth: build("niwaki:cifar_resnet", {"depth": 8, "shortcut": "pad"}, 10).eval()  # noqa: E731
    table = read_table("resnet20").model_copy(update={"arguments": {"depth": 8, "shortcut": "pad"}})
    what = asked(tmp_path_factory.mktemp("cifar"), "resnet20")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner, "published", drawn)
        patch.setattr(runner, "read_table", lambda name: table)
        assert run(what, lambda _: None, data)
    return {line["method"]: line for line in lines_of(what)}


def test_rows_of_channels_are_at_the_same_macs_and_scratch_pays_what_it_says(cifar):
    assert list(cifar) == list(read_table("resnet20").methods)
    whole = cifar.pop("gsm")
    assert whole["ratio"] == pytest.approx(6.6, abs=0.01)
    found = whole["details"]["sensitivity"]
    assert list(found["alone"]) == list(whole["density"])
    assert {"conv1.weight", "layer1.0.conv1.weight"} <= set(found["channels"]) < set(found["alone"])
    assert -1 <= found["of_alone"] <= 1
    assert -1 <= found["of_channels"] <= 1
    for name, line in cifar.items():
        assert 0.4 < line["macs_share"] <= 0.5, name
    assert cifar["uniform-scratch"]["macs_share"] == cifar["uniform"]["macs_share"]
    assert cifar["uniform-scratch"]["training_flops"] == cifar["uniform"]["training_flops"]
    assert cifar["scratch-b"]["training_flops"] > 1.5 * cifar["scratch-e"]["training_flops"]
    assert cifar["own-tuned"]["training_flops"] > 2 * cifar["scratch-e"]["training_flops"]
    assert cifar["search"]["training_flops"] > cifar["l1"]["training_flops"]
    # What is pressed costs a whole network's epoch; where its cut falls hangs on the row.
    pressed = [
        cifar[name]["training_flops"] - cifar["bn_scale"]["training_flops"] for name in ("slimming", "structures")
    ]
    assert pressed[0] == pytest.approx(pressed[1], rel=0.02)
    assert pressed[0] > 0.9 * cifar["bn_scale"]["training_flops"]
    text = report.markdown("resnet20", [line | {"size": "small"} for line in cifar.values()])
    assert text.count("% of the MACs") == len(cifar)
    assert text.count("| open |") == 1  # GSM's row was taken out above


def test_what_the_gradual_row_dropped_stays_away(digits, tmp_path, monkeypatch):
    seen = []
    real = Thinning.thin
    monkeypatch.setattr(Thinning, "thin", lambda self, epoch: (real(self, epoch), seen.append(self.masks))[0])
    table = read_table("lenet300")
    longer = table.model_copy(update={"sizes": {"smoke": table.sizes["smoke"].model_copy(update={"epochs": 0.2})}})
    monkeypatch.setattr(runner, "read_table", lambda name: longer)
    assert run(asked(tmp_path, methods=("gradual",)), lambda _: None, digits)
    assert len(seen) == 12
    for earlier, later in pairwise(seen):
        assert later.nonzeros <= earlier.nonzeros
        assert all(not (mask & ~earlier.kept[name]).any() for name, mask in later.kept.items())
    assert seen[0].nonzeros > seen[3].nonzeros > seen[-1].nonzeros


def test_the_report_has_every_row_open_or_filled(whole):
    _, lines = whole
    as_small = [line | {"size": "small", "seed": seed} for line in lines.values() for seed in (0, 1)]
    as_small = [line for line in as_small if line["method"] != "han"]
    text = report.markdown("lenet300", as_small)
    rows = {row.split("|")[1].strip(): row for row in text.splitlines() if row.startswith("| ")}
    assert "98.36 → 98.41 at 12.1x | open" in rows["han"]
    assert "± 0.00" in rows["gsm"]
    assert "| 0, 1 |" in rows["gsm"]
    assert "60.0x" in rows["gsm"]
    assert report.markdown("lenet300", list(lines.values())).count("open") == len(lines)  # smoke measures nothing


def test_plots_are_drawn(whole, tmp_path):
    _, lines = whole
    as_small = [line | {"size": "small"} for line in lines.values()]
    paths = report.plots("lenet300", as_small, tmp_path)
    assert [path.name for path in paths] == [
        "lenet300-density.png",
        "lenet300-reactivated.png",
        "lenet300-approximation.png",
    ]
    assert all(path.stat().st_size > 5000 for path in paths)


def test_the_interval_is_students():
    assert report.interval([98.0, 98.2, 98.4]) == pytest.approx(4.302653 * 0.2 / 3**0.5, rel=1e-5)
    assert report.interval([98.0]) is None


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"table": "nothing"}, "no table 'nothing'; there are animals, bccd, camvid, hymenoptera, lenet300"),
        ({"methods": ("nothing",)}, "no row 'nothing'; it has gsm"),
        ({"size": "huge"}, "no size 'huge'; it has smoke"),
    ],
)
def test_what_there_is_not_is_refused_with_what_there_is(tmp_path, digits, change, said):
    with pytest.raises(RecipeError, match=said):
        run(replace(asked(tmp_path), **change), print, digits)


def test_the_command_reports_and_refuses_in_a_sentence(tmp_path):
    done = CliRunner().invoke(app, ["report", "lenet5", "--results", str(tmp_path)])
    assert done.exit_code == 0
    assert "99.21 → 99.22 at 125x | open" in done.stdout
    refused = CliRunner().invoke(app, ["run", "nothing", "--results", str(tmp_path)])
    assert refused.exit_code == 2
    names = ", ".join(sorted(path.stem for path in HERE.glob("*.yaml")))
    assert refused.stderr == f"There is no table 'nothing'; there are {names}.\n"
    assert "lenet300, lenet5" in names
    assert CliRunner().invoke(app, ["run", "lenet5", "--terms", "odd"]).exit_code == 2


# Tables of recipes -----------------------------------------------------------------------------------------

SHORT = {"epochs": 1, "batch_size": 16}


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
        rows={name: rows[name] for name in ("S-T-P-T", "S-T-P", "random", "foreseen")},
        sizes={"small": recipes.Size(seeds=(0,))},
    )
    monkeypatch.setattr(recipes, "read", lambda name: table)
    return Asked("hymenoptera", "small", results=tmp_path / "results", work=tmp_path / "work")


def test_rows_that_are_recipes_share_what_they_share_and_count_it(short, tmp_path):
    said = []
    assert recipes.run(short, said.append, ("made_up",))
    lines = {line["method"]: line for line in read_lines(tmp_path / "results/hymenoptera.jsonl")}
    assert list(lines) == ["S-T-P-T", "S-T-P", "random", "foreseen"]
    assert lines["foreseen"]["accuracy"] == lines["S-T-P-T"]["accuracy"]
    assert -1 <= lines["foreseen"]["foreseen"]["l1"] <= 1
    assert lines["random"]["criterion"] == "random"
    assert lines["S-T-P"]["order"] == "S-T-P"
    assert lines["S-T-P"]["training_flops"] == 0 < lines["random"]["training_flops"]
    assert len({line["base"] for line in lines.values()}) == 1
    assert all(0.3 < line["macs_share"] <= 0.6 for line in lines.values())
    assert recipes.run(short, said.append, ("made_up",))
    assert sum("done before" in text for text in said) == 4
    text = recipes.markdown("hymenoptera", list(lines.values()))
    assert text.count("| **") == 4
    assert re.search(r"after transfer: \w+ -?[\d.]+, ", text)
    assert "open" in recipes.markdown("hymenoptera", list(lines.values())[:2])


@pytest.mark.parametrize("name", ["animals", "bccd", "camvid", "hymenoptera"])
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


def test_a_row_or_a_size_that_a_table_of_recipes_has_not_is_refused():
    with pytest.raises(RecipeError, match="no row 'nothing'; it has S-T-P-T"):
        recipes.run(Asked("hymenoptera", "small", ("nothing",)))
    with pytest.raises(RecipeError, match="no size 'huge'; it has small, full"):
        recipes.run(Asked("hymenoptera", "huge"))
    with pytest.raises(RecipeError, match="recipes with epochs of their own, not equal"):
        recipes.run(Asked("hymenoptera", "small", terms="equal"))
    assert CliRunner().invoke(app, ["report", "hymenoptera", "--plots", "plots"]).exit_code == 2


# Networks and data ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "weights"), [("lenet300", 266_200), ("lenet5", 430_500)])
def test_the_networks_have_the_papers_weights(name, weights):
    model = build(f"niwaki:{name}", {}, 10)
    assert sum(w.numel() for w in weights_of(model).values()) == weights
    assert model(torch.zeros(2, 1, 28, 28)).shape == (2, 10)
    coloured = build(f"niwaki:{name}", {"in_channels": 3}, 4)
    assert coloured(torch.zeros(2, 3, 28, 28)).shape == (2, 4)


def idx(*sizes, values=None):
    count = torch.Size(sizes).numel() if values is None else values
    return b"\0\0\x08" + bytes([len(sizes)]) + struct.pack(f">{len(sizes)}I", *sizes) + bytes(range(count))


def test_pixels_are_normalised_and_labels_left():
    made = mnist.Digits(torch.ones(1, 1, 2, 2), torch.tensor([7]), torch.zeros(1, 1, 2, 2), torch.tensor([3]))
    scaled = made.normalised(0.5, 0.25)
    assert scaled.train_images.unique().tolist() == [2.0]
    assert scaled.test_images.unique().tolist() == [-2.0]
    assert (scaled.train_labels.item(), scaled.test_labels.item()) == (7, 3)


def test_an_idx_file_is_read_in_rows():
    assert mnist.read_idx(idx(2, 3), "x").tolist() == [[0, 1, 2], [3, 4, 5]]


@pytest.mark.parametrize("content", [b"", b"\0\0\x0d\1\0\0\0\1\0", idx(2, 3, values=5), idx(2, 3)[:9], b"\0\0\x08\0"])
def test_a_damaged_idx_file_is_refused(content):
    with pytest.raises(DataError, match="fetch it again"):
        mnist.read_idx(content, "x")


def test_another_file_than_the_published_is_refused(tmp_path, monkeypatch):
    with pytest.raises(DataError, match="no train-images-idx3-ubyte"):
        mnist.read_mnist(tmp_path)
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(1, 2, 2)))
    with pytest.raises(DataError, match="not the published file"):
        mnist.read_mnist(tmp_path)
    monkeypatch.delenv("NIWAKI_DATA", raising=False)
    with pytest.raises(DataError, match="NIWAKI_DATA"):
        mnist.read_mnist()
