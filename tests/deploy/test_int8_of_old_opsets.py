"""Lower precisions of a file of an old operator set or format are files that runtimes load and that say the same."""

from pathlib import Path

import numpy as np
import pytest

from deploy.engines import load_engine
from deploy.errors import DeployError
from deploy.onnx.metadata import Metadata
from deploy.quantization.agreement import Agreement
from deploy.quantization.converting import raised
from deploy.quantization.half import fp16_from_fp32
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


def enlarging(path, opset, mode, listed=()):
    """An enlargement by 2.3 and 1.7, as opset 9 and 10 write it; ``listed`` constants are inputs too."""
    sizes = numpy_helper.from_array(np.array([1, 1, 2.3, 1.7], np.float32), "sizes")
    weights = numpy_helper.from_array(np.random.default_rng(1).standard_normal((2, 3, 1, 1)).astype(np.float32), "w")
    nodes = [
        helper.make_node("Conv", ["image", "w"], ["a"], name="conv", kernel_shape=[1, 1]),
        helper.make_node("Upsample" if opset == 9 else "Resize", ["a", "sizes"], ["logits"], name="up", mode=mode),
    ]
    inputs = [helper.make_tensor_value_info("image", TensorProto.FLOAT, ("n", 3, 8, 8))]
    inputs += [helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in (sizes, weights) if t.name in listed]
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ("n", 2, 18, 13))]
    graph = helper.make_graph(nodes, "g", inputs, outputs, [sizes, weights])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=3 if listed else 5)
    path.write_bytes(model.SerializeToString())
    return path


@pytest.mark.parametrize("mode", ["linear", "nearest"])
@pytest.mark.parametrize("opset", [9, 10])
def test_number_9_a_converted_enlargement_takes_the_same_pixels(opset, mode, tmp_path):
    path = enlarging(tmp_path / "m.onnx", opset, mode)
    onnx.save(raised(onnx.load(path), path, 13), tmp_path / "new.onnx")
    image = np.random.default_rng(0).standard_normal((1, 3, 8, 8)).astype(np.float32)
    with load_engine(path) as old, load_engine(tmp_path / "new.onnx") as new:
        want, found = (engine.run({"image": image})["logits"] for engine in (old, new))
    np.testing.assert_allclose(found, want, atol=1e-6)


@pytest.mark.parametrize("opset", [9, 10])
def test_number_9_constants_listed_as_inputs_are_constants(opset, tmp_path):
    path = enlarging(tmp_path / "m.onnx", opset, "nearest", listed=("sizes", "w"))
    images = list(np.random.default_rng(0).standard_normal((4, 3, 8, 8)).astype(np.float32))
    made = int8_from_fp32(path, tmp_path / "q.onnx", images), fp16_from_fp32(path, tmp_path / "h.onnx")
    for file in made:
        with load_engine(file) as engine:
            assert set(engine.inputs) == {"image"}
        assert Agreement.of(path, file, [image[None] for image in images]).snr_db > 20


def test_number_9_what_a_conversion_would_change_is_refused():
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ("n", 3, 8, 8))
    graph = helper.make_graph([helper.make_node("Hardmax", ["image"], ["y"])], "g", [image], [])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 11)])
    with pytest.raises(DeployError, match=r"m\.onnx is of opset 11, .* cannot be converted to 13 \(its Hardmax"):
        raised(model, Path("m.onnx"), 13)
    graph.node[0].op_type = "Unheard"
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 11)])
    with pytest.raises(DeployError, match="cannot be converted to 22"):
        raised(model, Path("m.onnx"), 22)
