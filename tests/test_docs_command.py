"""``niwaki docs``, the examples of ``--help``, and the command line's page."""

import json
import shlex
import sys

import pytest
import typer.main

from benchmarks import cli_reference
from compress.cli import docs
from compress.cli.app import app, main
from compress.cli.examples import EXAMPLES

COMMANDS = typer.main.get_command(app).commands


def said(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["niwaki", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    shown = capsys.readouterr()
    return ended.value.code, shown.out, shown.err


def test_a_page_is_printed_as_it_is_where_there_is_no_terminal_but_for_remarks_to_its_tests(monkeypatch, capsys):
    code, out, err = said(monkeypatch, capsys, "docs", "cpp")
    assert (code, err) == (0, "")
    page = (docs.CHECKOUT / "howto/cpp.md").read_text("utf-8")
    assert "<!-- needs:" in page
    assert out == "".join(line for line in page.splitlines(keepends=True) if not line.startswith("<!-- needs:"))


def test_the_readme_is_a_page(monkeypatch, capsys):
    code, out, _ = said(monkeypatch, capsys, "docs", "README")
    assert (code, out.partition("\n")[0]) == (0, "# Niwaki 庭木")


def test_pages_are_listed_with_their_titles(monkeypatch, capsys):
    code, out, _ = said(monkeypatch, capsys, "docs", "--json")
    assert code == 0
    listed = json.loads(out)
    assert listed["recipes"] == "Recipes"
    assert set(listed) == set(docs.topics(docs.CHECKOUT))


def test_a_page_comes_as_json(monkeypatch, capsys):
    code, out, _ = said(monkeypatch, capsys, "docs", "howto/cpp.md", "--json")
    assert code == 0
    assert json.loads(out)["topic"] == "howto/cpp"


@pytest.mark.parametrize(
    ("asked", "says"),
    [("../../etc/passwd", "niwaki docs lists them"), ("bench", "near it are benchmarking, benchmarks")],
)
def test_a_page_that_is_not_there_is_one_sentence(monkeypatch, capsys, asked, says):
    code, out, err = said(monkeypatch, capsys, "docs", asked)
    assert (code, out) == (2, "")
    assert says in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "page"),
    [
        (("run", "none.yaml"), "recipes"),
        (("predict", "none", "none.png"), "bundles"),
        (("gate", "none.json", "--baseline", "none.json"), "howto/ci_gate"),
        (("init", "none"), "quickstart"),
        (("export", "none", "--out", "none.onnx"), "engines"),
    ],
)
def test_an_error_ends_with_the_page_that_says_more(monkeypatch, capsys, tmp_path, arguments, page):
    monkeypatch.chdir(tmp_path)
    code, _, err = said(monkeypatch, capsys, *arguments)
    assert code == 2
    assert err.endswith(f". More: niwaki docs {page}\n") and err.count("\n") == 1


def test_a_wheel_without_pages_says_so(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(docs, "INSTALLED", tmp_path / "none")
    monkeypatch.setattr(docs, "CHECKOUT", tmp_path / "neither")
    code, _, err = said(monkeypatch, capsys, "docs")
    assert code == 2
    assert "holds no pages" in err


def test_every_command_has_an_example():
    assert set(EXAMPLES) == set(COMMANDS)


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_parses_and_names_a_page(name):
    example, page = EXAMPLES[name]
    program, verb, *arguments = shlex.split(example)
    assert (program, verb) == ("niwaki", name)
    with COMMANDS[name].make_context(name, arguments) as context:
        assert context.params
    assert page in docs.topics(docs.CHECKOUT)


def test_help_ends_with_the_example(monkeypatch, capsys):
    code, out, _ = said(monkeypatch, capsys, "gate", "--help")
    assert code == 0
    assert EXAMPLES["gate"][0] in " ".join(out.split())


def test_the_page_of_the_command_line_is_up_to_date():
    assert cli_reference.PAGE.read_text("utf-8") == cli_reference.text(), "run python -m benchmarks.cli_reference"
