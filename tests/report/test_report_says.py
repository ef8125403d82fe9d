"""What the page once said wrongly or left out: shares as 0, counts as 4.00, all of parity, no hashes."""

import copy
import html
import importlib.util
import json
import re
from pathlib import Path

import pytest

from deploy.errors import DeployError
from deploy.report import compare, render, units
from deploy.report.comparison import pareto
from deploy.report.evidence import _metric, stages
from deploy.report.goals import goals_of
from deploy.report.latencies import distributions, waterfall
from deploy.report.view import Results, larger_ratio, speed_interval

SPEC = importlib.util.spec_from_file_location("niwaki_report_sample_2", Path(__file__).with_name("sample.py"))
sample = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(sample)


@pytest.fixture(autouse=True)
def no_plot(monkeypatch):
    """The plot has tests of its own and takes most of the time."""
    for place in ("outcome", "comparison"):
        monkeypatch.setattr(f"deploy.report.{place}.accuracy_latency", lambda points, **_: "")


def text(markup):
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]+>", " ", markup)).replace(units.SPACE, " "))


def page(ledger=None, bench=None, recipe=sample.RECIPE):
    return render(ledger or sample.ledger(), bench or sample.bench(), recipe)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("macs_share", 0.44, "44.0 %"),
        ("engines", 4.0, "4"),
        ("int8_time_of_fp32", 0.99, "99 %"),
        ("openvino_time_of_onnxruntime", 0.707, "71 %"),
        ("speedup_int8", 2.02, "2.02×"),
        ("snr_db_int8", 11.69, "11.7 dB"),
        ("val_accuracy_int8", 0.945, "94.5 %"),
        ("loss", 0.0831, "0.0831"),
        ("macs", 20_300_000, "20.3 M"),
    ],
)
def test_a_figure_of_the_ledger_has_its_unit(name, value, said):
    assert _metric(name, value).replace(units.SPACE, " ") == said


@pytest.mark.parametrize(
    ("record", "ratio", "ends"),
    [
        ({"ratio_to_dense": 0.5, "ratio_of_best": 0.6, "ratio_interval": [0.4, 0.6], "best_interval": [0.5, 0.7]},
         0.6, (0.5, 0.7)),
        ({"ratio_to_dense": 0.7, "ratio_of_best": 0.6, "ratio_interval": [0.4, 0.8], "best_interval": [0.5, 0.7]},
         0.7, (0.4, 0.8)),
        ({"ratio_to_dense": 0.7, "ratio_interval": [0.4, 0.8]}, 0.7, (0.4, 0.8)),
        ({}, None, None),
    ],
)  # fmt: skip
def test_the_engines_ratio_is_the_inverse_of_the_speed_up(record, ratio, ends):
    assert (larger_ratio(record), speed_interval(record)) == (ratio, ends)


def test_what_the_test_stage_measured_are_shares():
    shown = text(stages([{"name": "test", "title": "Test", "metrics": {"teacher": 0.976}}]))
    assert "97.6 %" in shown and "0.976" not in shown


def test_parity_shows_its_worst_row_and_folds_the_others():
    bench = sample.bench()
    bench["records"] = bench["records"][:1]
    bench["records"][0]["parity"] = [
        {"inputs": "real", "batch": 1.0, "max_relative_error": 1e-7, "snr_db": 131.0},
        {"inputs": "zeros", "batch": 7.0, "max_relative_error": 5e-6, "snr_db": 102.0},
        {"inputs": "negated", "batch": 2.0, "max_relative_error": 2e-7, "snr_db": 125.0},
    ]
    shown = page(bench=bench)
    folded = shown.index("the other 2 comparisons")
    assert shown.index("102.0") < folded < shown.index("131.0")
    assert "worst of 3" in shown
    assert "7.0</td>" not in shown and "<td>7</td>" in shown


def test_what_is_left_whole_is_counted_by_reason():
    ledger = sample.ledger()
    ledger["plan"]["protected"] = {"fc.weight:0": "graph output", "fc.bias:0": "graph output", "a:0": "chosen"}
    shown = text(page(ledger))
    assert "3 dimensions of weights left whole, and why" in shown
    assert "graph output (2) fc.weight:0, fc.bias:0" in shown


