"""Which runtime a bundle prefers on a CPU: by the times that the run took, with the reason."""

import numpy as np
import pytest

from compress.run import latency
from compress.run.stages.bundle import preferred


@pytest.mark.parametrize(
    ("share", "runtime", "why"),
    [
        (None, "onnxruntime", "OpenVINO was not measured"),
        (0.5, "openvino", "OpenVINO takes 0.50 of ONNX Runtime's time"),
        (0.949, "openvino", "0.95 of ONNX Runtime's time"),
        (0.95, "onnxruntime", "0.95 or more is no reason"),
        (1.7, "onnxruntime", "OpenVINO takes 1.70 of ONNX Runtime's time"),
    ],
)
def test_the_faster_goes_first_by_a_margin(share, runtime, why):
    found, reason = preferred(share)
    assert found == runtime
    assert why in reason


class Engine:
    inputs = ("image",)

    def __init__(self, runtime):
        self.runtime = runtime

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


def test_both_are_timed_on_the_shipped_file(monkeypatch, tmp_path):
    asked = []

    def load(path, *, runtime, threads):
        asked.append((path, runtime, threads))
        return Engine(runtime)

    def benchmark(engines, feeds, *, reference, rounds):
        assert (list(feeds), reference, rounds) == (["image"], "onnxruntime", 7)
        assert [engine.name for engine in engines] == ["onnxruntime", "openvino"]
        return [type("Row", (), {"ratio_to_dense": share}) for share in (1.0, 0.6)]

    monkeypatch.setattr(latency, "load_engine", load)
    monkeypatch.setattr(latency.deploy, "benchmark", benchmark)
    image = np.zeros((1, 1, 4, 4), np.float32)
    path = tmp_path / "student.int8.onnx"
    assert latency.openvino_share(path, image, 2, 7) == 0.6
    assert asked == [(path, "onnxruntime", 2), (path, "openvino", 2)]
    monkeypatch.setattr(latency, "find_spec", lambda name: None)
    assert latency.openvino_share(path, image, 2, 7) is None
