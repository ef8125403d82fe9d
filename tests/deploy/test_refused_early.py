"""What would fail later is refused before: convolutions without weights, bundles that cannot predict, other pixels."""

import dataclasses
import hashlib
import json
import shutil

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import deploy
from deploy.bundle.fitting import check_predictable
from deploy.bundle.manifest import read_manifest
from deploy.engines import load_engine
from deploy.engines.base import first_line
from deploy.errors import DeployError
from deploy.quantization.agreement import grade
from deploy.quantization.half import fp16_from_fp32
from deploy.quantization.int8 import int8_from_fp32


def convolution(path, inputs):
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, 8, 8])
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    nodes = [helper.make_node("Conv", inputs, ["y"], kernel_shape=[1, 1])]
    graph = helper.make_graph(nodes, "g", [image], [output])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    return path


@pytest.mark.parametrize("inputs", [["image"], ["image", ""], ["image", "lost"]], ids=["none", "empty", "unknown"])
@pytest.mark.parametrize("runtime", ["openvino", "onnxruntime"])
def test_number_14_a_convolution_without_weights_does_not_end_the_process(inputs, runtime, tmp_path):
    path = convolution(tmp_path / "hollow.onnx", inputs)
    with pytest.raises(DeployError) as caught:
        load_engine(path, runtime=runtime)
    assert "\n" not in str(caught.value) and "hollow.onnx" in str(caught.value)
    if runtime == "openvino" and "lost" not in inputs:
        assert "has a Conv without weights" in str(caught.value)