@pytest.mark.parametrize(
    ("budget", "drop", "verdicts"),
    [
        ({"macs": 0.5}, None, [True, None]),
        ({"macs": 0.4}, None, [False, None]),
        ({"latency": 0.5, "size": 200_000}, 0.02, [True, True, True]),
        ({"latency": 0.3, "precision": "fp32", "batch": 1}, 0.001, [False, False]),
    ],
)
def test_each_bound_that_was_asked_for_is_met_or_not(budget, drop, verdicts):
    ledger = sample.ledger()
    ledger["plan"]["budget"] = budget
    recipe = {} if drop is None else {"deploy": {"accuracy_drop": drop}}
    found = goals_of(Results(ledger, sample.bench(), recipe))
    assert [met for *_, met in found] == verdicts


def test_the_verdict_comes_before_what_was_asked_in_detail():
    shown = page()
    order = [
        "What was asked for, and what was reached",
        "What came out",
        "The recipe",
        "Where it was measured",
        "Make it again",
    ]
    places = [shown.index(f"<h2>{title}") for title in order]
    assert places == sorted(places)


def test_each_step_of_the_waterfall_is_compared_with_what_it_was_made_from():
    shown = text(waterfall(Results(sample.ledger(), sample.bench(), {})))
    assert "dense the teacher, fp32 0.79 ms" in shown
    assert "−41 % against dense" in shown  # 0.495 of 0.832
    assert "+13 % against the student's fp32" in shown  # fp16: 0.561 of 0.495
    assert "−30 % against the student's fp32" in shown  # int8: 0.345 of 0.495


def test_spreads_are_told_in_words_too():
    shown = distributions(sample.bench()["records"][:1])
    assert 'aria-label="best 0.79' in shown
    assert distributions([{"name": "a", "median_ms": 1.0}]) == ""


def test_what_the_bundle_runs_by_is_said():
    ledger = sample.ledger()
    ledger["stages"][-1]["metrics"]["openvino_time_of_onnxruntime"] = 0.71
    shown = text(page(ledger))
    assert "by OpenVINO first: OpenVINO takes 71 % of ONNX Runtime's time, about 0.24 ms in place of 0.34 ms" in shown
    ledger["shipping"] = {"precision": "fp32", "runtime": "openvino", "reason": "nothing else is faster"}
    assert "fp32 on OpenVINO first: nothing else is faster." in text(page(ledger))


def preferring_openvino(**more):
    """A run whose bundle runs int8 by OpenVINO first, at half of the time of ONNX Runtime."""
    told = sample.bench()
    own = [
        {**r, "name": f"{r['name']}-openvino", "runtime": "openvino", "median_ms": r["median_ms"] / 2, "parity": None,
         "min_ms": r["min_ms"] / 2, "p90_ms": r["p90_ms"] / 2, "accuracy": None, "speedup": 3.21, **more}
        for r in told["records"] if r["status"] == "measured"
    ]  # fmt: skip
    told["records"] += own
    shipping = {"precision": "int8", "runtime": "openvino", "reason": "int8 on OpenVINO takes half of the time"}
    return {**sample.ledger(), "shipping": shipping}, told


def test_all_times_are_of_the_runtime_that_the_bundle_runs_first():
    ledger, told = preferring_openvino()
    shown = text(page(ledger, told))
    assert "0.17 ms against 0.42 ms by medians, OpenVINO, 1 thread, batch 1)" in shown
    assert "gets 96.8 % of the 1,397 test images right" in shown, "accuracy is what was measured, on ONNX Runtime"
    assert "3.21× the speed: 0.16 ms at best, 0.17 ms median on OpenVINO" in shown
    assert "Times are those of OpenVINO, which the bundle runs first, for all networks." in shown
    assert "dense the teacher, fp32 0.40 ms" in shown, "the steps from dense on"
    assert "int8-openvino openvino int8" in shown and "int8 onnxruntime int8" in shown, "every engine that was timed"
    assert "The times on this page are of ONNX Runtime" not in shown
    results = Results(ledger, told, {})
    assert [r["name"] for r in results.measured()] == ["dense", "pruned", "distilled", "distilled-fp16", "int8"]
    # Without such records the page says whose times they are.
    before = text(page(ledger, sample.bench()))
    assert (
        "The times on this page are of ONNX Runtime." in before
        and "0.34 ms against 0.83 ms by medians, 1 thread" in before
    )


