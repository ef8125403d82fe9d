"""One decision of what ships and on which runtime: by measured time at equal accuracy, told alike everywhere."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from report import sample

from compress.cli import run
from compress.run import latency
from compress.run.ledger import Ledger, Outcome
from compress.run.summary import summary
from deploy.bench.shipping import ShipDecision, Timed, choose
from deploy.errors import DeployError
from deploy.report.view import Results


def timed(**shares):
    """Return files by ``precision_runtime``: a share, or a share and an accuracy."""
    found = []
    for name, figures in shares.items():
        precision, runtime = name.split("_")
        share, accuracy = figures if isinstance(figures, tuple) else (figures, 0.9)
        found.append(
            Timed(precision=precision, runtime={"ort": "onnxruntime", "ov": "openvino"}[runtime], share=share,
                  accuracy=accuracy)
        )  # fmt: skip
    return found


@pytest.mark.parametrize(
    ("files", "precision", "runtime"),
    [
        (timed(fp32_ort=1.0, int8_ort=1.31), "fp32", "onnxruntime"),
        (timed(fp32_ort=1.0, int8_ort=0.5), "int8", "onnxruntime"),
        (timed(fp32_ort=1.0, int8_ort=0.97), "fp32", "onnxruntime"),
        # As accurate as fp32 within a point, or not.
        (timed(fp32_ort=1.0, int8_ort=(0.5, 0.891)), "int8", "onnxruntime"),
        (timed(fp32_ort=1.0, int8_ort=(0.5, 0.88)), "fp32", "onnxruntime"),
        (timed(fp32_ort=1.0, fp16_ort=(0.8, 0.9), int8_ort=(0.5, 0.6)), "fp16", "onnxruntime"),
        # Slower in int8 on one runtime, faster on the other; and a gain that is within the noise.
        (timed(fp32_ort=1.0, int8_ort=1.2, fp32_ov=0.9, int8_ov=0.4), "int8", "openvino"),
        (timed(fp32_ort=1.0, int8_ort=1.2, fp32_ov=0.8, int8_ov=0.9), "fp32", "openvino"),
        (timed(fp32_ort=1.0, int8_ort=0.5, fp32_ov=0.97, int8_ov=0.49), "int8", "onnxruntime"),
        (timed(fp32_ort=1.0), "fp32", "onnxruntime"),
    ],
)
def test_number_6_the_fastest_as_accurate_as_fp32_ships(files, precision, runtime):
    found = choose(files)
    assert (found.precision, found.runtime) == (precision, runtime)
    assert found.reason and found.timed == tuple(files)


def test_number_6_a_recipe_may_decide_and_hears_what_it_costs():
    found = choose(timed(fp32_ort=1.0, int8_ort=1.31), "int8")
    assert found.precision == "int8"
    assert "asks for int8, though fp32 would be the better choice" in found.reason and "1.31" in found.reason
    assert choose(timed(fp32_ort=1.0, int8_ort=0.3), "fp32").precision == "fp32"
    assert choose(timed(fp32_ort=1.0, int8_ort=(0.5, 0.85)), max_drop=0.06).precision == "int8"
    with pytest.raises(DeployError, match="int8, which was not timed; fp32 was"):
        choose(timed(fp32_ort=1.0), "int8")


def test_number_6_ledger_terminal_and_report_tell_one_decision(tmp_path, monkeypatch, capsys):
    decided = choose(timed(fp32_ort=1.0, int8_ort=1.31, fp32_ov=0.6, int8_ov=0.9))
    told = sample.ledger() | {"metric": "accuracy", "test_images": 1397, "shipping": decided.model_dump(mode="json")}
    # The recipe's word stands only where nothing was decided.
    results = Results(told, sample.bench(), {"deploy": {"ship": "int8"}})
    assert results.final().name == "distilled" and results.verdict().startswith("The distilled network")
    (tmp_path / "ledger.json").write_text(json.dumps(told))
    (tmp_path / "bench.json").write_text(json.dumps(sample.bench()))
    assert ShipDecision.model_validate(summary(tmp_path)["shipping"]) == decided
    monkeypatch.setattr("compress.run.summary.table", lambda figures: "")
    run._show(SimpleNamespace(deploy=True), tmp_path, tmp_path / "report.html", quiet=False, as_json=False)
    assert f"Ships    fp32 on OpenVINO first: {decided.reason}" in capsys.readouterr().out
    ledger = Ledger(name="n", seed=0, created="now", kernels="none")
    kept = ledger.with_stage("bench", "Bench", 1.0, Outcome(shipping=decided)).with_stage("b", "B", 1.0, Outcome())
    assert kept.shipping == decided


class Engine:
    inputs = ("image",)

    def __init__(self, runtime):
        self.runtime = runtime

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


def test_number_6_every_file_is_timed_on_every_runtime_in_one_sitting(monkeypatch, tmp_path):
    asked = []

    def load(path, *, runtime, threads):
        asked.append((path.name, runtime, threads))
        return Engine(runtime)

    def benchmark(engines, feeds, *, reference, rounds):
        assert (list(feeds), reference, rounds) == (["image"], "fp32 onnxruntime", 7)
        return [type("Row", (), {"share": 1.0 + place}) for place, _ in enumerate(engines)]

    monkeypatch.setattr(latency, "load_engine", load)
    monkeypatch.setattr(latency.deploy, "benchmark", benchmark)
    image = np.zeros((1, 1, 4, 4), np.float32)
    files = {"fp32": (tmp_path / "a", 0.9), "int8": (tmp_path / "b", None)}
    found, refused = latency.timed_by_runtime(files, image, 2, 7)
    assert not refused
    assert asked == [("a", "onnxruntime", 2), ("b", "onnxruntime", 2), ("a", "openvino", 2), ("b", "openvino", 2)]
    assert [(one.precision, one.runtime, one.share, one.accuracy) for one in found] == [
        ("fp32", "onnxruntime", 1.0, 0.9), ("int8", "onnxruntime", 2.0, None),
        ("fp32", "openvino", 3.0, 0.9), ("int8", "openvino", 4.0, None),
    ]  # fmt: skip

    def refuse(path, *, runtime, threads):
        if runtime == "openvino" and path.name == "b":
            raise DeployError("b has a Resize with antialias.")
        return Engine(runtime)

    monkeypatch.setattr(latency, "load_engine", refuse)
    found, refused = latency.timed_by_runtime(files, image, 2, 7)
    assert {one.runtime for one in found} == {"onnxruntime"} and len(found) == 2
    assert refused == ("Nothing is timed by openvino: b has a Resize with antialias.",)
    monkeypatch.setattr(latency, "load_engine", load)
    monkeypatch.setattr(latency, "find_spec", lambda name: None)
    assert {one.runtime for one in latency.timed_by_runtime(files, image, 2, 7)[0]} == {"onnxruntime"}
