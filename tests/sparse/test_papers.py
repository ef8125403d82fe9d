"""The runner of the papers' tables: mechanics at size smoke, on digits made up here."""

import gzip
import struct
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from typer.testing import CliRunner

from benchmarks.papers import mnist, procedures, recipes, report, runner
from benchmarks.papers.__main__ import app
from benchmarks.papers.desk import Schedule
from benchmarks.papers.procedures import PROCEDURES, Job, Thinning
from benchmarks.papers.runner import Asked, Cell, read_lines, run
from benchmarks.papers.settings import HERE, read_table
from compress import prune
from compress.errors import DataError, RecipeError
from compress.models.factory import build
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
    assert lines["scratch-e"]["density"] == lines["scratch-b"]["density"] == lines["ticket-magnitude"]["density"]
    assert list(lines["random-uniform"]["density"].values()) == pytest.approx([1 / 60] * 3, abs=5e-4)
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
    assert set(cifar["structures-blocks"]["details"]["blocks"]) <= {"layer1.0"}
    assert cifar["unit-gsm"]["training_flops"] > 1.5 * cifar["l1"]["training_flops"]
    assert cifar["pattern-scratch"]["details"]["epochs"] == cifar["uniform-scratch"]["details"]["epochs"]
    text = report.markdown("resnet20", [line | {"size": "small"} for line in cifar.values()])
    assert text.count("% of the MACs") == len(cifar)
    assert text.count("| open |") == 1  # GSM's row was taken out above


def test_widths_are_carried_from_a_smaller_resnet(monkeypatch):
    torch.manual_seed(0)
    nets = {depth: build("niwaki:cifar_resnet", {"depth": depth, "shortcut": "pad"}, 10).eval() for depth in (8, 14)}
    monkeypatch.setattr(procedures, "published", nets.get)
    images = torch.zeros(4, 3, 32, 32)
    desk = SimpleNamespace(data=SimpleNamespace(train_images=images, train_labels=torch.zeros(4)), seed=0)
    options = {"carried_from": 8, "macs": 0.5, "criterion": "l1"}
    plan = procedures._plan(SimpleNamespace(desk=desk, options=options), nets[14])
    like = prune.trace(nets[8], images)
    small = prune.plan(like, prune.score(like, nets[8], "l1"), budget=prune.Budget(macs=0.5))
    kept = {group.name: group.after / group.before for group in small.groups}
    found = {group.name: group.after / group.before for group in plan.groups}
    for stage in (1, 2, 3):
        name = f"layer{stage}.0.conv1"
        assert found[name] == pytest.approx(kept.get(name, 1.0), abs=1 / 16)


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
