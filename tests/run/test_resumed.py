"""A run that is resumed under other versions or threads says so once, whatever stage it goes on with."""

import io
import json

import pytest
import yaml
from rich.console import Console
from test_failures import RECIPE

from compress.recipe.loading import load_recipe
from compress.run.ledger import Ledger
from compress.run.prepare import prepare, take_up
from compress.run.progress import Ui
from compress.train import checkpoint
from deploy.report import render


@pytest.fixture
def resumed(tmp_path):
    """Begins a run; each call takes it up again and gives what was printed."""
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    recipe = load_recipe(tmp_path / "recipe.yaml", trusted=["test_failures"])
    prepare(recipe, tmp_path / "out", False)

    def again():
        said = io.StringIO()
        take_up(prepare(recipe, tmp_path / "out", True), Ui(Console(file=said), "lines"))
        return said.getvalue()

    return again


def test_a_run_resumed_under_others_says_so_once(resumed, tmp_path, monkeypatch):
    ledger = tmp_path / "out/ledger.json"
    before = ledger.read_bytes()
    assert resumed() == ""
    assert ledger.read_bytes() == before
    began = Ledger.read(ledger).made_by
    monkeypatch.setattr(checkpoint.np, "__version__", "9.9")
    monkeypatch.setattr(checkpoint.torch, "get_num_threads", lambda: 77)
    expected = (
        f"Resumed under numpy 9.9 (it began under {began['numpy']}), threads 77 (it began under {began['threads']}): "
        "the weights may differ in their last bits from an uninterrupted run."
    )
    assert [resumed(), resumed()] == [f"{expected}\n", ""]
    assert Ledger.read(ledger).notes == (expected,)
    assert expected.split(":")[0] in render(json.loads(ledger.read_text()), {}, "")
    events = [json.loads(line) for line in (tmp_path / "out/log.jsonl").read_text().splitlines()]
    assert [event["event"] for event in events] == ["start", "resume"]
    monkeypatch.undo()
    assert resumed() == ""
