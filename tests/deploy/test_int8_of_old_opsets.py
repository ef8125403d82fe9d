"""int8 of a file of opset 11 or 12 is a file that runtimes load."""

import numpy as np
import pytest

from deploy.engines import load_engine
from deploy.onnx.metadata import Metadata
from deploy.quantization.agreement import Agreement
from deploy.quantization.int8 import int8_from_fp32

onnx = pytest.importorskip("onnx")
pytest.importorskip("nncf")
from onnx import TensorProto, helper, numpy_helper  # noqa: E402


@pytest.mark.parametrize("opset", [11, 12])
def test_an_old_file_is_converted_before_it_is_quantised(opset, tmp_path):
    rng = np.random.default_rng(0)
    weights = numpy_helper.from_array(rng.standard_normal((4, 3, 3, 3)).astype(np.float32), "w")
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["image", "w"], ["a"], name="conv", kernel_shape=[3, 3]),
            helper.make_node("Relu", ["a"], ["b"], name="relu"),
            helper.make_node("ReduceSum", ["b"], ["logits"], name="sum", axes=[2, 3], keepdims=0),
        ],
        "g",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ("n", 3, 8, 8))],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ("n", 4))],
        [weights],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=7)
    helper.set_model_props(model, {"niwaki.model": "old"})
    onnx.save(model, tmp_path / "m.onnx")
    images = list(rng.standard_normal((4, 3, 8, 8)).astype(np.float32))
    path = int8_from_fp32(tmp_path / "m.onnx", tmp_path / "q.onnx", images)
    with load_engine(path) as engine:
        assert engine.precision == "int8"
        assert engine.run({"image": images[0][None]})["logits"].shape == (1, 4)
    assert Agreement.read(path).snr_db > 20
    assert Metadata.from_file(path).model == "old"
