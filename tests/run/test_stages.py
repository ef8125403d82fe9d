"""The tuple of stages: what still stands of a resumed run, and a stage and a command that somebody adds."""

from contextlib import nullcontext
from pathlib import Path

import pytest
import typer

from compress.cli import app
from compress.recipe.loading import load_recipe
from compress.run import runner
from compress.run.ledger import Ledger, Outcome
from compress.run.progress import Ui
from compress.run.stages import STAGES
from compress.run.stages.base import Stage
from compress.run.standing import standing
from compress.run.workspace import Workspace

pytestmark = pytest.mark.heavy


def workspace(out, ledger):
    return Workspace(load_recipe(out / "recipe.yaml"), out, None, None, ledger)


def wanted(recipe):
    return [stage for stage in STAGES if stage.wanted(recipe)]


def test_every_stage_has_a_name_and_a_title_of_its_own():
    assert len({stage.name for stage in STAGES}) == len({stage.title for stage in STAGES}) == len(STAGES) == 17


@pytest.mark.parametrize("resume", [True, False])
def test_resuming_where_nothing_began_says_that_a_run_begins(tmp_path, monkeypatch, capsys, resume):
    monkeypatch.setattr(runner, "prepare", lambda recipe, out, resume: "prepared")
    monkeypatch.setattr(runner, "alone", lambda out: nullcontext())
    monkeypatch.setattr(runner, "_carry_out", lambda work, ui: Path(work))
    recipe = load_recipe(Path(__file__).parents[2] / "recipes/digits.yaml")
    assert runner.run(recipe, tmp_path / "none", Ui.choose(), resume=resume) == Path("prepared")
    assert ("none holds no run yet, so one begins" in capsys.readouterr().out) == resume


def test_a_stage_whose_file_is_gone_and_all_after_it_stand_no_longer(old_run):
    ledger = Ledger.read(old_run / "ledger.json")
    work = workspace(old_run, ledger)
    todo = wanted(work.recipe)
    assert [entry.name for entry in ledger.stages] == [stage.name for stage in todo]
    assert standing(work, todo) == (8, None)
    for lost, count in (("bundle/manifest.json", 7), ("deploy/parity.json", 4), ("pruned/model.json", 2)):
        (old_run / lost).unlink()
        found, why = standing(work, todo)
        assert found == count and why.startswith(f"{lost} is gone: '{todo[count].title}' and what follows")


def test_what_comes_after_a_stage_that_is_wanted_anew_stands_no_longer(kept):
    ledger = Ledger.read(kept / "ledger.json")
    work = workspace(kept, ledger)
    assert standing(work, wanted(work.recipe.model_copy(update={"twin": True}))) == (2, None)
    # A run that stopped after distilling has tested; the engines that it goes on to come before the test.
    stopped = tuple(
        entry for entry in ledger.stages if entry.name in ("pretrain", "transfer", "prune", "distill", "test")
    )
    work = workspace(kept, ledger.model_copy(update={"stages": stopped}))
    assert standing(work, wanted(work.recipe)) == (4, None)
    assert standing(work, wanted(work.recipe.model_copy(update={"deploy": None}))) == (5, None)


def count_layers(work, view):
    layers = len(list(work.load("student").modules()))
    (work.out / "layers.txt").write_text(str(layers))
    view.notes.append(f"{layers} layers")
    entry = work.ledger.model("student").model_copy(update={"title": "Counted"})
    return Outcome(metrics={"layers": float(layers)}, notes=("counted",), models=(entry,))


def test_a_stage_is_one_function_and_one_entry(old_run, command, monkeypatch):
    toy = Stage(
        "layers", "Count the layers", count_layers, lambda recipe: ("layers.txt",), "first", lambda recipe: True
    )
    monkeypatch.setattr(runner, "STAGES", (*STAGES, toy))
    code, shown, error = command("run", "recipe.yaml", "--out", "run", "--resume")
    assert (code, error) == (0, "")
    assert "[ 9/9] Count the layers\n" in shown and " layers\n" in shown and shown.count("done before") == 8
    ledger = Ledger.read(old_run / "ledger.json")
    assert ledger.stages[-1].name == "layers" and ledger.stages[-1].notes == ("counted",)
    assert ledger.figure("layers") == float((old_run / "layers.txt").read_text()) > 10
    assert [model.name for model in ledger.models] == ["teacher", "pruned", "student"]
    assert ledger.model("student").title == "Counted"
    (old_run / "layers.txt").unlink()
    assert command("run", "recipe.yaml", "--out", "run", "--resume")[1].count("done before") == 8
    assert (old_run / "layers.txt").is_file()
    assert [entry.name for entry in Ledger.read(old_run / "ledger.json").stages].count("layers") == 1


def test_a_command_is_one_function_and_one_entry(command, monkeypatch):
    def greet(name: str, times: int = typer.Option(1, min=1)) -> None:
        """Say hello."""
        print(" ".join([f"hello {name}"] * times))

    monkeypatch.setattr(app.app, "registered_commands", list(app.app.registered_commands))
    app.app.command()(greet)
    assert command("greet", "ant", "--times", "2") == (0, "hello ant hello ant\n", "")
    code, shown, error = command("greet", "ant", "--times", "0")
    assert (code, shown, error.count("\n")) == (2, "", 1)
    assert "greet" in command("--help")[1]
