"""The precision of a file is what is in it: what is quantised is not quantised again, and a name proves nothing."""

import shutil

import numpy as np
import pytest

from deploy.bench.timing import benchmark
from deploy.bundle.writing import BundleSpec, write_bundle
from deploy.engines import load_engine
from deploy.errors import DeployError
from deploy.onnx.precision import precision_in
from deploy.processing.preprocess import Preprocessing
from deploy.quantization.half import bf16_from_fp32, fp16_from_fp32
from deploy.quantization.int8 import int8_from_fp32

pytestmark = pytest.mark.heavy

onnx = pytest.importorskip("onnx")


@pytest.fixture
def anonymous(files, tmp_path):
    """Return a copy of a file without Niwaki's properties, under a name."""

    def copy(precision, name):
        model = onnx.load(files[precision])
        del model.metadata_props[:]
        onnx.save(model, tmp_path / name)
        return tmp_path / name

    return copy


def test_what_is_quantised_is_not_quantised_again(anonymous, images, tmp_path):
    foreign = anonymous("int8", "model.onnx")
    with pytest.raises(DeployError, match=r"is quantised already \(\d+ of its \d+ nodes"):
        int8_from_fp32(foreign, tmp_path / "twice.onnx", list(images))
    for make in (fp16_from_fp32, bf16_from_fp32):
        with pytest.raises(DeployError, match="is quantised already"):
            make(foreign, tmp_path / "twice.onnx")
    with pytest.raises(DeployError, match=r"m\.onnx is fp16; make the int8 file from the fp32 one"):
        int8_from_fp32(anonymous("fp16", "m.onnx"), tmp_path / "twice.onnx", list(images))
    assert not (tmp_path / "twice.onnx").exists()


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
@pytest.mark.parametrize(("precision", "named"), [("fp32", "int8"), ("int8", "fp32"), ("fp16", "int8")])
def test_a_name_proves_nothing(precision, named, runtime, anonymous, images):
    pytest.importorskip(runtime)
    with load_engine(anonymous(precision, f"model.{named}.onnx"), runtime=runtime) as engine:
        assert engine.precision == precision
        (record,) = benchmark([engine], {"image": images[:1]}, rounds=2, warmup=2, min_seconds=0)
    assert record.precision == precision


def test_a_file_that_states_another_precision_is_known_by_its_content(files, tmp_path):
    model = onnx.load(files["fp32"])
    onnx.helper.set_model_props(model, {"niwaki.precision": "int8"})
    onnx.save(model, tmp_path / "liar.onnx")
    with load_engine(tmp_path / "liar.onnx") as engine:
        assert engine.precision == "fp32"
    with pytest.raises(DeployError, match="given as int8 and is fp32; name the precision that it has"):
        write_bundle(
            tmp_path / "b",
            BundleSpec(
                models={"int8": tmp_path / "liar.onnx"},
                default="int8",
                preprocessing=Preprocessing(size=(16, 16), mode="L"),
                classes="abcde",
            ),
        )


def test_files_are_told_apart(files, tmp_path):
    for precision in ("fp32", "fp16", "int8"):
        assert precision_in(files[precision]) == precision
    shutil.copy(files["fp32"], tmp_path / "x.onnx")
    (tmp_path / "none.onnx").write_bytes(np.arange(64, dtype=np.uint8).tobytes())
    assert [precision_in(tmp_path / name) for name in ("x.onnx", "none.onnx", "missing.onnx")] == ["fp32", None, None]


def in_constants(path):
    """Turn every initialiser of a file into a Constant node, as some converters write weights."""
    model = onnx.load(path)
    held = [onnx.helper.make_node("Constant", [], [t.name], value=t) for t in model.graph.initializer]
    del model.graph.initializer[:]
    nodes = [*held, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    onnx.save(model, path)
    return path


@pytest.mark.parametrize(("precision", "named"), [("fp32", "int8"), ("fp16", "int8"), ("int8", "fp32")])
def test_number_5_weights_in_constant_nodes_tell_the_precision_too(precision, named, anonymous, images, tmp_path):
    path = in_constants(anonymous(precision, f"model.{named}.onnx"))
    with load_engine(path) as engine:
        assert engine.precision == precision
    if precision != "fp32":
        with pytest.raises(DeployError, match=r"is quantised already|is fp16; make the int8 file"):
            int8_from_fp32(path, tmp_path / "twice.onnx", list(images))


def test_number_5_a_file_without_constants_is_what_it_reads(tmp_path):
    for kind, precision in ((onnx.TensorProto.FLOAT, "fp32"), (onnx.TensorProto.FLOAT16, "fp16")):
        tensors = [[onnx.helper.make_tensor_value_info(name, kind, ["n", 4])] for name in "xy"]
        graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["x"], ["y"])], "g", *tensors)
        model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10)
        onnx.save(model, tmp_path / "relu.int8.onnx")
        with load_engine(tmp_path / "relu.int8.onnx") as engine:
            assert engine.precision == precision


def test_number_5_what_is_quantised_in_a_branch_is_quantised(tmp_path, images):
    helper, kind = onnx.helper, onnx.TensorProto
    constants = [onnx.numpy_helper.from_array(np.asarray(v), k) for k, v in (("s", np.float32(0.1)), ("z", np.int8(0)))]
    inner = [helper.make_node("QuantizeLinear", ["image", "s", "z"], ["q"])]
    inner += [helper.make_node("DequantizeLinear", ["q", "s", "z"], ["b"])]
    branch = helper.make_graph(inner, "b", [], [helper.make_tensor_value_info("b", kind.FLOAT, None)])
    nodes = [helper.make_node("If", ["yes"], ["y"], then_branch=branch, else_branch=branch)]
    tensors = [[helper.make_tensor_value_info(name, kind.FLOAT, ["n", 1, 16, 16])] for name in ("image", "y")]
    constants.append(onnx.numpy_helper.from_array(np.asarray(True), "yes"))
    graph = helper.make_graph(nodes, "g", *tensors, constants)
    path = tmp_path / "m.fp32.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    with load_engine(path) as engine:
        assert engine.precision == "int8"
    with pytest.raises(DeployError, match=r"quantised already \(nodes in a branch or a function"):
        int8_from_fp32(path, tmp_path / "twice.onnx", list(images))
