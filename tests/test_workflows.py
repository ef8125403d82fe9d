"""What runs the tests elsewhere: the workflows fit GitHub's schema, and what they run can be run."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

pytestmark = pytest.mark.heavy

ROOT = Path(__file__).resolve().parents[1]
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
# Steps that take moments here, and change nothing.
CARRIED_OUT = {"Lint", "Links"}
TESTS_OF_EACH_KIND = "tests/test_docs.py tests/train/test_killed.py"


def steps():
    for path in WORKFLOWS:
        for job in yaml.safe_load(path.read_text("utf-8"))["jobs"].values():
            for step in job["steps"]:
                if "run" in step:
                    yield pytest.param(step["name"], step["run"], id=f"{path.stem}-{step['name']}")


STEPS = list(steps())


def test_they_fit_the_schema(tmp_path):
    pytest.importorskip("check_jsonschema", reason="check-jsonschema is not installed")
    check = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.github-workflows"]
    done = subprocess.run([*check, *WORKFLOWS], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    wrong = tmp_path / "wrong.yml"
    wrong.write_text(WORKFLOWS[0].read_text("utf-8").replace("runs-on", "runs-at"))
    assert subprocess.run([*check, wrong], capture_output=True, check=False).returncode == 1


def test_every_supported_python_is_tried():
    versions = yaml.safe_load((ROOT / ".github/workflows/tests.yml").read_text("utf-8"))
    tried = versions["jobs"]["tests"]["strategy"]["matrix"]["python"]
    listed = re.findall(r"Python :: (3\.\d+)", (ROOT / "pyproject.toml").read_text("utf-8"))
    assert tried == listed


def done(script, **env):
    """The script as a step is carried out: by bash that stops at the first failure, in the environment of this test."""
    if shutil.which("uv") is None:
        pytest.skip("uv is not on PATH: pip install uv")
    own = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    own |= {"UV_PROJECT_ENVIRONMENT": sys.prefix, "UV_NO_SYNC": "1", "UV_OFFLINE": "1"} | env
    command = ["bash", "-eo", "pipefail", "-c", script]
    return subprocess.run(command, cwd=ROOT, env=own, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(("name", "script"), STEPS)
def test_a_step_is_a_script_of_bash(name, script):
    plain = re.sub(r"\$\{\{.*?\}\}", "x", script)
    checked = subprocess.run(["bash", "-n"], input=plain, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr


@pytest.mark.parametrize(("name", "script"), [step for step in STEPS if step.values[0] in CARRIED_OUT])
def test_what_takes_moments_is_carried_out(name, script):
    # What would be fetched for it is here.
    found = done(script.replace("uv run --no-project --with pytest", "uv run"))
    assert found.returncode == 0, found.stdout + found.stderr


@pytest.mark.parametrize(("name", "script"), [s for s in STEPS if "uv run pytest" in s.values[1]])
def test_what_is_asked_of_pytest_names_tests(name, script):
    found = done(script, PYTEST_ADDOPTS=f"--collect-only -q {TESTS_OF_EACH_KIND}")
    assert found.returncode == 0, found.stdout + found.stderr
    assert re.search(r"[1-9]\d*(/\d+)? tests? collected", found.stdout), found.stdout