@pytest.mark.parametrize("place", ["in a branch", "in a function"])
@pytest.mark.parametrize(("op_type", "inputs", "what"), [("Conv", ["image"], "weights"), ("Sum", [], "an input")])
def test_number_14_what_lies_in_a_branch_or_a_function_does_not_end_the_process(op_type, inputs, what, place, tmp_path):
    given, opset = helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, 8, 8]), helper.make_opsetid("", 18)
    inner = [helper.make_node(op_type, inputs, ["y"])]
    branch = helper.make_graph(inner, "b", [], [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)])
    function = helper.make_function("own", "F", ["image"], ["y"], inner, [opset])
    if place == "in a branch":
        nodes = [helper.make_node("If", ["yes"], ["y"], then_branch=branch, else_branch=branch)]
    else:
        nodes = [helper.make_node("F", ["image"], ["y"], domain="own")]
    graph = helper.make_graph(
        nodes,
        "g",
        [given],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [onnx.numpy_helper.from_array(np.asarray(True), "yes")],
    )
    opsets = [opset, helper.make_opsetid("own", 1)]
    model = helper.make_model(graph, functions=[function], opset_imports=opsets, ir_version=10)
    (tmp_path / "hollow.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(DeployError, match=rf"hollow\.onnx has a {op_type} without {what}"):
        load_engine(tmp_path / "hollow.onnx", runtime="openvino")


@pytest.mark.parametrize(
    ("op_type", "inputs"),
    [("Sum", []), ("Max", []), ("GlobalAveragePool", []), ("LogSoftmax", []), ("Pad", ["image"]), ("Clip", [""])],
)
def test_number_14_an_operator_without_its_inputs_does_not_end_the_process(op_type, inputs, tmp_path):
    path = convolution(tmp_path / "hollow.onnx", ["image", "image"])
    model = onnx.load(path)
    model.graph.node[0].CopyFrom(helper.make_node(op_type, inputs, ["y"]))
    path.write_bytes(model.SerializeToString())
    with pytest.raises(DeployError, match=rf"has a {op_type} without an input that it needs"):
        load_engine(path, runtime="openvino")


@pytest.mark.parametrize(("format_", "opset", "says"), [(99, 18, "format 13|format 1"), (10, 99, "operator set 99")])
def test_number_13_a_file_too_new_for_the_runtime_is_one_whole_sentence(format_, opset, says, tmp_path):
    path = convolution(tmp_path / "new.onnx", ["image", "image"])
    model = onnx.load(path)
    model.ir_version, model.opset_import[0].version = format_, opset
    path.write_bytes(model.SerializeToString())
    with pytest.raises(DeployError, match=says) as caught:
        load_engine(path)
    said = str(caught.value)
    assert said.endswith(".") and "update ONNX Runtime" in said
    assert not any(sign in said for sign in ("::", ".cc", ".h:", "std::", "[ONNXRuntimeError]"))


def test_number_13_openvino_takes_no_operator_set_that_nobody_tried(tmp_path):
    path = convolution(tmp_path / "new.onnx", ["image", "image"])
    model = onnx.load(path)
    model.opset_import[0].version = 99
    path.write_bytes(model.SerializeToString())
    with pytest.raises(DeployError, match=r"new\.onnx is of operator set 99, and OpenVINO .* of at most 26\.$"):
        load_engine(path, runtime="openvino")


@pytest.mark.parametrize(("domain", "most"), [("ai.onnx.ml", r"\d"), ("com.microsoft", "1")])
def test_number_13_a_domain_that_is_too_new_is_named(domain, most, tmp_path):
    path = convolution(tmp_path / "new.onnx", ["image", "image"])
    model = onnx.load(path)
    model.opset_import.append(helper.make_opsetid(domain, 99))
    path.write_bytes(model.SerializeToString())
    with pytest.raises(DeployError, match=rf"operator set 99 of {domain}, .*opset of at most {most} of {domain}\.$"):
        load_engine(path)


@pytest.mark.parametrize("make", [int8_from_fp32, fp16_from_fp32])
@pytest.mark.parametrize(
    ("format_", "opset", "domain", "says"),
    [
        (99, 18, "", r"format \(IR version\) 99 and onnx .* at most; update onnx, or export"),
        (onnx.IR_VERSION, 18, "", r"format 14; update ONNX Runtime" if onnx.IR_VERSION == 14 else "format"),
        (10, 99, "", r"operator set 99 and onnx .* at most; update onnx, or export the file with an opset of at most"),
        (10, 99, "ai.onnx.ml", r"operator set 99 of ai\.onnx\.ml and onnx .* at most \d+ of ai\.onnx\.ml\.$"),
        (10, onnx.defs.onnx_opset_version(), "", r"does not read operator set \d+, .*; update ONNX Runtime"),
    ],
    ids=["format", "format that onnx alone reads", "opset", "domain", "opset that onnx alone reads"],
)
def test_number_13_a_file_too_new_to_be_quantised_is_called_so(make, format_, opset, domain, says, tmp_path):
    path = convolution(tmp_path / "new.onnx", ["image", "weight"])
    model = onnx.load(path)
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4, 8, 8]))
    weight = np.random.default_rng(0).standard_normal((4, 3, 1, 1), np.float32)
    model.graph.initializer.append(onnx.numpy_helper.from_array(weight, "weight"))
    model.ir_version = format_
    if domain:
        model.opset_import.append(helper.make_opsetid(domain, opset))
    else:
        model.opset_import[0].version = opset
    path.write_bytes(model.SerializeToString())
    images = np.random.default_rng(1).standard_normal((8, 3, 8, 8), np.float32)
    with pytest.raises(DeployError, match=says) as caught:
        make(path, tmp_path / "made.onnx", list(images))
    assert "not a valid" not in str(caught.value) and "\n" not in str(caught.value)


def test_number_13_a_library_s_message_ends_at_a_word_and_without_its_source():
    assert first_line(RuntimeError("/src/a/model.cc:25 void f(std::map<int, g(int)>, int) const No such thing.")) == (
        "No such thing"
    )
    said = first_line(RuntimeError("word " * 200))
    assert said.endswith("word ...") and len(said) <= 505
    assert first_line(RuntimeError("[ONNXRuntimeError] : 1 : FAIL : broken")) == "broken"


def with_classes(bundle, count):
    """Name another number of classes than the network has, as one who edits a manifest would."""
    path = bundle / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["classes"] = [f"class {k}" for k in range(count)]
    path.write_text(json.dumps(manifest))
    return bundle


