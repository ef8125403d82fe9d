"""Benchmarks run once by default, and are timed where pytest-benchmark is asked to."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.heavy

ROOT = Path(__file__).resolve().parents[1]
A_BENCHMARK = "def test_it(benchmark, timed, say):\n    say(f'timed: {timed}')\n    benchmark(lambda: None)\n"


@pytest.mark.parametrize(("options", "timed"), [(("-n", "0"), False), (("--benchmark-only",), True)])
def test_timing_is_asked_for(options, timed, tmp_path):
    (tmp_path / "benchmarks").mkdir()
    for name in ("conftest.py", "benchmarks/conftest.py", "pyproject.toml"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    (tmp_path / "benchmarks/test_it.py").write_text(A_BENCHMARK)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "benchmarks", *options],
        cwd=tmp_path,
        # What the processes of this pytest know of one another is no concern of that one's.
        env={name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"timed: {timed}" in done.stdout
    assert ("Median" in done.stdout) is timed


def test_benchmarks_are_stored_and_compared(tmp_path):
    (tmp_path / "benchmarks").mkdir()
    for name in ("conftest.py", "benchmarks/conftest.py", "pyproject.toml"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    (tmp_path / "benchmarks/test_it.py").write_text(A_BENCHMARK)
    for option in ("--benchmark-autosave", "--benchmark-compare"):
        command = [sys.executable, "-m", "pytest", "-q", "benchmarks", "--benchmark-only", option]
        env = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    assert len(list((tmp_path / ".benchmarks").rglob("0001_*.json"))) == 1
    assert "(0001_" in done.stdout and "(NOW)" in done.stdout


def test_timing_leaves_no_benchmark_out():
    """pytest-benchmark skips under --benchmark-only what does not take its fixture."""
    for file in sorted((ROOT / "benchmarks").glob("test_*.py")):
        for node in ast.parse(file.read_text("utf-8")).body:
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                taken = {argument.arg for argument in node.args.args}
                assert taken & {"benchmark", "measure"}, f"{file.name}: {node.name} would be skipped"


def test_the_networks_of_other_libraries_are_named_once_and_run_in_order():
    from benchmarks.foreign_networks import WHOLE_WAY, in_order, names

    every = list(names())
    assert len(every) == len(set(every)) >= 280
    ordered = in_order(every)
    assert set(ordered) == set(every)
    assert set(ordered[: len(WHOLE_WAY)]) == set(WHOLE_WAY), "those that are exported too come first"
    assert ordered[-1] == "transformers:mask2former", "the slow ones come last"
