"""An output that is decoded already is not decoded again: a bundle knows logits from probabilities."""

import json

import numpy as np
import pytest
from PIL import Image

import deploy
from deploy.bundle.manifest import MANIFEST
from deploy.bundle.writing import BundleSpec, write_bundle
from deploy.errors import DeployError
from deploy.onnx.activation import final_activation
from deploy.processing.postprocess import SsdDecoder
from deploy.processing.preprocess import Preprocessing

onnx = pytest.importorskip("onnx")
from onnx import TensorProto, helper  # noqa: E402

WEIGHTS = [1.0, 2.0, 0.5]
ENDS = {
    "nothing": [helper.make_node("Identity", ["raw"], ["logits"])],
    "softmax": [helper.make_node("Softmax", ["raw"], ["logits"], axis=1)],
    "sigmoid": [helper.make_node("Sigmoid", ["raw"], ["logits"])],
    "softmax, moved": [
        helper.make_node("Softmax", ["raw"], ["a"], axis=1),
        helper.make_node("Flatten", ["a"], ["b"]),
        helper.make_node("Identity", ["b"], ["logits"]),
    ],
    "log-softmax": [helper.make_node("LogSoftmax", ["raw"], ["logits"], axis=1)],
    "by hand": [
        helper.make_node("Exp", ["raw"], ["a"]),
        helper.make_node("ReduceSum", ["a", "axis"], ["b"]),
        helper.make_node("Div", ["a", "b"], ["logits"]),
    ],
    "softmax, bounded": [
        helper.make_node("Softmax", ["raw"], ["a"], axis=1),
        helper.make_node("Clip", ["a", "low"], ["logits"]),
    ],
    "softmax, mean of two": [
        helper.make_node("Softmax", ["raw"], ["a"], axis=1),
        helper.make_node("Softmax", ["raw"], ["b"], axis=1),
        helper.make_node("Add", ["a", "b"], ["c"]),
        helper.make_node("Div", ["c", "two"], ["logits"]),
    ],
    "sigmoid, one by one": [
        helper.make_node("Split", ["raw"], ["x", "y", "z"], axis=1),
        *(helper.make_node("Sigmoid", [name], [f"{name}.p"]) for name in "xyz"),
        helper.make_node("Concat", ["x.p", "y.p", "z.p"], ["logits"], axis=1),
    ],
    "sigmoid, of the complement": [
        helper.make_node("Neg", ["raw"], ["a"]),
        helper.make_node("Sigmoid", ["a"], ["b"]),
        helper.make_node("Sub", ["one", "b"], ["logits"]),
    ],
    "sigmoid, by hand": [
        helper.make_node("Neg", ["raw"], ["a"]),
        helper.make_node("Exp", ["a"], ["b"]),
        helper.make_node("Add", ["b", "one"], ["c"]),
        helper.make_node("Div", ["one", "c"], ["logits"]),
    ],
    "sigmoid, by tanh": [
        helper.make_node("Div", ["raw", "two"], ["a"]),
        helper.make_node("Tanh", ["a"], ["b"]),
        helper.make_node("Add", ["b", "one"], ["c"]),
        helper.make_node("Div", ["c", "two"], ["logits"]),
    ],
    "sigmoid, mean of two": [
        helper.make_node("Sigmoid", ["raw"], ["a"]),
        helper.make_node("Sigmoid", ["raw"], ["b"]),
        helper.make_node("Add", ["a", "b"], ["c"]),
        helper.make_node("Div", ["c", "two"], ["logits"]),
    ],
    "sigmoid, in a branch": [
        helper.make_node(
            "If",
            ["yes"],
            ["logits"],
            **dict.fromkeys(
                ("then_branch", "else_branch"),
                helper.make_graph(
                    [helper.make_node("Sigmoid", ["raw"], ["p"])],
                    "b",
                    [],
                    [helper.make_tensor_value_info("p", TensorProto.FLOAT, None)],
                ),
            ),
        )
    ],
}
NUMBERS = {"low": 1e-7, "two": 2.0, "one": 1.0, "hundred": 100.0, "zero": 0.0}


def file(path, end):
    graph = helper.make_graph(
        [
            helper.make_node("ReduceMean", ["image"], ["mean"], axes=[2, 3], keepdims=0),
            helper.make_node("MatMul", ["mean", "w"], ["raw"]),
            *ENDS[end],
        ],
        "g",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ("n", 1, 8, 8))],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ("n", 3))],
        [
            helper.make_tensor("w", TensorProto.FLOAT, [1, 3], WEIGHTS),
            helper.make_tensor("axis", 7, [1], [1]),
            helper.make_tensor("yes", TensorProto.BOOL, [], [True]),
            *(helper.make_tensor(name, TensorProto.FLOAT, [], [number]) for name, number in NUMBERS.items()),
        ],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def bundle(tmp_path, end, **more):
    options = {"classes": ["a", "b", "c"], "preprocessing": Preprocessing(size=(8, 8), mode="L")} | more
    return write_bundle(
        tmp_path / "b", BundleSpec(models={"fp32": file(tmp_path / "x.onnx", end)}, default="fp32", **options)
    )


