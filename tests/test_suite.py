"""How the tests themselves are run: marked by what they cost, the costly first, in several processes."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).resolve().parents[1]
SETTINGS = ("conftest.py", "pyproject.toml")


def conftest():
    spec = importlib.util.spec_from_file_location("conftest_of_all", ROOT / "conftest.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Item:
    def __init__(self, path, *marks):
        self.path, self.marks = Path(path), set(marks)

    def get_closest_marker(self, name):
        return name if name in self.marks else None

    def add_marker(self, name):
        self.marks.add(name)


def test_what_has_no_costly_marker_is_quick_and_costly_files_go_first():
    items = [Item("a"), Item("b", "data"), Item("b", "slow"), Item("c", "heavy"), Item("d", "zoo", "heavy")]
    before = list(items)
    conftest().pytest_collection_modifyitems(SimpleNamespace(), items)
    assert items == before
    assert ["quick" in item.marks for item in items] == [True, True, False, False, False]
    conftest().pytest_collection_modifyitems(SimpleNamespace(workerinput={}), items)
    assert [str(item.path) for item in items] == ["b", "b", "d", "c", "a"]


def ran(folder, *options):
    command = [sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider", *options]
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.heavy
def test_several_files_are_tested_side_by_side_and_a_file_by_one(tmp_path):
    pytest.importorskip("xdist", reason="pytest-xdist is not installed")
    (tmp_path / "tests").mkdir()
    for name in SETTINGS:
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    for name in "ab":
        text = "import os\ndef test_1(): assert os.environ['OMP_NUM_THREADS']\ndef test_2(): pass\n"
        (tmp_path / f"tests/test_{name}.py").write_text(text)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    lines = [line for line in ran(tmp_path, "tests").splitlines() if "PASSED" in line]
    assert len(lines) == 4
    if cores > 1:
        of = {name: {line.split()[0] for line in lines if f"test_{name}.py" in line} for name in "ab"}
        assert all(len(found) == 1 for found in of.values()), "a file stays in one process"
    assert "[gw" not in ran(tmp_path, "tests/test_a.py")
    assert "[gw" not in ran(tmp_path, "tests", "-n", "0")
