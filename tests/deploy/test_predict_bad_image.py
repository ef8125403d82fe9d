"""One bad image does not take the answers for the others, and the printed commands can be pasted."""

import json
import shlex
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import deploy
from compress.cli import app, run
from deploy.errors import DeployError


def niwaki(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["niwaki", *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        app.main()
    return ended.value.code


def test_the_others_are_answered_and_the_bad_one_is_named(bundle_dir, picture, tmp_path, monkeypatch, capsys):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    assert niwaki(monkeypatch, "predict", bundle_dir, picture, broken, picture, "--json") == 2
    said = capsys.readouterr()
    assert [row["file"] for row in json.loads(said.out)] == [str(picture)] * 2
    assert "broken.png could not be predicted" in " ".join(said.err.split()).replace("broken. png", "broken.png")
    assert niwaki(monkeypatch, "predict", bundle_dir, broken) == 2
    assert capsys.readouterr().out == ""


def test_number_13_an_empty_folder_or_an_odd_name_takes_no_answer_from_the_others(
    bundle_dir, picture, tmp_path, monkeypatch, capsys
):
    (tmp_path / "empty").mkdir()
    (tmp_path / "zero.png").touch()
    odd = [tmp_path / "empty", tmp_path / ("long" * 100), tmp_path / "missing.png", tmp_path / "zero.png"]
    assert niwaki(monkeypatch, "predict", bundle_dir, odd[0], picture, *odd[1:], picture, "--json") == 2
    said = capsys.readouterr()
    assert [row["file"] for row in json.loads(said.out)] == [str(picture)] * 2
    heard = "".join(said.err.split())
    assert "whichisafolder" in heard and all(path.name in heard for path in odd)
    assert niwaki(monkeypatch, "predict", bundle_dir, odd[0]) == 2
    assert "holds no image" in " ".join(capsys.readouterr().err.split())


def test_a_folder_with_spaces_is_quoted(monkeypatch, capsys):
    monkeypatch.setattr("compress.run.summary.summary", lambda folder: {"noise": None})
    monkeypatch.setattr("compress.run.summary.table", lambda figures: "")
    folder = Path("my runs/a b")
    run._show(SimpleNamespace(deploy=True), folder, folder / "report.html", quiet=False, as_json=False)
    lines = [shlex.split(line) for line in capsys.readouterr().out.splitlines() if line.startswith(("Predict", "Gate"))]
    assert lines[0][1:] == ["niwaki", "predict", "my runs/a b/bundle", "my runs/a b/samples/*.png"]
    assert lines[1][-1] == "my runs/a b/bench.json"


def test_number_13_commands_within_errors_are_quoted_too(bundle_dir, tmp_path, monkeypatch, capsys):
    folder = bundle_dir.rename(tmp_path / "my bundle")
    with pytest.raises(DeployError, match=r"make one with `niwaki build '.*/my bundle'`\.$"):
        deploy.load(folder, runtime="tensorrt_rtx")
    with pytest.raises(DeployError, match=r"make one with `niwaki build '.*/my bundle' --runtime tensorrt`\.$"):
        deploy.load(folder, runtime="tensorrt")
    (tmp_path / "a b").mkdir()
    assert niwaki(monkeypatch, "profile", tmp_path / "a b") == 2
    assert "niwaki profile '" in " ".join(capsys.readouterr().err.split())
