"""The example repository: its tests and the steps of its workflows are carried out with two files of ours."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from test_bench_inputs import network

from deploy.bench.records import Bench

pytestmark = pytest.mark.heavy
ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples/gate"


@pytest.fixture
def repository(files, tmp_path):
    """A copy of the example with a model, a baseline and the two commands on its path."""
    copy = tmp_path / "repository"
    shutil.copytree(EXAMPLE, copy)
    (copy / "model").mkdir()
    shutil.copy(files["fp32"], copy / "model/teacher.fp32.onnx")
    shutil.copy(files["int8"], copy / "model/student.int8.onnx")
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, code in (
        ("niwaki", "from compress.cli.app import main; main()"),
        ("pytest", "import sys, pytest; sys.exit(pytest.main([*sys.argv[1:], *PLUGINS]))"),
    ):
        # Where the package is installed its entry point loads the plugin, and it must not be loaded twice.
        registered = "any(e.value == 'deploy.bench.plugin' for e in entry_points(group='pytest11'))"
        head = "from importlib.metadata import entry_points\nPLUGINS = "
        head += f"[] if {registered} else ['-p', 'deploy.bench.plugin']\n"
        (programs / name).write_text(f"#!{sys.executable}\n{head}{code}\n")
        (programs / name).chmod(0o755)
    return copy


def done(script, repository):
    own = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "COV_"))}
    path = f"{repository.parent / 'bin'}{os.pathsep}{own['PATH']}"
    own |= {"PATH": path, "PYTHONPATH": str(ROOT), "GITHUB_STEP_SUMMARY": str(repository / "summary.md")}
    command = ["bash", "-eo", "pipefail", "-c", script]
    return subprocess.run(command, cwd=repository, env=own, capture_output=True, text=True, check=False)


def steps():
    """What the two workflows run, without the installation, and of the timing less than in earnest."""
    github = yaml.safe_load((EXAMPLE / ".github/workflows/gate.yml").read_text("utf-8"))
    gitlab = yaml.safe_load((EXAMPLE / ".gitlab-ci.yml").read_text("utf-8"))
    ours = [step["run"] for step in github["jobs"]["gate"]["steps"] if "run" in step]
    return {"github": ours, "gitlab": [*gitlab["gate"]["before_script"], *gitlab["gate"]["script"]]}


@pytest.mark.parametrize("host", ["github", "gitlab"])
def test_the_steps_of_the_workflows_are_carried_out(host, repository):
    install, *scripts = steps()[host]
    assert install == "pip install 'niwaki-vision[pytest]'"
    for script in scripts:
        # What is timed for a moment is no measurement: it is the commands that are tried here.
        quick = script.replace("--isolate 2", "--rounds 5").replace(
            "--engines model", "--latency-tolerance 99 --repeats 0"
        )
        quick = re.sub(r"^niwaki gate", "niwaki gate --allow tail --allow absolute --allow interval", quick)
        quick = quick.replace("pytest --", "pytest --benchmark-disable --niwaki-latency-tolerance 99 --")
        found = done(quick, repository)
        assert found.returncode == 0, found.stdout + found.stderr
        if "niwaki bench" in script:
            shutil.copy(repository / "bench.json", repository / "baseline.json")
    assert "testsuites" in (repository / "gate.xml").read_text()
    summary = repository / ("summary.md" if host == "github" else "gate.md")
    assert summary.read_text().startswith("## niwaki gate: passed")
    if host == "github":
        names = {record.name for record in Bench.from_file(repository / "pytest-bench.json").records}
        assert names == {"teacher.fp32", "student.int8"}


def test_a_test_fails_where_its_engine_is_slower_than_the_baseline_and_storage_holds_the_ratio(repository):
    made = done(
        "niwaki bench model/teacher.fp32.onnx model/student.int8.onnx --rounds 5 --out baseline.json", repository
    )
    assert made.returncode == 0, made.stderr
    baseline = json.loads((repository / "baseline.json").read_text())
    baseline["records"][1] |= {"ratio_of_best": 1e-3, "best_interval": [1e-3, 1e-3]}
    (repository / "baseline.json").write_text(json.dumps(baseline))
    options = "--benchmark-json stored.json --benchmark-max-time 0.05 --benchmark-min-rounds 5"
    found = done(f"pytest {options}", repository)
    assert found.returncode == 1, found.stdout
    assert "student.int8, latency, best:" in found.stdout
    assert "against 0.001" in found.stdout
    (stored,) = json.loads((repository / "stored.json").read_text())["benchmarks"]
    assert stored["extra_info"]["ratio_of_best"] > 1e-3
    skipped = done("pytest -o niwaki_engine= -rs", repository)
    assert skipped.returncode == 0 and "no engine is named" in skipped.stdout


def test_a_reference_may_take_other_inputs_and_a_scalar_is_fed(repository):
    network(repository / "model/wide.onnx", "pixels", ["n", 3, 8, 8])
    network(repository / "model/scaled.onnx", "image", ["n", 3, 8, 8], scalar=True)
    options = "--benchmark-disable --niwaki-baseline none.json --niwaki-record told.json"
    found = done(f"pytest {options} --niwaki-engine model/scaled.onnx --niwaki-reference model/wide.onnx", repository)
    assert found.returncode == 0, found.stdout
    records = Bench.from_file(repository / "told.json").records
    assert [record.name for record in records] == ["wide", "scaled"]
    network(repository / "model/open.onnx", "image", ["n", 3, "h", 8])
    found = done(f"pytest {options} --niwaki-engine model/open.onnx --niwaki-reference model/open.onnx", repository)
    assert found.returncode == 1 and "leaves the size of 'image' open" in found.stdout


def test_the_plugin_imports_nothing_heavy_until_it_is_used():
    code = (
        "import sys, pytest; before = set(sys.modules); import deploy.bench.plugin; "
        "print(*sorted({name.split('.')[0] for name in set(sys.modules) - before}))"
    )
    done_ = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert not {"numpy", "pydantic", "onnxruntime", "openvino", "torch", "PIL"} & set(done_.stdout.split())