def test_a_noisy_machine_is_said_to_be_noisy_and_the_interval_is_of_the_headline():
    told = sample.bench()
    assert "noisy" not in text(page(bench=told))
    for place, record in enumerate(told["records"][:5]):
        record["conditions"] = {"load": 9.0 + place, "cores": 2, "processor_share": 0.5}
    told["records"][4] |= {"ratio_of_best": 0.5, "best_interval": [0.49, 0.52], "speedup": 2.0}
    shown = text(page(bench=told))
    assert (
        "The machine was noisy (a load of 13.0 on 2 cores and the process had the processor for 50 % of the time)"
        in shown
    )
    assert "2.00× 1.92× to 2.04×" in shown, "by best times, which are the smaller speed-up"
    told["records"][0]["conditions"] = {"load": "much"}
    assert "a load of 13.0" in text(page(bench=told))


def test_the_classes_that_lost_most_come_first_and_gains_are_left_out():
    ledger = sample.ledger()
    ledger["models"][0]["test_metrics"] = {"iou_road": 0.9, "iou_car": 0.8, "iou_sky": 0.7, "loss": 0.1}
    ledger["models"][3]["test_metrics"] = {"iou_road": 0.88, "iou_car": 0.6, "iou_sky": 0.75, "loss": 0.9}
    shown = text(page(ledger))
    part = shown[shown.index("Where most was lost") :]
    assert part.index("iou car 80.0 % 60.0 % −20.0 points") < part.index("iou road 90.0 % 88.0 %")
    assert "iou sky" not in part[:400]


def test_a_class_of_a_classifier_is_named_as_one():
    ledger = sample.ledger()
    ledger["models"][0]["test_metrics"], ledger["models"][3]["test_metrics"] = {"accuracy_7": 0.9}, {"accuracy_7": 0.8}
    assert "accuracy of 7 90.0 % 80.0 % −10.0 points" in text(page(ledger))


def test_the_recipe_the_engines_and_the_data_are_named_by_hash():
    bench, ledger = sample.bench(), sample.ledger()
    bench["records"][0]["sha256"] = "a1" * 32
    ledger |= {"commit": "c0ffee", "data_sha256": "da7a" * 16}
    shown = page(ledger, bench)
    assert all(one in shown for one in ("a1" * 32, "c0ffee", "da7a" * 16, "niwaki run recipe.yaml --out FOLDER"))


@pytest.fixture
def runs(tmp_path):
    folders = []
    for name, median, right in (("slow", 0.9, 0.97), ("fast", 0.3, 0.96), ("worse", 0.95, 0.95)):
        folder = tmp_path / name
        folder.mkdir()
        bench = copy.deepcopy(sample.bench())
        bench["records"][4] |= {"median_ms": median, "accuracy": right, "ratio_to_dense": median / 0.832}
        (folder / "ledger.json").write_text(json.dumps(sample.ledger()))
        (folder / "bench.json").write_text(json.dumps(bench))
        (folder / "recipe.yaml").write_text(sample.RECIPE)
        folders.append(folder)
    return folders


def test_runs_stand_side_by_side_with_the_front(runs):
    told = json.loads(compare(runs, "json"))["runs"]
    assert [(one["run"], one["pareto"]) for one in told] == [("slow", True), ("fast", True), ("worse", False)]
    assert told[1]["median_ms"] == 0.3
    table = compare(runs, "md")
    assert "| slow | int8 | 97.0 % |" in table.replace(units.SPACE, " ") and table.count("| yes |") == 2
    shown = text(compare(runs, "html"))
    assert shown.count("on the front") == 2 and "3 runs" in shown
    with pytest.raises(DeployError, match="not as 'pdf'"):
        compare(runs, "pdf")


def test_a_front_leaves_out_what_was_not_measured():
    rows = [{"accuracy": a, "median_ms": t} for a, t in ((0.9, 1.0), (0.9, 1.0), (None, 0.1), (0.8, 2.0))]
    assert pareto(rows) == [True, True, False, False]
