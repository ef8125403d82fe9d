"""Records in a SQLite file: added once, shown over commits, and the changes that lasted are named."""

import json
import sqlite3
import sys
from types import SimpleNamespace
from xml.etree import ElementTree

import numpy as np
import pytest
from test_gate_sees import bench
from typer.testing import CliRunner

from compress.cli.app import app
from deploy.bench.history import HistoryEntry, append, changes, plot, series, sparkline, to_mlflow
from deploy.errors import DeployError, MissingDependency


def entries(values):
    return [HistoryEntry(place, f"2026-01-{place:02d}", f"c{place}", value) for place, value in enumerate(values)]


def noisy(levels, scatter=0.01):
    rng = np.random.default_rng(0)
    return entries([level * (1 + scatter * rng.standard_normal()) for level, count in levels for _ in range(count)])


def test_a_lasting_change_is_named_and_a_hiccup_is_not():
    found = changes(noisy([(0.5, 20), (0.6, 20)]))
    assert [change.at.commit for change in found] == ["c20"]
    assert str(found[0]).startswith("+2") and "since c20: 0.499" in str(found[0])
    assert changes(noisy([(0.5, 40)])) == []
    hiccup = noisy([(0.5, 20), (0.9, 1), (0.5, 20)])
    assert changes(hiccup) == []
    several = changes(noisy([(0.5, 15), (0.7, 15), (0.4, 15)]))
    assert [change.at.commit for change in several] == ["c15", "c30"]


def test_no_change_is_found_where_there_is_none():
    rng = np.random.default_rng(1)
    found = sum(bool(changes(entries(1 + 0.05 * rng.standard_normal(30)))) for _ in range(50))
    assert found <= 2


def test_a_record_is_added_once_and_read_back(tmp_path):
    database = tmp_path / "a/history.db"
    assert append(database, bench(), "c0ffee") > 10
    assert append(database, bench().model_copy(update={"created": bench().created}), "c0ffee") >= 0
    twice = bench()
    append(database, twice, "d")
    assert append(database, twice, "d") == 0
    found = series(database, "int8", "ratio_of_best")
    assert {entry.value for entry in found} == {0.4}
    assert {entry.commit for entry in found} == {"c0ffee", "d"}
    for engine, metric, says in (("x", "median_ms", "it knows dense, int8"), ("int8", "luck", "no metric 'luck'")):
        with pytest.raises(DeployError, match=says):
            series(database, engine, metric)


def test_what_is_no_history_is_a_sentence(tmp_path):
    (tmp_path / "text.db").write_text("this is no database, but long enough to be looked at" * 20)
    with pytest.raises(DeployError, match="cannot be used as a history"):
        append(tmp_path / "text.db", bench())
    with sqlite3.connect(tmp_path / "new.db") as connection:
        connection.execute("PRAGMA user_version = 9")
    with pytest.raises(DeployError, match="of version 9"):
        append(tmp_path / "new.db", bench())
    with pytest.raises(DeployError, match="no history at"):
        series(tmp_path / "none.db", "a", "median_ms")


def test_the_command_adds_shows_and_draws(tmp_path):
    run, database = CliRunner(), str(tmp_path / "h.db")
    for place, ratio in enumerate([0.4] * 6 + [0.5] * 6):
        one = bench({"ratio_of_best": ratio, "best_interval": (ratio, ratio)})
        path = tmp_path / f"{place}.json"
        path.write_text(one.model_copy(update={"created": f"2026-01-{place + 1:02d}T00:00:00"}).to_json())
        added = run.invoke(app, ["history", str(path), "--db", database, "--commit", f"c{place}"])
        assert added.exit_code == 0, added.output
    shown = run.invoke(app, ["history", "--db", database, "--engine", "int8", "--plot", str(tmp_path / "p.svg")])
    assert "▁▁▁▁▁▁██████  0.5 (12 records)" in shown.stdout
    assert "+25.0 % since c6: 0.4 to 0.5" in shown.stdout
    assert ElementTree.parse(tmp_path / "p.svg").getroot().tag.endswith("svg")
    refused = run.invoke(app, ["history", str(tmp_path / "0.json"), "--db", str(tmp_path / "n.db"), "--plot", database])
    assert refused.exit_code != 0
    assert not (tmp_path / "n.db").exists()  # nothing was added before it was refused
    told = json.loads(run.invoke(app, ["history", "--db", database, "--json"]).stdout)
    assert [one["value"] for one in told["engines"]["int8"]["values"]][-1] == 0.5
    assert told["engines"]["dense"]["changes"] == []


def test_engines_without_the_metric_are_left_out_and_none_at_all_is_a_sentence(tmp_path):
    run, database, path = CliRunner(), str(tmp_path / "h.db"), tmp_path / "bench.json"
    path.write_text(bench({"accuracy": 0.9}, {"accuracy": None}).to_json())
    shown = run.invoke(app, ["history", str(path), "--db", database, "--metric", "accuracy", "--json"])
    assert list(json.loads(shown.stdout)["engines"]) == ["int8"]
    for metric, said in (
        ("p90_ms", "has no p90_ms of any engine; it knows dense, int8"),
        ("speed", "There is no metric 'speed'"),
    ):
        failed = run.invoke(app, ["history", "--db", database, "--metric", metric])
        assert failed.exit_code != 0 and said in str(failed.exception)


def test_a_plot_escapes_names_and_one_value_is_drawn_too():
    drawing = plot(entries([1.0]), [], '<a> & "b"')
    assert ElementTree.fromstring(drawing).get("aria-label") == '<a> & "b"'
    assert sparkline([1.0, 1.0]) == "▁▁"


def test_mlflow_gets_each_figure_where_it_is_installed(monkeypatch):
    logged = {}

    class Run:
        def __enter__(self):
            return self

        def __exit__(self, *_):
            return None

    fake = SimpleNamespace(start_run=lambda **_: Run(), set_tags=logged.update, log_metrics=logged.update)
    monkeypatch.setitem(sys.modules, "mlflow", fake)
    to_mlflow(bench(), "c0ffee")
    assert logged["int8/ratio_of_best"] == 0.4 and logged["commit"] == "c0ffee"
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(MissingDependency, match="pip install mlflow"):
        to_mlflow(bench())
