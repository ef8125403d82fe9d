"""What a terminal would obey is shown, not sent: names of classes and files, what a broken file says of itself."""

import io
import json
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest
from rich.table import Table
from rich.text import Text

from compress.cli import app
from compress.terminal import Terminal, plain

HOSTILE = "a\x1b[31m\r\n\x9b2J\u202eb\udcffc\u00e9"
SHOWN = r"a\x1b[31m\r\n\x9b2J\u202eb\udcffc" + "é"


def test_one_line_in_which_nothing_is_obeyed():
    assert plain(HOSTILE) == SHOWN
    assert plain("fin\u00e9, 1\u00a0%, 漢字 \U0001f41c") == "fin\u00e9, 1\u00a0%, 漢字 \U0001f41c"


def test_a_terminal_keeps_its_own_colours_and_shows_the_rest():
    terminal = Terminal()
    terminal.file, terminal._force_terminal = io.StringIO(), True
    table = Table("head")
    table.add_row("x\x1b[2Jy")
    terminal.print(table)
    terminal.print(Text("m\x9bn\nnext", "bold"))
    terminal.print("p\x1bq :bee:", markup=False)
    sent = terminal.file.getvalue()
    assert r"x\x1b[2Jy" in sent and r"m\x9bn" in sent and r"p\x1bq :bee:" in sent
    assert (
        "\x1b[2J" not in sent and "\x9b" not in sent and "\nnext" in sent.replace("\x1b[1m", "").replace("\x1b[0m", "")
    )


def niwaki(monkeypatch, *arguments) -> int:
    monkeypatch.setattr(sys, "argv", ["niwaki", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        app.main()
    return ended.value.code


def test_an_error_is_one_line_whatever_it_names(monkeypatch, capsys, tmp_path):
    assert niwaki(monkeypatch, "gate", tmp_path / "a\x1b[31m\nb", "--baseline", tmp_path / "none") == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and r"a\x1b[31m\nb" in said and "\x1b" not in said


def test_names_of_classes_and_files_are_shown(monkeypatch, capsys, tmp_path):
    class Engine:
        classes = ()
        manifest = SimpleNamespace(inputs=())

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def predict(self, images):
            return [{"file": str(images[0]), "class": "ant\x1b]0;owned\x07", "probability": 0.5}]

    monkeypatch.setattr("deploy.load", lambda *_, **__: Engine(), raising=False)
    assert niwaki(monkeypatch, "predict", tmp_path, "\x1bc.png") == 0
    assert capsys.readouterr().out == r"\x1bc.png: ant\x1b]0;owned\x07 (50.0 %)" + "\n"
    assert niwaki(monkeypatch, "predict", tmp_path, "\x1bc.png", "--json") == 0
    assert json.loads(capsys.readouterr().out)[0]["file"] == "\x1bc.png"


@pytest.mark.parametrize("name", ["WORLD_SIZE", "RANK"])
@pytest.mark.parametrize("said", ["", "x", "-1", "2"])
def test_what_a_launcher_left_behind_does_not_hide_an_error(name, said, monkeypatch, capsys, tmp_path):
    monkeypatch.setenv(name, said)
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    assert niwaki(monkeypatch, "gate", tmp_path / "none", "--baseline", tmp_path / "none") == 2
    assert "Cannot read the record" in capsys.readouterr().err


@pytest.mark.parametrize("said", ["", "x", "-1"])
def test_a_run_refuses_a_number_that_no_launcher_leaves(said, monkeypatch, capsys, tmp_path):
    pytest.importorskip("torch")
    monkeypatch.setenv("RANK", said)
    assert niwaki(monkeypatch, "run", tmp_path / "none.yaml") == 2
    told = f"niwaki: The environment says RANK={said!r}, which is not a number; unset RANK."
    assert capsys.readouterr().err == f"{told} More: niwaki docs recipes\n"


def test_a_reader_that_goes_away_is_no_failed_gate(tmp_path):
    record = {"name": "a", "model": "a", "runtime": "r", "precision": "fp32", "batch": 1, "status": "measured"}
    bench = {"name": "b", "records": [record | {"median_ms": 1.0, "repeats": 3}]}
    (tmp_path / "b.json").write_text(json.dumps(bench))
    command = [
        sys.executable,
        "-c",
        "from compress.cli.app import main; main()",
        "gate",
        "b.json",
        "--baseline",
        "b.json",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=tmp_path) as running:
        running.stdout.close()
        assert running.stderr.read() == b""
    assert running.returncode == 128 + signal.SIGPIPE


def test_a_terminal_without_the_character_gets_its_escape(tmp_path):
    command = [
        sys.executable,
        "-c",
        "from compress.cli.app import main; main()",
        "gate",
        tmp_path / "é",
        "--baseline",
        "x",
    ]
    done = subprocess.run(command, capture_output=True, env={"PYTHONIOENCODING": "ascii", "LANG": "C"}, check=False)
    assert done.returncode == 2 and rb"\xe9" in done.stderr
