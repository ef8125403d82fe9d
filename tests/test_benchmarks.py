"""The comparison with Torch-Pruning: what it reports and how it refuses; its figures are another day's work."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def compare(*arguments):
    command = [sys.executable, "-m", "benchmarks.vs_torch_pruning", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)


def timing(seconds, **stages):
    return {"seconds": seconds, "stages": stages, "rounds": 5, "parameters_left": 0.26, "difference": 3e-7}


def row(model, ours, theirs, why=""):
    stages = dict.fromkeys(("trace", "score", "plan", "apply"), 0.001)
    return {
        "model": model,
        "niwaki": timing(ours, **stages) if ours else None,
        "torch_pruning": timing(theirs, graph=0.2, prune=0.1) if theirs else None,
        "ratio": theirs / ours if ours and theirs else None,
        "why": why,
    }


@pytest.fixture
def stored(tmp_path):
    """What an earlier run wrote; niwaki failed on one of its models."""
    found = {
        "machine": {"cpu": "some CPU", "cores": 2},
        "versions": {"torch": "2.15.0", "torch-pruning": "1.6.1"},
        "rows": [
            row("a", 0.1, 0.25),
            row("b", 0.2, None, "torch-pruning: timeout (120 s)"),
            row("c", None, 1.0, "niwaki: PlanError: no channel is free"),
        ],
        "summary": {"models": 3, "compared": 1, "median_ratio": 2.5, "min_ratio": 2.5, "min_ratio_model": "a"},
    }
    path = tmp_path / "found.json"
    path.write_text(json.dumps(found))
    return path


def test_an_earlier_run_is_shown_again(stored):
    done = compare("--read", stored, "--markdown")
    lines = done.stdout.splitlines()
    assert lines[0].startswith("Median 2.50x, least 2.50x (a), over the 1 of 3 models where both succeed. some CPU")
    assert "| a | 100 | 1.0 | 1.0 | 1.0 | 1.0 | 250 | 2.50x | 26/26 | 3e-07 |" in lines
    assert "| b | 200 | 1.0 | 1.0 | 1.0 | 1.0 | timeout (120 s) | – | 26/– | 3e-07 |" in lines
    assert done.returncode == 1  # c is a fault of ours
    assert "timeout (120 s)" in compare("--read", stored).stdout


needs_torch_pruning = pytest.mark.skipif(
    importlib.util.find_spec("torch_pruning") is None,
    reason="torch-pruning is not installed: uv sync --group benchmark",
)


@needs_torch_pruning
def test_a_model_that_torchvision_has_not_is_refused():
    done = compare("--models", "resnet19")
    assert done.returncode == 2
    assert done.stderr.startswith("torchvision has no classifier 'resnet19'")


@needs_torch_pruning
@pytest.mark.slow
def test_resnet18_is_cut_by_both_and_compared(tmp_path):
    done = compare("--models", "resnet18", "--repeats", 1, "--json", tmp_path / "found.json")
    assert done.returncode == 0, done.stderr
    assert "resnet18" in done.stdout
    found = json.loads((tmp_path / "found.json").read_text())
    assert {"date", "machine", "versions", "settings", "rows", "summary"} <= set(found)
    assert found["versions"]["torch-pruning"] == "1.6.1"
    (only,) = found["rows"]
    assert only["why"] == ""
    assert set(only["niwaki"]["stages"]) == {"trace", "score", "plan", "apply"}
    assert only["niwaki"]["difference"] < 1e-4
    # Both have halved every width, the classifier's outputs apart.
    assert only["niwaki"]["parameters_left"] == pytest.approx(only["torch_pruning"]["parameters_left"], rel=0.02)
    assert only["ratio"] == pytest.approx(only["torch_pruning"]["seconds"] / only["niwaki"]["seconds"])
    assert found["summary"]["compared"] == 1
