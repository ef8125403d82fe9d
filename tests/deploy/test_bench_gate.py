"""The gate as a table: what passes, what stops a release, and why."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.bench.gate import gate
from deploy.bench.records import Bench, Record
from deploy.errors import DeployError

BASELINES = Path(__file__).parents[2] / "benchmarks/baselines"
MEASURED = {
    "model": "student",
    "runtime": "onnxruntime",
    "precision": "int8",
    "batch": 1,
    "status": "measured",
    "reference": "teacher",
    "repeats": 100,
    "median_ms": 1.0,
    "ratio_to_dense": 0.5,
    "accuracy": 0.97,
}
BUILT = {**MEASURED, "status": "built", "reason": "there is no GPU here"}


def bench(*records):
    return Bench(name="b", records=tuple(Record(name=name, **fields) for name, fields in records))


def test_what_was_timed_on_a_runtime_that_is_not_used_here_is_passed_with_a_word():
    old = bench(("int8", MEASURED), ("int8-openvino", {**MEASURED, "runtime": "openvino", "held": False}))
    (found,) = [line for line in gate(bench(("int8", MEASURED)), old).lines if line.name == "int8-openvino"]
    assert (found.what, found.value, found.ok) == ("presence", None, True)
    assert (
        found.note == "not measured here: nothing of this bench runs on openvino, and the baseline shows it for itself"
    )


@pytest.mark.parametrize(
    ("median", "best", "share"), [(0.3, 0.9, 0.9), (0.9, 0.3, 0.9), (0.3, None, 0.3), (None, None, None)]
)
def test_a_records_share_is_the_larger_ratio(median, best, share):
    assert Record(name="a", **MEASURED | {"ratio_to_dense": median, "ratio_of_best": best}).share == share


@pytest.mark.parametrize(
    ("change", "fails"),
    [
        ({}, None),
        ({"ratio_to_dense": 0.525}, None),
        ({"ratio_to_dense": 0.526}, "latency"),
        ({"ratio_to_dense": 0.1}, None),
        ({"ratio_to_dense": None}, "latency"),
        ({"accuracy": 0.96}, None),
        ({"accuracy": 0.959}, "accuracy"),
        ({"accuracy": None}, "accuracy"),
        ({"accuracy": 1.0}, None),
        ({"median_ms": 1000.0}, None),
        ({"batch": 8}, "setting"),
        ({"reference": "other"}, "reference"),
        ({"precision": "fp16"}, "setting"),
        ({"runtime": "openvino"}, "setting"),
        ({"status": "built", "reason": "no time"}, "measurement"),
    ],
)
def test_each_change_is_judged(change, fails):
    result = gate(bench(("a", {**MEASURED, **change})), bench(("a", MEASURED)))
    assert result.passed is (fails is None)
    assert [line.what for line in result.lines if not line.ok] == ([fails] if fails else [])


def test_a_missing_record_fails_and_a_new_one_is_not_looked_at():
    both = bench(("a", MEASURED), ("b", MEASURED))
    missing = gate(bench(("a", MEASURED)), both)
    assert [(line.name, line.what) for line in missing.lines if not line.ok] == [("b", "presence")]
    assert gate(both, bench(("a", MEASURED))).passed


def test_a_record_the_baseline_did_not_measure_needs_only_to_be_there():
    baseline = bench(("a", MEASURED), ("gpu", BUILT))
    assert gate(bench(("a", MEASURED), ("gpu", BUILT)), baseline).passed
    assert gate(bench(("a", MEASURED), ("gpu", {**MEASURED, "accuracy": 0.1})), baseline).passed
    assert not gate(bench(("a", MEASURED)), baseline).passed


@pytest.mark.parametrize(
    ("past", "now", "judged"),
    [
        (None, None, True),
        (True, True, True),
        (True, None, True),
        (True, False, True),  # a candidate cannot take back what its baseline holds it to
        (False, False, False),
        (False, True, False),
        (False, None, False),
        (None, False, False),  # a baseline written before there was such a word
        (None, True, True),
    ],
)
def test_what_is_at_chance_is_shown_and_not_judged(past, now, judged):
    """What a network that is cut and not trained gets right is luck, and differs from processor to processor."""
    old = bench(("pruned", {**MEASURED, "accuracy": 0.164, "held": past}), ("int8", MEASURED))
    cut = {**MEASURED, "accuracy": 0.112, "ratio_to_dense": 0.9, "held": now}
    result = gate(bench(("pruned", cut), ("int8", MEASURED)), old)
    assert result.passed is not judged
    said = [line.what for line in result.lines if line.name == "pruned"]
    assert said == ["presence", *(["latency", "accuracy"] if judged else ["held"])]
    # It still has to be there and to run, and what ships is judged as ever.
    assert not gate(bench(("int8", MEASURED)), old).passed
    assert not gate(bench(("pruned", {**cut, **BUILT}), ("int8", MEASURED)), old).passed
    assert not gate(bench(("pruned", cut), ("int8", {**MEASURED, "accuracy": 0.9})), old).passed


def test_a_file_of_before_there_was_the_word_loads():
    text = bench(("a", MEASURED)).to_json()
    assert '"held": null' in text
    old = text.replace(',\n      "held": null', "")
    assert "held" not in old
    assert Bench.model_validate_json(old).records[0].held is None


@pytest.mark.parametrize("path", sorted(BASELINES.glob("digits*.json")), ids=lambda path: path.stem)
def test_the_committed_baselines_hold_what_ships_and_what_it_is_compared_with(path):
    records = Bench.from_file(path).records
    assert {record.name: record.held for record in records if record.status == "measured"} == {
        "dense": True,
        "pruned": False,
        "distilled": True,
        "distilled-fp16": True,
        "int8": True,
    }


def test_a_finding_holds_the_figures():
    result = gate(bench(("a", {**MEASURED, "accuracy": 0.9})), bench(("a", MEASURED)), accuracy_tolerance=0.02)
    (line,) = (line for line in result.lines if line.what == "accuracy")
    assert (line.value, line.baseline, line.ok) == (0.9, 0.97, False)
    assert line.limit == pytest.approx(0.95)


def test_a_baseline_without_measurements_and_bad_tolerances_are_errors():
    with pytest.raises(DeployError, match="no measured record"):
        gate(bench(("a", MEASURED)), bench(("a", BUILT)))
    for name in ("latency_tolerance", "accuracy_tolerance"):
        for value in (-0.1, float("nan"), float("inf")):
            with pytest.raises(DeployError, match=name):
                gate(bench(("a", MEASURED)), bench(("a", MEASURED)), **{name: value})


@given(ratio=st.floats(0.01, 10), tolerance=st.floats(0, 2))
def test_a_record_passes_its_own_gate_and_a_faster_one_passes_too(ratio, tolerance):
    old = bench(("a", {**MEASURED, "ratio_to_dense": ratio}))
    new = bench(("a", {**MEASURED, "ratio_to_dense": ratio / 2}))
    assert gate(old, old, latency_tolerance=tolerance).passed
    assert gate(new, old, latency_tolerance=tolerance).passed
    slower = bench(("a", {**MEASURED, "ratio_to_dense": ratio * (1 + tolerance) * 1.01}))
    assert not gate(slower, old, latency_tolerance=tolerance).passed


def test_times_on_a_runtime_that_the_next_run_does_not_prefer_need_not_be_there():
    aside = {**MEASURED, "runtime": "openvino", "held": False}
    old = bench(("int8", MEASURED), ("int8-openvino", aside))
    assert gate(bench(("int8", MEASURED)), old).passed
    assert not gate(bench(("int8", MEASURED)), bench(("int8", MEASURED), ("b", {**aside, "held": True}))).passed
    slower = {**aside, "ratio_to_dense": 9.0}
    assert gate(bench(("int8", MEASURED), ("int8-openvino", slower)), old).passed
