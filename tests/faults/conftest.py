"""The run in one piece, which every run that was interrupted has to equal."""

import json

import fault_recipe
import pytest


@pytest.fixture(scope="session")
def whole(tmp_path_factory):
    """The folder in which ``out`` lies, and beside it ``calls``: how many calls of functions each stage makes."""
    home = tmp_path_factory.mktemp("whole")
    done = fault_recipe.ended(home, "count_in", "all")
    assert (done.returncode, done.stderr) == (0, "")
    return home


@pytest.fixture(scope="session")
def expected(whole):
    return fault_recipe.result(whole / "out")


@pytest.fixture(scope="session")
def seconds(tmp_path_factory):
    """How long each stage takes where nothing counts its calls."""
    home = tmp_path_factory.mktemp("seconds")
    done = fault_recipe.ended(home, "none")
    assert (done.returncode, done.stderr) == (0, "")
    ledger = json.loads((home / "out/ledger.json").read_text())
    return {stage["name"]: stage["seconds"] for stage in ledger["stages"]}
