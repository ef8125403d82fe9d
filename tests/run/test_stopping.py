"""A run that stops after distilling, and one that goes on from there to engines."""

import json
import shutil
from io import StringIO

import pytest
from rich.console import Console
from test_run import digest, run

from compress.errors import RecipeError
from compress.recipe.loading import load_recipe
from compress.run.preflight import going_on
from compress.run.summary import summary, table
from deploy.report import write_report

pytestmark = pytest.mark.slow

SHORT = ("--set", "twin=false", "--set", "distill.compare=[]")
ONNX = ("--set", "deploy.precisions=[fp32]", "--set", "deploy.ship=fp32")
FILES = {"recipe.yaml", "ledger.json", "log.jsonl", "report.html", "teacher", "pruned", "student"} | {
    "logs",
    "checkpoints",
    "differing",
}


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """The folder in which `out` lies, and what the run printed."""
    home = tmp_path_factory.mktemp("stopped")
    process = run(*SHORT, "--set", "deploy=null", cwd=home)
    assert process.returncode == 0, process.stderr
    return home, process.stdout


def test_it_leaves_a_tested_student_and_no_engine(stopped):
    home, shown = stopped
    assert {path.name for path in (home / "out").iterdir()} == FILES
    ledger = json.loads((home / "out/ledger.json").read_text())
    assert [s["name"] for s in ledger["stages"]] == ["pretrain", "transfer", "prune", "distill", "test"]
    assert all(0 <= model["test_accuracy"] <= 1 for model in ledger["models"])
    assert "[ 5/5]" in shown
    assert not [word for word in ("latency", "predict", "gate") if word in shown]


def test_summary_and_report_speak_of_the_networks_alone(stopped):
    out = stopped[0] / "out"
    models = {m["name"]: m for m in json.loads((out / "ledger.json").read_text())["models"]}
    figures = summary(out)
    assert list(figures["engines"]) == ["dense", "pruned", "distilled"]
    student = figures["engines"]["distilled"]
    assert (student["median_ms"], student["speedup"]) == (None, None)
    assert student["accuracy"] == models["student"]["test_accuracy"]
    assert student["file_bytes"] == (out / "student/model.safetensors").stat().st_size
    said = StringIO()
    Console(file=said, width=200).print(table(figures))
    assert "weights" in said.getvalue() and "latency" not in said.getvalue()
    page = write_report(out).read_text()
    assert not [word for word in ("Latency, median", "the student, quantised", "bench.json") if word in page]


def test_a_seed_may_not_change_beside_the_deploy(stopped):
    out = stopped[0] / "out"
    held, rest = out / "recipe.yaml", ["deploy.rounds=7"]
    with pytest.raises(RecipeError, match="another recipe"):
        going_on(load_recipe(held, ["seed=1", "deploy={rounds: 7}"]), out, True)
    assert going_on(load_recipe(held, ["deploy={rounds: 7}"]), out, True)
    with pytest.raises(RecipeError, match="'deploy' is a value"):
        load_recipe(held, rest)


def test_a_run_of_a_version_with_fewer_keys_goes_on(stopped, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(stopped[0] / "out", out)
    text = (out / "recipe.yaml").read_text()
    (out / "recipe.yaml").write_text(text.replace("tensorboard: false\n", ""))
    assert (out / "recipe.yaml").read_text() != text
    assert going_on(load_recipe(stopped[0] / "out/recipe.yaml"), out, True)
    for damaged in (text.replace("seed: 0", "seed: 1"), text[: len(text) // 2], "", "[1"):
        (out / "recipe.yaml").write_text(damaged)
        with pytest.raises(RecipeError, match="another recipe"):
            going_on(load_recipe(stopped[0] / "out/recipe.yaml"), out, True)


def test_it_goes_on_to_engines_with_the_same_student(stopped):
    home, _ = stopped
    student = digest(home / "out/student/model.safetensors")
    process = run(*SHORT, *ONNX, "--resume", cwd=home)
    assert process.returncode == 0, process.stderr
    assert process.stdout.count("done before") == 4
    assert digest(home / "out/student/model.safetensors") == student
    assert (home / "out/bundle/manifest.json").is_file()
    ledger = json.loads((home / "out/ledger.json").read_text())
    assert [s["name"] for s in ledger["stages"]][4:] == ["export", "test", "bench", "bundle"]
    with pytest.raises(RecipeError, match="another recipe"):
        going_on(load_recipe(home / "out/recipe.yaml", ["deploy=null"]), home / "out", True)