def with_empty_graph(bundle):
    """Leave of each model a graph without a node, its hash made right again."""
    path = bundle / "manifest.json"
    manifest = json.loads(path.read_text())
    for item in manifest["models"].values():
        content = b"\x3a\x00"
        (bundle / item["file"]).write_bytes(content)
        item |= {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    manifest["default"] = "fp32"
    path.write_text(json.dumps(manifest))
    return bundle


def test_number_14_what_predict_refuses_is_neither_signed_nor_built(bundle_dir, tmp_path):
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    key = tmp_path / "key.pem"
    plain = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    key.write_bytes(Ed25519PrivateKey.generate().private_bytes(*plain))
    whole = shutil.copytree(bundle_dir, tmp_path / "whole")
    check_predictable(whole, read_manifest(whole))
    assert deploy.sign(whole, key).is_file()
    odd = with_classes(shutil.copytree(bundle_dir, tmp_path / "odd"), 3)
    for refused in (lambda: deploy.load(odd), lambda: deploy.sign(odd, key), lambda: deploy.build_engine(odd)):
        with pytest.raises(DeployError, match="names 3 classes but its network gives"):
            refused()
    assert not list(odd.glob("*.sig"))
    hollow = with_empty_graph(shutil.copytree(bundle_dir, tmp_path / "hollow"))
    for refused in (lambda: deploy.load(hollow), lambda: deploy.sign(hollow, key), lambda: deploy.build_engine(hollow)):
        with pytest.raises(DeployError, match=r"model\.fp32\.onnx"):
            refused()
    assert not list(hollow.glob("*.sig"))


@dataclasses.dataclass
class Model:
    weights: str | None


@dataclasses.dataclass
class Asked:
    model: Model
    preprocessing: object


@pytest.fixture
def check_pixels(tmp_path):
    """What checks a recipe's preprocessing against a network that was saved with another one."""
    import compress
    from compress.models.factory import build
    from compress.recipe.schema import PreprocessingRecipe
    from compress.run import preflight

    usual = PreprocessingRecipe(size=(32, 32), mean=(0.5,) * 3, std=(0.5,) * 3)
    network = build("niwaki:cifar_resnet", {"depth": 8}, 2)

    def check(saved, asked, weights="teacher"):
        stated = {} if saved is None else usual.model_copy(update=saved).model_dump(mode="json")
        compress.save(network, tmp_path / "teacher", preprocessing=stated)
        named = weights if weights == "DEFAULT" else str(tmp_path / weights)
        preflight.check_preprocessing(Asked(Model(named), usual.model_copy(update=asked)))

    return check


@pytest.mark.parametrize(
    ("saved", "asked", "key"),
    [
        ({}, {"mean": (0.4, 0.5, 0.5)}, "mean"),
        ({}, {"std": (0.4, 0.5, 0.5)}, "std"),
        ({}, {"channels": "BGR"}, "channels"),
        ({}, {"mode": "L", "mean": (0.5,), "std": (0.5,)}, "mode"),
        ({}, {"resize": "stretch"}, "resize"),
        ({}, {"interpolation": "nearest"}, "interpolation"),
        ({"background": (0, 0, 0)}, {"background": (255, 255, 255)}, "background"),
        ({"bits": 12}, {"bits": 16}, "bits"),
        ({"resize": "letterbox"}, {"resize": "letterbox", "padding": 114}, "padding"),
    ],
)
def test_number_14_pixels_of_a_saved_network_are_held_against_the_recipe(saved, asked, key, check_pixels):
    from compress.errors import RecipeError

    with pytest.raises(RecipeError, match=rf"preprocessing.{key} is .*was trained with"):
        check_pixels(saved, asked)
    check_pixels(saved, asked, "teacher/model.safetensors")
    check_pixels(saved, asked, "DEFAULT")
    check_pixels(None, asked)  # nobody stated any


@pytest.mark.parametrize(
    ("saved", "asked"),
    [({}, {"size": (64, 64)}), ({}, {"bits": 12, "background": (9, 9, 9)}), ({}, {"padding": 9})],
)
def test_number_14_another_size_and_what_only_one_states_are_no_fault(saved, asked, check_pixels):
    check_pixels(saved, asked)


@pytest.mark.parametrize(("snr", "said"), [(29.0, "close to fp32"), (16.0, "far from fp32"), (4.0, "a poor copy")])
def test_number_14_an_int8_of_low_signal_to_noise_is_called_so(snr, said):
    assert grade(snr).startswith(said)