def expected(end):
    raw = np.asarray(WEIGHTS) * 200 / 255
    return 1 / (1 + np.exp(-raw)) if end.startswith("sigmoid") else np.exp(raw) / np.exp(raw).sum()


BY_NUMBERS = ("by hand", "softmax, mean of two", *(f"sigmoid, {how}" for how in ("by hand", "by tanh", "mean of two")))
"""What no operator at the end tells."""
BY_NUMBERS += ("sigmoid, in a branch",)


@pytest.mark.parametrize("end", ENDS)
def test_probabilities_are_shown_as_the_network_gives_them(end, tmp_path):
    folder = bundle(tmp_path, end)
    kind = "probabilities" if end.startswith(("soft", "sig", "by")) else "logits"
    manifest = json.loads((folder / MANIFEST).read_text())
    assert manifest["outputs"] == kind
    for states in (True, False)[: 1 + (end not in BY_NUMBERS)]:  # a bundle of before that key tells it from its file
        if not states:
            del manifest["outputs"]
            (folder / MANIFEST).write_text(json.dumps(manifest))
        with deploy.load(folder) as loaded:
            (found,) = loaded.predict([Image.new("L", (8, 8), 200)], top=3)
        assert found["class"] == "b"
        shown = {row["class"]: row["probability"] for row in found["top"]}
        np.testing.assert_allclose([shown[c] for c in "abc"], expected(end), atol=1e-5)


def test_a_softmax_written_by_hand_is_stated_or_refused(tmp_path):
    with pytest.raises(DeployError, match="whose sum is 1 for every image"):
        bundle(tmp_path, "by hand", outputs="logits")
    folder = bundle(tmp_path, "by hand", outputs="probabilities")
    with deploy.load(folder) as loaded:
        assert loaded.predict([Image.new("L", (8, 8), 200)])[0]["probability"] == pytest.approx(max(expected("")))
    manifest = json.loads((folder / MANIFEST).read_text())
    del manifest["outputs"]
    (folder / MANIFEST).write_text(json.dumps(manifest))
    with deploy.load(folder) as loaded, pytest.raises(DeployError, match="whose sum is 1"):
        loaded.predict([Image.new("L", (8, 8), 200)])


def test_what_contradicts_the_file_is_refused(tmp_path):
    with pytest.raises(DeployError, match="ends in Softmax, so its outputs are not logits"):
        bundle(tmp_path, "softmax", outputs="logits")
    folder = bundle(tmp_path, "nothing", outputs="probabilities")
    with deploy.load(folder) as loaded, pytest.raises(DeployError, match="states probabilities; state outputs: logits"):
        loaded.predict([Image.new("L", (8, 8), 255)])
    decoder = SsdDecoder(size=(8, 8), grids=((1, 1),), scales=(0.1, 0.2), aspect_ratios=((2,),))
    with pytest.raises(DeployError, match="ends 'logits' in Sigmoid, and SsdDecoder decodes raw logits"):
        bundle(tmp_path, "sigmoid", task="detection", postprocessing=decoder)


def test_a_graph_in_circles_has_no_end(tmp_path):
    path = file(tmp_path / "x.onnx", "nothing")
    model = onnx.load(path)
    model.graph.node[-1].input[0] = "logits"
    path.write_bytes(model.SerializeToString())
    assert final_activation(path) is None


@pytest.mark.parametrize("last", ["Softmax", "Sigmoid"])
def test_number_3_percentages_are_neither(last, tmp_path, monkeypatch):
    ends = [helper.make_node(last, ["raw"], ["p"]), helper.make_node("Mul", ["p", "hundred"], ["logits"])]
    monkeypatch.setitem(ENDS, "percent", ends)
    with pytest.raises(DeployError, match="gives percentages, from 0 to 100 whatever it reads"):
        bundle(tmp_path, "percent")
    assert bundle(tmp_path, "percent", outputs="logits").is_dir()


@pytest.mark.parametrize(
    "nodes",
    [
        [helper.make_node("Relu", ["raw"], ["logits"])],
        [helper.make_node("Tanh", ["raw"], ["logits"])],
        [helper.make_node("Mul", ["raw", "zero"], ["logits"])],
        [helper.make_node("Div", ["raw", "hundred"], ["logits"])],
    ],
    ids=["above zero", "between -1 and 1", "zeros", "small"],
)
def test_number_3_small_logits_are_logits(nodes, tmp_path, monkeypatch):
    monkeypatch.setitem(ENDS, "small", nodes)
    folder = bundle(tmp_path, "small")
    assert json.loads((folder / MANIFEST).read_text())["outputs"] == "logits"


def test_number_3_a_detector_s_sigmoid_by_hand_is_seen_too(tmp_path):
    decoder = SsdDecoder(size=(8, 8), grids=((1, 1),), scales=(0.1, 0.2), aspect_ratios=((2,),))
    with pytest.raises(DeployError, match="ends 'logits' in numbers from 0 to 1, whatever it reads, and SsdDecoder"):
        bundle(tmp_path, "sigmoid, by hand", task="detection", postprocessing=decoder)
