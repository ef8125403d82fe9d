"""fp16 and int8 files: how far they are from the model, and that TensorRT gets only what it can read."""

import logging
import os
from collections import Counter

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from torch import nn

from deploy.engines import load_engine
from deploy.errors import DeployError
from deploy.exporting.parity import parity
from deploy.exporting.torch_to_onnx import export_onnx
from deploy.onnx.wire import check_tensorrt_qdq
from deploy.quantization.half import fp16_from_fp32
from deploy.quantization.int8 import int8_from_fp32, signed_from_unsigned
from deploy.quantization.lint import lint_qdq
from deploy.quantization.qdq import shift_activations

pytestmark = pytest.mark.heavy


def snr(model, path, images):
    with load_engine(path) as engine:
        return min(row["snr_db"] for row in parity(model, engine, torch.from_numpy(images)))


def quantisers(path):
    graph = onnx.load(path).graph
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    nodes = [node for node in graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    return [(constants[node.input[1]], constants[node.input[2]]) for node in nodes]


class Reference:
    """The file as ONNX defines it, on no processor's shortcuts: without VNNI products of int8 saturate."""

    name = "reference"

    def __init__(self, path):
        model = onnx.load(path)
        # The evaluator knows quantisers from 19 on, which mean the same.
        model.opset_import[0].version = 21
        self.inputs = [value.name for value in model.graph.input]
        self.run = lambda feeds: dict(zip(["logits"], ReferenceEvaluator(model).run(None, feeds), strict=True))


def exact_snr(model, path, images):
    return min(row["snr_db"] for row in parity(model, Reference(path), torch.from_numpy(images)))


@pytest.mark.parametrize(("precision", "floor"), [("fp32", 110), ("fp16", 55), ("int8", 25)])
def test_signal_to_noise_stays_above_its_floor(precision, floor, files, resnet, images):
    assert snr(resnet, files[precision], images) > floor


def test_quantised_files_keep_their_signal_on_any_processor(files, resnet, images):
    int8, signed = (exact_snr(resnet, files[name], images) for name in ("int8", "signed"))
    assert int8 > 28
    assert signed > 27
    # A bit of what is never negative goes, at most 6 dB; weights and sums keep theirs.
    assert 0 < int8 - signed < 3


def test_int8_has_unsigned_activations_and_signed_has_none(files):
    unsigned, signed = quantisers(files["int8"]), quantisers(files["signed"])
    # Weights are int8 with zero-point 0; activations uint8, from 0 or around the middle.
    assert {(zero.dtype.name, *np.unique(zero)) for _, zero in unsigned} == {
        ("int8", 0),
        ("uint8", 0),
        ("uint8", 128),
        ("int32", 0),  # the bias of the last layer, which TensorRT gets as floats
    }
    assert {zero.dtype.name for _, zero in signed} == {"int8"}
    assert not any(zero.any() for _, zero in signed)
    assert len(signed) == len(unsigned) - 1
    before, after = (
        {t.name: numpy_helper.to_array(t) for t in onnx.load(files[name]).graph.initializer}
        for name in ("int8", "signed")
    )
    ((name, whole),) = ((key, value) for key, value in before.items() if value.dtype == np.int32 and value.any())
    (restored,) = (value for key, value in after.items() if key == name.replace(".int32", ".restored"))
    np.testing.assert_allclose(restored, whole * before[name.replace(".int32", ".step")].astype(np.float64), rtol=1e-6)


def test_a_projection_beside_a_sum_is_fused_with_it(images, tmp_path):
    """As in MobileNetV2: what is rectified goes in, what is not comes out, and is added to what went in before."""

    class Inverted(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(2)
            self.stem = nn.Conv2d(1, 8, 3, padding=1)
            self.wide, self.deep = nn.Conv2d(8, 16, 1), nn.Conv2d(16, 16, 3, padding=1, groups=16)
            self.back, self.head = nn.Conv2d(16, 8, 1), nn.Conv2d(8, 8, 1)
            self.last = nn.Linear(8, 5)

        def forward(self, x):
            x = self.stem(x)
            x = x + self.back(nn.functional.relu6(self.deep(nn.functional.relu6(self.wide(x)))))
            return self.last(nn.functional.relu6(self.head(x)).mean((2, 3)))

    model = Inverted().eval()
    path = export_onnx(model, torch.from_numpy(images), tmp_path / "m.fp32.onnx")
    int8 = int8_from_fp32(path, tmp_path / "m.int8.onnx", list(images))
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(tmp_path / "fused.onnx")
    ort.InferenceSession(str(int8), options, providers=["CPUExecutionProvider"])
    kinds = Counter(node.op_type for node in onnx.load(tmp_path / "fused.onnx").graph.node)
    assert (kinds["QLinearConv"], kinds["QLinearAdd"], kinds["QGemm"]) == (5, 1, 1)
    assert (kinds["Conv"], kinds["Add"], kinds["Gemm"]) == (0, 0, 0)
    assert [finding for finding in lint_qdq(int8) if "not fused" in finding.what] == []
    assert exact_snr(model, int8, images) > 18


def test_activations_are_quantised_per_tensor(files):
    graph = onnx.load(files["int8"]).graph
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    sizes = {constants[node.input[1]].size for node in graph.node if node.op_type == "QuantizeLinear"}
    assert sizes == {1}


def test_tensorrt_check_refuses_unsigned_and_passes_the_rest(files):
    with pytest.raises(DeployError, match=r"uint8 values.*signed_from_unsigned"):
        check_tensorrt_qdq(files["int8"])
    for precision in ("signed", "fp32", "fp16"):
        check_tensorrt_qdq(files[precision])


def qdq_model(path, zero, kind, constant=True):
    """x -> Q -> DQ -> y with scale 0.1 and the given zero-point."""
    tensors = [
        helper.make_tensor("scale", TensorProto.FLOAT, [], [0.1]),
        helper.make_tensor("zero", kind, [], [zero]),
    ]
    value = helper.make_tensor_value_info
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"], name="quantise"),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["y"], name="dequantise"),
    ]
    inputs = [value("x", TensorProto.FLOAT, ["n", 4])]
    if not constant:
        inputs.append(value("scale", TensorProto.FLOAT, []))
        tensors = tensors[1:]
    graph = helper.make_graph(nodes, "g", inputs, [value("y", TensorProto.FLOAT, ["n", 4])], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(model, path)
    return path


@pytest.mark.parametrize(
    ("kind", "zero", "span"),
    [
        (TensorProto.UINT8, 0, 255),
        (TensorProto.UINT8, 128, 127),
        (TensorProto.UINT8, 40, 215),
        (TensorProto.INT8, 28, 156),
    ],
)
def test_signed_scale_covers_the_same_range(kind, zero, span, tmp_path):
    path = signed_from_unsigned(qdq_model(tmp_path / "a.onnx", zero, kind), tmp_path / "b.onnx")
    ((scale, new), _) = quantisers(path)
    assert float(scale) == pytest.approx(0.1 * span / 127)
    assert new.dtype == np.int8
    assert not new.any()
    low = 0 if kind == TensorProto.UINT8 else -128
    edges = np.array([[low - zero, 255 + low - zero, 0, 1]], dtype=np.float32) * np.float32(0.1)
    with load_engine(path) as engine:
        assert np.abs(engine.run({"x": edges})["y"] - edges).max() <= float(scale) * 0.51


def test_shifted_activations_are_the_same_values(tmp_path):
    model = onnx.load(qdq_model(tmp_path / "a.onnx", 0, TensorProto.INT8))
    shift_activations(model.graph)
    onnx.save(model, tmp_path / "b.onnx")
    assert [(zero.dtype.name, int(zero)) for _, zero in quantisers(tmp_path / "b.onnx")] == [("uint8", 128)] * 2
    feeds = {"x": np.linspace(-20, 20, 400, dtype=np.float32).reshape(100, 4)}
    with load_engine(tmp_path / "a.onnx") as one, load_engine(tmp_path / "b.onnx") as other:
        assert np.array_equal(one.run(feeds)["y"], other.run(feeds)["y"])
    back = signed_from_unsigned(tmp_path / "b.onnx", tmp_path / "c.onnx")
    assert [(float(scale), zero.dtype.name) for scale, zero in quantisers(back)] == [(pytest.approx(0.1), "int8")] * 2


def test_symmetric_int8_is_left_alone(tmp_path):
    path = signed_from_unsigned(qdq_model(tmp_path / "a.onnx", 0, TensorProto.INT8), tmp_path / "b.onnx")
    assert [float(scale) for scale, _ in quantisers(path)] == [pytest.approx(0.1)] * 2


def test_a_zero_point_or_a_computed_scale_is_refused(tmp_path):
    with pytest.raises(DeployError, match="zero-point 28"):
        check_tensorrt_qdq(qdq_model(tmp_path / "a.onnx", 28, TensorProto.INT8))
    computed = qdq_model(tmp_path / "b.onnx", 0, TensorProto.INT8, constant=False)
    with pytest.raises(DeployError, match="constant scales"):
        check_tensorrt_qdq(computed)


def test_metadata_survives_and_names_the_source(files):
    from deploy.files import sha256

    for precision, source in (("fp16", "fp32"), ("int8", "fp32"), ("signed", "int8")):
        props = {p.key: p.value for p in onnx.load(files[precision]).metadata_props}
        assert props["origin"] == "test"
        assert props["niwaki.precision"] == ("int8" if precision == "signed" else precision)
        assert props["niwaki.source_sha256"] == sha256(files[source])


def test_quantising_is_quiet_repeatable_and_leaves_no_trace(files, images, tmp_path, capfd):
    environment, level = dict(os.environ), logging.root.manager.disable
    again = int8_from_fp32(files["fp32"], tmp_path / "again.onnx", [images[:16], images[16:]])
    assert capfd.readouterr() == ("", "")
    assert again.read_bytes() == files["int8"].read_bytes()
    assert (dict(os.environ), logging.root.manager.disable) == (environment, level)
    assert [file.name for file in tmp_path.iterdir()] == ["again.onnx"]


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        ([], "0 images"),
        ([np.zeros((1, 3, 16, 16), np.float32)], r"float32\[1, 3, 16, 16\]"),
        ([np.zeros((1, 1, 16, 16), np.float64)], "float64"),
        ([np.full((1, 1, 16, 16), np.nan, np.float32)], "NaN"),
    ],
)
def test_a_calibration_that_does_not_fit_is_one_sentence(bad, says, files, tmp_path):
    with pytest.raises(DeployError, match=says):
        int8_from_fp32(files["fp32"], tmp_path / "x.onnx", bad)
    assert list(tmp_path.iterdir()) == []


def test_converting_the_wrong_file_is_one_sentence(files, images, tmp_path):
    with pytest.raises(DeployError, match="is int8"):
        fp16_from_fp32(files["int8"], tmp_path / "x.onnx")
    with pytest.raises(DeployError, match="is fp16"):
        int8_from_fp32(files["fp16"], tmp_path / "x.onnx", list(images))
    with pytest.raises(DeployError, match="not quantised"):
        signed_from_unsigned(files["fp32"], tmp_path / "x.onnx")
    with pytest.raises(DeployError, match="no ONNX file"):
        fp16_from_fp32(tmp_path / "none.onnx", tmp_path / "x.onnx")
    (tmp_path / "junk.onnx").write_bytes(b"not a model")
    with pytest.raises(DeployError, match="not a valid ONNX file"):
        fp16_from_fp32(tmp_path / "junk.onnx", tmp_path / "x.onnx")
