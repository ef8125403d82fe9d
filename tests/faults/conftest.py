"""The run in one piece, which every run that was interrupted has to equal."""

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
