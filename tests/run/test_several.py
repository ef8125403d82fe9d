"""Several networks from one teacher, and what a run accepts."""

import json

import pytest
import yaml

from compress import artifact
from compress.errors import AcceptError
from compress.recipe.loading import load_recipe
from compress.recipe.schema import AcceptRecipe, PruneRecipe
from compress.run.acceptance import check_accepted
from compress.run.ledger import Ledger

pytestmark = pytest.mark.heavy

SHARES = (0.8, 0.5)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("several")
    cut = {"criterion": "l1", "reconstruct": False, "round_to": 1, "min_kept": 1}
    recipe = {
        "name": "digits",
        "model": {"factory": "niwaki:cifar_resnet", "arguments": {"depth": 8, "width": 4, "in_channels": 1}},
        "target": {"kind": "handwritten_digits", "train_per_class": 10},
        "preprocessing": {"size": [8, 8], "mode": "L", "mean": [0.3], "std": [0.4], "resize": "stretch"},
        "transfer": {"epochs": 4, "batch_size": 25, "lr": 0.1, "evaluations": 1},
        "twin": False,
        "prune": {**cut, "budget": {"macs": list(SHARES)}},
        "distill": {"epochs": 1, "batch_size": 25, "lr": 0.0001, "compare": [], "evaluations": 1},
        "deploy": None,
    }
    (home / "digits.yaml").write_text(yaml.safe_dump(recipe))
    return home


@pytest.fixture
def niwaki(home, command, monkeypatch):
    monkeypatch.chdir(home)
    return command


@pytest.fixture
def done(niwaki, home):
    """Both runs, made by the first test that asks for them: the folder, the figures and what was said."""
    resume = ("--resume",) if (home / "out").exists() else ()
    code, out, err = niwaki("run", "digits.yaml", "--out", "out", "--json", *resume)
    assert code == 0, err
    (home / "said").write_text(err) if not resume else None
    return home / "out", json.loads(out), (home / "said").read_text()


def test_each_share_is_a_run_with_the_same_teacher(done):
    out, found, said = done
    assert json.loads((out / "table.json").read_text()) == found
    assert [one["run"] for one in found] == ["out/macs-0.8", "out/macs-0.5"]
    ledgers = [Ledger.read(out / f"macs-{share:g}" / "ledger.json") for share in SHARES]
    for share, ledger in zip(SHARES, ledgers, strict=True):
        assert ledger.model("student").macs <= share * ledger.model("teacher").macs
        assert ledger.model("teacher").test_accuracy is not None
    assert ledgers[0].model("student").macs > ledgers[1].model("student").macs
    teachers = [artifact.describe(out / f"macs-{share:g}/teacher").weights_sha256 for share in SHARES]
    assert teachers[0] == teachers[1]
    assert ledgers[0].stages[0] == ledgers[1].stages[0].model_copy(update={"made": ledgers[0].stages[0].made})
    assert "macs-0.5: with the teacher of macs-0.8" in said


def test_what_is_done_is_not_done_again(done, niwaki):
    files = sorted(done[0].glob("*/*/model.safetensors"))
    before = [path.stat().st_mtime_ns for path in files]
    assert len(files) == 6
    code, _, said = niwaki("run", "digits.yaml", "--out", "out", "--json", "--resume")
    assert code == 0
    assert said.count("done before") == 8
    assert [path.stat().st_mtime_ns for path in files] == before


def test_the_table_shows_the_teacher_and_each_network(done, niwaki):
    code, out, _ = niwaki("run", "digits.yaml", "--out", "out", "--resume")
    assert code == 0
    table = out[out.index("2 networks of one teacher") :]
    assert [line.split()[1] for line in table.splitlines() if "%" in line] == ["teacher", "macs-0.8", "macs-0.5"]


def test_what_is_accepted_is_held_against_the_test(done, home):
    asked = load_recipe(home / "digits.yaml")
    for share, one in zip(SHARES, done[1], strict=True):
        lost = 100 * (one["test_accuracy"]["teacher"] - one["test_accuracy"]["student"])
        assert lost > 1
        folder = done[0] / f"macs-{share:g}"
        check_accepted(asked, folder)
        check_accepted(asked.model_copy(update={"accept": AcceptRecipe(max_drop=lost)}), folder)
        with pytest.raises(AcceptError, match=rf"is {lost:.1f} points of accuracy below .* accept\.max_drop is 0\.5"):
            check_accepted(asked.model_copy(update={"accept": AcceptRecipe(max_drop=0.5)}), folder)


def test_a_student_that_misses_it_ends_a_whole_run_with_1(niwaki, home):
    code, shown, err = niwaki(
        "run", "digits.yaml", "--out", home / "single", "--json",
        "--set", "prune.budget.macs=0.5", "--set", "accept.max_drop=0.5",
    )  # fmt: skip
    assert code == 1
    assert (home / "single/report.html").is_file()
    assert json.loads(shown)["test_accuracy"]["student"] is not None
    assert err.splitlines()[-1].startswith(f"niwaki: The student in {home / 'single'} is ")


def test_a_table_reads_as_it_was_written():
    asked = PruneRecipe.model_validate({"budget": {"macs": [0.7, 0.5]}})
    assert (asked.table, asked.budget.macs) == ((0.7, 0.5), 0.7)
    assert PruneRecipe.model_validate(asked.model_dump(mode="json")) == asked
