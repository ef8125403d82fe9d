"""The table that a run ends with, of files that somebody altered."""

import json

import pytest

from compress.errors import ArtifactError
from compress.run.ledger import Ledger
from compress.run.summary import summary, table, table_of_several

MODEL = {"name": "teacher", "macs": 2, "params": 1, "file_bytes": 4, "test_accuracy": 0.5}
LEDGER = {"name": "x", "seed": 0, "test_images": 2, "metric": "accuracy", "stages": [{"seconds": 1.0}]}
RECORD = {"name": "dense", "accuracy": 0.5, "file_bytes": 4, "median_ms": 1.0, "speedup": 1.0}


def write(folder, models, records):
    (folder / "ledger.json").write_text(json.dumps({**LEDGER, "models": models}))
    (folder / "bench.json").write_text(json.dumps({"records": records}))
    return folder


def test_what_a_run_wrote_is_read(tmp_path):
    assert summary(write(tmp_path, [MODEL], [RECORD]))["engines"]["dense"]["macs"] == 2


def test_a_busy_machine_is_said_and_best_times_stand_beside_medians(tmp_path):
    busy = {"load": 9.0, "cores": 2, "processor_share": 0.4}
    records = [{**RECORD, "min_ms": 0.25, "conditions": busy}]
    found = summary(write(tmp_path, [MODEL], records))
    assert found["noise"] == "a load of 9.0 on 2 cores and the process had the processor for 40 % of the time"
    rows = table(found)
    cells = dict(zip(*(list(column.cells) for column in rows.columns), strict=True))
    assert (cells["latency, best"], cells["latency, median"]) == ("0.25 ms", "1.00 ms")
    assert summary(write(tmp_path, [MODEL], [RECORD]))["noise"] is None


def test_several_networks_have_best_times_beside_medians(tmp_path):
    model = {**MODEL, "params": 2000, "macs": 1e6}
    records = [{**RECORD, "name": name, "min_ms": 0.25} for name in ("dense", "distilled")]
    found = summary(write(tmp_path, [model, {**model, "name": "student"}], records))
    rows = table_of_several([found])
    assert rows.columns[-1].header == "best (median) latency, student"
    assert list(rows.columns[-1].cells) == ["0.25 (1.00) ms"] * 2


def test_times_are_of_the_runtime_that_the_bundle_runs_first(tmp_path):
    other = {**RECORD, "name": "dense-openvino", "runtime": "openvino", "median_ms": 0.5, "accuracy": None}
    folder = write(tmp_path, [MODEL], [RECORD, other])
    assert summary(folder)["engines"]["dense"]["median_ms"] == 1.0
    told = json.loads((folder / "ledger.json").read_text()) | {"shipping": {"runtime": "openvino"}}
    (folder / "ledger.json").write_text(json.dumps(told))
    found = summary(folder)
    assert (found["engines"]["dense"]["median_ms"], found["engines"]["dense"]["accuracy"]) == (0.5, 0.5)
    assert any("OpenVINO" in str(cell) for cell in table(found).columns[0]._cells)


@pytest.mark.parametrize(
    ("models", "records"),
    [([], [RECORD]), ([MODEL], [{**RECORD, "accuracy": None}]), ([MODEL], [{}]), (3, []), ([3], [])],
)
def test_what_somebody_altered_is_one_sentence(models, records, tmp_path):
    with pytest.raises(ArtifactError, match="lacks what the run wrote into it") as caught:
        summary(write(tmp_path, models, records))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("seconds", ["NaN", "-1", "1e999"])
def test_a_stage_takes_time(seconds, tmp_path):
    stage = '{"name": "a", "title": "A", "seconds": %s}' % seconds  # noqa: UP031
    text = '{"name": "x", "seed": 0, "created": "", "kernels": "", "stages": [%s]}' % stage  # noqa: UP031
    (tmp_path / "ledger.json").write_text(text)
    with pytest.raises(ArtifactError, match="is not a ledger"):
        Ledger.read(tmp_path / "ledger.json")
