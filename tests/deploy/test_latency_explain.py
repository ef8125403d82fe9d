"""Why a cut brings less than its arithmetic: planted layer times with known reasons, and real files."""

import json
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from compress.cli import app
from deploy.errors import DeployError
from deploy.latency.explain import Explanation, explain_files, explained, weights_of
from deploy.latency.layers import LayerTime


def conv(name, reads, makes, ms, **more):
    """A 3x3 convolution as a runtime tells of it; ``padded`` is what it makes of ``makes``."""
    side, precision = more.get("side", 28), more.get("precision", "fp32")
    ran = more.get("padded", makes)
    shapes = ((1, reads, side, side), (ran, reads // more.get("groups", 1), 3, 3))
    return LayerTime(name, "Conv", "Conv", precision, ms, shapes, ((1, ran, side, side),))


def other(kind, ms):
    return LayerTime(kind.lower(), kind, kind, "fp32", ms, ((1, 64, 28, 28),), ((1, 64, 28, 28),))


BEFORE = [conv("a", 64, 64, 1.0), conv("b", 64, 64, 1.0)]
WHOLE = [(64, 64, 3, 3), (64, 64, 3, 3)]


def reasons(after, weights=(), before=BEFORE, whole=WHOLE):
    return {row.name: row.reason for row in explained(after, before, weights, whole) if row.reason}


def test_37_of_64_channels_are_misaligned():
    after = [conv("a", 64, 37, 0.9, padded=48), conv("b", 37, 64, 0.9)]
    rows = explained(after, BEFORE, [(37, 64, 3, 3), (64, 37, 3, 3)], WHOLE)
    assert [row.reason for row in rows] == ["misaligned", "misaligned"]
    assert rows[0].said == "makes 37 channels, which run as 48"
    assert rows[1].said == "reads 37 channels, no multiple of 8"
    assert rows[0].expected_ms == pytest.approx(37 / 64) and rows[0].widths == "64 to 37, before 64 to 64"


def test_a_cut_that_brings_what_is_expected_has_no_reason():
    assert reasons([conv("a", 64, 32, 0.5), conv("b", 32, 64, 0.5)], [(32, 64, 3, 3), (64, 32, 3, 3)]) == {}


def test_depthwise_layers_that_dominate_are_memory_bound():
    before = [conv("d", 64, 64, 1.0, groups=64), conv("p", 64, 64, 0.1)]
    after = [conv("d", 32, 32, 0.9, groups=32), conv("p", 32, 32, 0.025)]
    rows = explained(after, before, [(32, 1, 3, 3), (32, 32, 3, 3)], [(64, 1, 3, 3), (64, 64, 3, 3)])
    assert [row.reason for row in rows] == ["memory-bound", ""]
    assert rows[0].widths == "32 depthwise, before 64 depthwise"
    stem = explained([conv("s", 1, 8, 0.5)], [conv("s", 1, 16, 1.0)], [(8, 1, 3, 3)], [(16, 1, 3, 3)])
    assert stem[0].widths == "1 to 8, before 1 to 16"  # an image of one channel
    found = Explanation(runtime="x", threads=1, after="a", after_ms=0.93, rows=tuple(rows))
    assert next(iter(found.by_reason())) == "memory-bound" and found.layers_ms == pytest.approx(0.925)


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (conv("a", 64, 32, 0.9, precision="fp32"), "precision fell back"),
        (conv("a", 64, 32, 0.9, precision="int8"), "kernel"),
    ],
)
def test_a_layer_of_an_int8_file_in_fp32_fell_back(layer, reason):
    after = [layer, conv("b", 32, 64, 0.4, precision="int8")]
    assert reasons(after, [(32, 64, 3, 3), (64, 32, 3, 3)]) == {"a": reason}


def test_a_layer_of_microseconds_is_overhead():
    before = [conv("a", 64, 64, 0.01, side=2), conv("b", 64, 64, 0.5)]
    after = [conv("a", 64, 8, 0.009, side=2), conv("b", 64, 64, 0.5)]
    assert reasons(after, [(8, 64, 3, 3), (64, 64, 3, 3)], before) == {"a": "overhead-bound"}


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("Relu", "not fused"),
        ("ReorderInput", "reorder inserted"),
        ("Add", "memory-bound"),
        ("Cast", "precision fell back"),
    ],
)
def test_what_lies_between_products_has_a_reason_of_its_own(kind, reason):
    after = [conv("a", 64, 64, 1.0), other(kind, 0.5), conv("b", 64, 64, 1.0)]
    assert reasons(after, WHOLE) == {kind.lower(): reason}
    assert reasons([*after[:1], other(kind, 0.001), *after[2:]], WHOLE) == {}  # next to nothing


