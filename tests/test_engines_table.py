"""The table of engines: the smallest row for real, and what a row that ends badly says."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks import engines_rows, engines_table
from benchmarks.engines_rows import STAGES

pytestmark = pytest.mark.heavy


@pytest.mark.slow
def test_the_smallest_row(tmp_path, capsys):
    out, table = tmp_path / "t.json", tmp_path / "t.md"
    stages = ["export", "onnxruntime", "openvino", "fp16"]
    line = ["--only", "ResNet-18", "--cuts", "cut", "--side", "32", "--out", str(out), "--markdown", str(table)]
    assert engines_table.main([*line, "--stages", *stages]) == 0
    (row,) = json.loads(out.read_text())["rows"]
    assert all(row[stage]["works"] for stage in stages), row
    assert (row["side"], row["odd"] > 10) == (32, True)
    assert max(row[one]["error"] for one in ("onnxruntime", "openvino")) < 1e-4
    assert row["fp16"]["snr_db"] > 30
    assert "| ResNet-18 | 32 | cut," in table.read_text()
    assert "not asked for" in capsys.readouterr().out


def test_what_is_there_is_not_run_again(tmp_path, monkeypatch):
    asked = []

    def run(name, cut, stages, **_):
        asked.append((cut, tuple(stages)))
        return {stage: {"works": False, "why": "never"} for stage in stages}

    monkeypatch.setattr(engines_table, "run_row", run)
    line = ["--only", "ResNet-18", "--cuts", "dense", "--out", str(tmp_path / "t.json")]
    engines_table.main([*line, "--stages", "fp16"])
    engines_table.main(line)
    assert asked == [("dense", ("fp16",)), ("dense", tuple(one for one in STAGES if one != "fp16"))]


def test_no_row_begins_after_its_time_and_the_next_call_goes_on(tmp_path, monkeypatch, capsys):
    asked = []

    def run(name, cut, stages, **_):
        asked.append((name, cut))
        return {stage: {"works": False, "why": "never"} for stage in stages}

    monkeypatch.setattr(engines_table, "run_row", run)
    clock = iter([0.0, 30.0, 90.0, *[0.0] * 9])
    monkeypatch.setattr(engines_table, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    line = ["--only", "ResNet-18", "--out", str(tmp_path / "t.json"), "--minutes", "1"]
    assert engines_table.main(line) == 0
    assert asked == [("ResNet-18", "dense")] and "left for the next call" in capsys.readouterr().out
    assert engines_table.main(line) == 0
    assert asked == [("ResNet-18", "dense"), ("ResNet-18", "cut")]


def test_trained_rows_say_it_where_nobody_trained(monkeypatch):
    monkeypatch.setenv("NIWAKI_TRAINED", "/nowhere")
    networks = [one for one in engines_rows.NETWORKS.values() if one.trained]
    assert [one.factory for one in networks] == ["mobilenet_v3_small", "efficientnet_b0"]
    with pytest.raises(FileNotFoundError, match=r"mobilenet_v3_small\.safetensors"):
        engines_rows.build(networks[0], "dense", np.zeros((2, 3, 64, 64), np.float32))


def test_a_row_that_does_not_end_has_a_reason():
    row = engines_table.run_row("ResNet-18", "dense", ["fp16", "int8"], limit=0.05)
    assert row["fp16"] == row["int8"] == {"works": False, "why": "not done within 0 s"}
    shown = engines_table.cells(row)
    assert (shown[6], shown[7], shown[9]) == ("not done within 0 s", "not done within 0 s", "fp32")
