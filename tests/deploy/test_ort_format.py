"""ONNX Runtime's own format: the same answers, and the operators that a small build needs."""

import numpy as np
import pytest

from deploy.engines import load_engine
from deploy.engines.onnxruntime.ort_format import ort_from_onnx
from deploy.errors import DeployError

pytestmark = pytest.mark.heavy


def test_number_17_the_format_for_small_builds_gives_the_same_answers(files, images, tmp_path):
    import onnxruntime

    for precision in ("fp32", "int8"):
        path = tmp_path / f"model.{precision}.ort"
        operators = ort_from_onnx(files[precision], path)
        with load_engine(files[precision]) as engine:
            (name,) = engine.inputs
            want = engine.run({name: images[:3]})
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        for found, (key, value) in zip(session.run(list(want), {name: images[:3]}), want.items(), strict=True):
            np.testing.assert_allclose(found, value, rtol=1e-5, atol=1e-5, err_msg=key)
        listed = operators.read_text()
        assert ("QLinearConv" if precision == "int8" else "Conv") in listed
        assert "#" not in listed and str(tmp_path) not in listed


def test_number_17_another_ending_is_refused(files, tmp_path):
    with pytest.raises(DeployError, match=r"give it the ending \.ort"):
        ort_from_onnx(files["fp32"], tmp_path / "model.onnx")