@pytest.mark.parametrize("kind", ["ConvTranspose", "Deconvolution"])
def test_a_transposed_convolution_is_a_product_whose_weights_hold_first_what_it_reads(kind):
    def up(reads, makes, ms):
        return LayerTime(
            kind.lower(), kind, kind, "fp32", ms, ((1, reads, 8, 8), (reads, makes, 2, 2)), ((1, makes, 16, 16),)
        )

    assert up(64, 32, 1.0).weights == (32, 64, 2, 2) and up(64, 32, 1.0).macs == 64 * 32 * 4 * 8 * 8
    (row,) = explained([up(64, 37, 0.9)], [up(64, 64, 1.0)], [(37, 64, 2, 2)], [(64, 64, 2, 2)])
    assert (row.reason, row.widths) == ("misaligned", "64 to 37, before 64 to 64")
    assert row.expected_ms == pytest.approx(37 / 64)
    deep = LayerTime(kind.lower(), kind, kind, "fp32", 1.0, ((1, 64, 8, 8), (64, 1, 2, 2)), ((1, 64, 16, 16),))
    assert explained([deep])[0].reason == "memory-bound" and deep.weights == (64, 1, 2, 2)


def test_one_file_alone_is_told_what_bounds_it():
    rows = explained([conv("d", 64, 64, 1.0, groups=64), conv("p", 64, 64, 1.0)], None, [(64, 1, 3, 3), (64, 64, 3, 3)])
    assert [(row.reason, row.before_ms) for row in rows] == [("memory-bound", None), ("", None)]


def test_other_numbers_of_products_are_matched_by_name():
    after = [conv("b", 64, 32, 0.9)]
    (row,) = explained(after, BEFORE, [(32, 64, 3, 3)], WHOLE)
    assert row.before_ms == 1.0 and row.expected_ms == pytest.approx(0.5) and row.reason == "kernel"


# --- real files


def written(path: Path, makes: int) -> Path:
    rng = np.random.default_rng(0)
    constants = [
        numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), name)
        for name, shape in (("v", (makes, 64, 3, 3)), ("w", (64, makes, 3, 3)))
    ]
    nodes = [
        helper.make_node("Conv", ["x", "v"], ["c"], name="a", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["r"], name="r"),
        helper.make_node("Conv", ["r", "w"], ["y"], name="b", pads=[1, 1, 1, 1]),
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 64, 14, 14]) for name in "xy"]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    return path


def test_weights_are_read_as_the_file_has_them(tmp_path):
    assert weights_of(written(tmp_path / "a.onnx", 37)) == [(37, 64, 3, 3), (64, 37, 3, 3)]


@pytest.mark.heavy
@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_a_real_file_with_a_transposed_convolution_tells_its_widths(tmp_path, runtime):
    weights = numpy_helper.from_array(np.ones((64, 37, 2, 2), np.float32), "w")
    node = helper.make_node("ConvTranspose", ["x", "w"], ["y"], name="up", strides=[2, 2])
    ends = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 64, 14, 14])]
    ends.append(helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 37, 28, 28]))
    graph = helper.make_graph([node], "g", ends[:1], ends[1:], [weights])
    path = tmp_path / "up.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    assert weights_of(path) == [(37, 64, 2, 2)]
    found = explain_files(path, runtime=runtime)
    (row,) = (one for one in found.rows if one.widths)
    assert (row.widths, row.reason) == ("64 to 37", "misaligned")


@pytest.mark.heavy
@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_a_real_file_of_37_channels_is_misaligned(tmp_path, monkeypatch, capsys, runtime):
    path = written(tmp_path / "cut.onnx", 37)
    monkeypatch.setattr(sys, "argv", ["niwaki", "explain", str(path), "--runtime", runtime, "--json"])
    with pytest.raises(SystemExit) as ended:
        app.main()
    found = json.loads(capsys.readouterr().out)
    assert ended.value.code == 0
    assert {row["reason"] for row in found["rows"] if "Conv" in row["kind"]} == {"misaligned"}


def test_a_runtime_without_a_profile_is_refused(tmp_path):
    with pytest.raises(DeployError, match="read from onnxruntime and openvino, not from tensorrt"):
        explain_files(tmp_path / "a.onnx", runtime="tensorrt")
