"""A finished run folder of an earlier version, kept beside the tests: what needs a run and trains none begins here."""

import shutil
import sys

import pytest
from finished import unpack

from compress.cli import app


@pytest.fixture(scope="session")
def kept(tmp_path_factory):
    """The folder as it was; nothing writes to it."""
    return unpack(tmp_path_factory.mktemp("before"))


@pytest.fixture
def old_run(kept, tmp_path, monkeypatch):
    """A copy of it in the current folder, as ``run``, beside the recipe that it was made by."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(kept / "recipe.yaml", tmp_path / "recipe.yaml")
    return shutil.copytree(kept, tmp_path / "run")


@pytest.fixture
def command(monkeypatch, capsys):
    """Runs ``niwaki`` in this process; gives its exit code, standard output and standard error."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["niwaki", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            app.main()
        shown = capsys.readouterr()
        return ended.value.code, shown.out, shown.err

    return run
