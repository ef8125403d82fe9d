"""Two runs never share a folder, and one that was killed before its first ledger does not block it."""

import io
import json
import os
import time

import pytest
import yaml
from rich.console import Console
from test_failures import RECIPE

from compress.errors import RecipeError
from compress.recipe.loading import load_recipe
from compress.run import prepare as preparing
from compress.run import runner
from compress.run.preflight import alone, sweep
from compress.run.prepare import prepare
from compress.run.progress import Ui

pytestmark = pytest.mark.heavy


@pytest.fixture
def recipe(tmp_path):
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    return load_recipe(tmp_path / "recipe.yaml", trusted=["test_failures"])


def test_of_two_runs_that_begin_at_once_on_one_folder_one_is_refused(recipe, tmp_path, monkeypatch):
    other, out = recipe.model_copy(update={"seed": recipe.seed + 1}), tmp_path / "out"
    check = preparing.check_model

    def meanwhile(*arguments):
        monkeypatch.setattr(preparing, "check_model", check)
        prepare(other, out, False)
        return check(*arguments)

    monkeypatch.setattr(preparing, "check_model", meanwhile)
    with pytest.raises(RecipeError, match="already holds a run"):
        prepare(recipe, out, False)
    assert json.loads((out / "ledger.json").read_text())["seed"] == other.seed
    assert (out / "recipe.yaml").read_text() == other.to_yaml()


def test_what_takes_time_before_the_first_stage_is_said_first(recipe, tmp_path, monkeypatch):
    told = {}

    def refused(*_):
        until = time.monotonic() + (20 if style == "bars" else 0.5)  # another thread writes it
        while "Checking the recipe, the data and the network" not in shown.getvalue() and time.monotonic() < until:
            time.sleep(0.02)
        told[style] = shown.getvalue()
        raise RecipeError("no")

    monkeypatch.setattr(runner, "prepare", refused)
    for style in ("bars", "lines"):
        shown = io.StringIO()
        console = Console(file=shown, width=80, force_terminal=style == "bars")
        with pytest.raises(RecipeError, match="no"):
            runner.run(recipe, tmp_path / "out", Ui(console, style))
    assert "Checking the recipe, the data and the network" in told["bars"]
    assert told["lines"] == ""


def test_nothing_is_written_while_another_holds_the_folder(recipe, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    with alone(out), pytest.raises(RecipeError, match="Another process is writing"):
        prepare(recipe, out, False)
    assert [path.name for path in out.iterdir()] == ["log.jsonl"]


@pytest.mark.parametrize("resume", [False, True])
def test_a_run_killed_before_its_first_ledger_begins_again(resume, recipe, tmp_path, monkeypatch):
    out = tmp_path / "out"

    def killed(work):
        (work.out / ".ledger.json.77.tmp").write_text("{")
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(preparing.Workspace, "write_ledger", killed)
        with pytest.raises(KeyboardInterrupt):
            prepare(recipe, out, False)
    assert (out / "recipe.yaml").is_file() and not (out / "ledger.json").exists()
    prepare(recipe, out, resume)
    assert json.loads((out / "ledger.json").read_text())["seed"] == recipe.seed


@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
def test_a_log_that_is_no_file_is_not_written_to(kind, recipe, tmp_path):
    out, elsewhere = tmp_path / "out", tmp_path / "elsewhere.txt"
    prepare(recipe, out, False)
    log = out / "log.jsonl"
    log.unlink()
    if kind == "link":
        elsewhere.write_text("mine")
        log.symlink_to(elsewhere)
    elif kind == "pipe":
        os.mkfifo(log)
    else:
        log.mkdir()
    with pytest.raises(RecipeError, match="is not a regular file, so nothing is written to it"), alone(out):
        pass
    assert kind != "link" or elsewhere.read_text() == "mine"


def test_a_recipe_of_the_users_own_is_not_overwritten(recipe, tmp_path):
    with pytest.raises(RecipeError, match="not empty and holds no run"):
        prepare(recipe, tmp_path, False)


def test_what_a_killed_run_was_writing_to_is_swept_up(tmp_path):
    ours = (".ledger.json.123.tmp", ".model.safetensors.ab1_cd2e.safetensors", ".bundle.qep8cr2o/model.onnx")
    others = (".gitignore", ".notes.2026", ".model.safetensors.ab1_cd2e.txt", "ledger.json", "teacher/.keep")
    for name in (*ours, *others):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    sweep(tmp_path)
    assert {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()} == {*others}
