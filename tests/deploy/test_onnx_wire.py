"""Constants as ONNX files may write them: raw, or as lists of numbers, packed or not."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from deploy.engines import load_engine
from deploy.onnx.wire import scan


@pytest.mark.parametrize(("kind", "name"), [(TensorProto.FLOAT, "float32"), (TensorProto.DOUBLE, "type 11")])
@pytest.mark.parametrize("values", [[1.0, -2.5], [-2.5], [0.0, -0.0, -1e30]], ids=str)
def test_lists_of_floats_that_end_in_a_negative_one_are_valid(kind, name, values, tmp_path):
    constant = helper.make_tensor("c", kind, [len(values)], values)
    assert not constant.raw_data
    image = helper.make_tensor_value_info("x", kind, [len(values)])
    result = helper.make_tensor_value_info("y", kind, [len(values)])
    graph = helper.make_graph([helper.make_node("Add", ["x", "c"], ["y"])], "g", [image], [result], [constant])
    path = tmp_path / "m.onnx"
    onnx.save(helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 18)]), path)
    assert scan(path).constants == {"c": (name, 0)}
    with load_engine(path) as engine:
        dtype = np.float32 if kind == TensorProto.FLOAT else np.float64
        assert engine.run({"x": np.zeros(len(values), dtype)})["y"].tolist() == np.asarray(values, dtype).tolist()


@pytest.mark.parametrize("value", [-3, 28])
def test_lists_of_integers_keep_their_sign(value, tmp_path):
    graph = helper.make_graph([], "g", [], [], [helper.make_tensor("z", TensorProto.INT8, [2], [0, value])])
    path = tmp_path / "m.onnx"
    onnx.save(helper.make_model(graph), path)
    assert scan(path).constants == {"z": ("int8", value)}
