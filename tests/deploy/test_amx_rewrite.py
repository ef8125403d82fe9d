"""Weights moved by one on their way into ONNX Runtime: the same answers, and only where it pays and is allowed."""

import tracemalloc

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

import deploy.engines.onnxruntime.engine as runtime
from deploy.engines.onnxruntime.amx_rewrite import has_amx, shift_weights, space_to_depth
from deploy.environment import int8_sums
from deploy.onnx.file import read

# Weights that no processor's sums saturate for, where this one's would: 2 x 255 x 63 is below 2 ** 15.
WIDEST = 62 if int8_sums() == "saturating" else 127


def quantised(channels=80, kernel=3, groups=1, lowest=-127, raw=True, shared=False):
    """Two quantised convolutions (N, channels, 8, 8) -> (N, 24, 8, 8), as bytes of an ONNX file.

    The second sums too few products to gain; with ``shared`` it reads the zero-points of the first.
    """
    rng = np.random.default_rng(0)
    first = rng.integers(lowest, min(128, 1 - lowest), (24, channels // groups, kernel, kernel)).astype(np.int8)
    first[0, 0, 0, 0] = lowest
    second = rng.integers(-WIDEST, WIDEST + 1, (24, 24, 1, 1)).astype(np.int8)
    constants = {
        "step": np.float32(0.02),
        "middle": np.uint8(128),
        "w1": first,
        "w2": second,
        "s1": rng.uniform(1e-4, 2e-4, 24).astype(np.float32) * np.float32(127 / WIDEST),
        "s2": rng.uniform(1e-3, 2e-3, 24).astype(np.float32) * np.float32(127 / WIDEST),
        "z1": np.zeros(24, np.int8),
        "z2": np.zeros(24, np.int8),
    }
    initializers = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    if not raw:
        typed = helper.make_tensor("z1", TensorProto.INT8, [24], [0] * 24)
        initializers = [typed if tensor.name == "z1" else tensor for tensor in initializers]
    zeros = "z1" if shared else "z2"
    pad = kernel // 2
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "step", "middle"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "step", "middle"], ["xd"]),
        helper.make_node("DequantizeLinear", ["w1", "s1", "z1"], ["wd1"], axis=0),
        helper.make_node("Conv", ["xd", "wd1"], ["c1"], pads=[pad] * 4, group=groups),
        helper.make_node("QuantizeLinear", ["c1", "step", "middle"], ["c1q"]),
        helper.make_node("DequantizeLinear", ["c1q", "step", "middle"], ["c1d"]),
        helper.make_node("DequantizeLinear", ["w2", "s2", zeros], ["wd2"], axis=0),
        helper.make_node("Conv", ["c1d", "wd2"], ["c2"]),
        helper.make_node("QuantizeLinear", ["c2", "step", "middle"], ["c2q"]),
        helper.make_node("DequantizeLinear", ["c2q", "step", "middle"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", channels, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 24, 8, 8])],
        initializers,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    return model.SerializeToString()


def constants_of(data):
    return {t.name: numpy_helper.to_array(t) for t in onnx.load_model_from_string(data).graph.initializer}


def test_long_convolutions_move_by_one_and_nothing_else_changes():
    data = quantised()
    changed = shift_weights(data)
    before, after = constants_of(data), constants_of(changed)
    assert (after["w1"] == before["w1"] - 1).all()
    assert (after["z1"] == -1).all()
    assert all((after[name] == before[name]).all() for name in set(before) - {"w1", "z1"})
    assert len(changed) == len(data)
    assert shift_weights(changed) is None  # what has moved does not move again


@pytest.mark.parametrize(
    "kwargs",
    [
        {"channels": 64},  # 576 products a sum
        {"channels": 160, "groups": 8},
        {"lowest": -128},  # has no value below it
        {"raw": False},
        {"shared": True},
    ],
    ids=str,
)
def test_what_gains_nothing_or_cannot_move_stays(kwargs):
    assert shift_weights(quantised(**kwargs)) is None


@pytest.mark.parametrize("data", [b"", b"no ONNX file", quantised()[:-40]], ids=["empty", "text", "cut"])
def test_other_bytes_are_left_to_onnx_runtime(data):
    assert shift_weights(data) is None
    assert space_to_depth(data) is None


def test_answers_stay_the_same_to_the_last_bit(tmp_path, monkeypatch):
    path = tmp_path / "long.int8.onnx"
    path.write_bytes(quantised(lowest=-WIDEST))
    feed = {"x": np.random.default_rng(1).standard_normal((3, 80, 8, 8)).astype(np.float32)}
    answers = []
    for here in (True, False):
        monkeypatch.setattr(runtime, "has_amx", lambda here=here: here)
        with runtime.load(path) as engine:
            answers.append(engine.run(feed)["y"])
    assert np.ptp(answers[0]) > 1
    np.testing.assert_array_equal(*answers)


def test_a_file_with_weights_in_another_file_runs_as_it_is_and_says_so(tmp_path, monkeypatch):
    whole, outside = tmp_path / "m.onnx", tmp_path / "outside.onnx"
    whole.write_bytes(quantised(lowest=-WIDEST))
    onnx.save(
        onnx.load(whole), outside, save_as_external_data=True, location="outside.bin", size_threshold=0,
        convert_attribute=False,
    )  # fmt: skip
    monkeypatch.setattr(runtime, "has_amx", lambda: True)
    found = {}
    for path in (whole, outside):
        with runtime.load(path) as engine:
            (name, spec) = next(iter(engine.inputs.items()))
            sizes = [side or 1 for side in spec.shape]
            feed = np.random.default_rng(0).standard_normal(sizes).astype(spec.dtype)
            found[path] = next(iter(engine.run({name: feed}).values())), engine.kernels
    np.testing.assert_array_equal(found[whole][0], found[outside][0])
    assert (found[whole][1], found[outside][1]) == ("long int8 convolutions by AMX", None)


def stem(kernel=7, stride=2, pads=None, channels=3, size=(16, 24), **more):
    """One quantised convolution on an image, as bytes of an ONNX file."""
    rng = np.random.default_rng(kernel)
    constants = {
        "step": np.float32(0.02),
        "middle": np.uint8(114),
        "w": rng.integers(-WIDEST, WIDEST + 1, (20, channels, kernel, kernel)).astype(np.int8),
        "s": rng.uniform(1e-4, 2e-4, 20).astype(np.float32),
        "z": np.zeros(20, np.int8),
        "b": rng.uniform(-1, 1, 20).astype(np.float32),
    }
    pads = [kernel // 2] * 4 if pads is None else pads
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "step", "middle"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "step", "middle"], ["xd"]),
        helper.make_node("DequantizeLinear", ["w", "s", "z"], ["wd"], axis=0),
        helper.make_node("Conv", ["xd", "wd", "b"], ["c"], strides=[stride] * 2, pads=pads, **more),
        helper.make_node("QuantizeLinear", ["c", "step", "middle"], ["cq"]),
        helper.make_node("DequantizeLinear", ["cq", "step", "middle"], ["y"]),
    ]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "g",
        [value("x", TensorProto.FLOAT, ["n", channels, *size])],
        [value("y", TensorProto.FLOAT, ["n", 20, None, None])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    helper.set_model_props(model, {"niwaki.precision": "int8"})
    return model.SerializeToString()


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("kernel", "pad"), [(3, 0), (3, 1), (4, 1), (5, 2), (6, 2), (7, 3), (7, 1)])
def test_a_first_convolution_on_blocks_gives_the_same(kernel, pad, channels):
    data = stem(kernel, pads=[pad] * 4, channels=channels)
    changed = space_to_depth(data)
    model = onnx.load_model_from_string(changed)
    onnx.checker.check_model(model, full_check=True)
    (conv,) = (node for node in model.graph.node if node.op_type == "Conv")
    assert [list(a.ints) for a in conv.attribute if a.name == "strides"] == [[1, 1]]
    assert [prop.value for prop in model.metadata_props] == ["int8"]
    image = {"x": np.random.default_rng(1).standard_normal((2, channels, 16, 24)).astype(np.float32)}
    wanted, found = (ort.InferenceSession(one).run(None, image)[0] for one in (data, changed))
    assert np.ptp(wanted) > 1
    np.testing.assert_array_equal(found, wanted)
    assert space_to_depth(changed) is None


@pytest.mark.parametrize(
    "kwargs",
    [
        {"stride": 1},
        {"size": (15, 24)},
        {"size": ("height", "width")},
        {"channels": 8},
        {"kernel": 2, "pads": [0] * 4},
        {"pads": [2, 2, 3, 3]},
        {"dilations": [2, 2]},
    ],
    ids=str,
)
def test_another_first_convolution_stays(kwargs):
    assert space_to_depth(stem(**kwargs)) is None


def test_every_weight_of_an_int8_file_can_move(files):
    graph = read(files["int8"]).graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    weights = [n for n in graph.node if n.op_type == "DequantizeLinear" and n.input[0] in constants]
    assert len(weights) > 5
    assert all(constants[node.input[2]].HasField("raw_data") for node in weights)


@pytest.mark.parametrize(("flags", "here"), [("flags: avx512_vnni amx_tile amx_int8", True), ("flags: avx2", False)])
def test_the_processor_is_asked(tmp_path, flags, here):
    told = tmp_path / "cpuinfo"
    told.write_text(flags)
    assert has_amx(told) is here
    assert not has_amx(tmp_path / "none")


@pytest.mark.parametrize("data", [stem(3), quantised()], ids=["stem", "long"])
def test_a_damaged_file_is_left_to_onnx_runtime_or_changed_never_an_error(data):
    rng = np.random.default_rng(0)
    names = [at for at in range(len(data) - 3) if data[at : at + 4].isalpha() or data[at : at + 2].isalpha()]
    for at in (*rng.choice(len(data), 200), *rng.choice(names, 300)):
        damaged = bytearray(data)
        damaged[at - rng.integers(0, 4)] = rng.integers(0, 256)
        for change in (shift_weights, space_to_depth):
            assert change(bytes(damaged)) is None or isinstance(change(bytes(damaged)), bytes)


def test_a_number_in_place_of_a_text_takes_no_memory():
    data = stem(3)
    said = b"\x12\x02xd"  # field 2, two bytes: the output "xd"
    assert said in data
    number = data.replace(said, b"\x10\xff\xff\x7f")  # field 2 as the number 2,097,151
    tracemalloc.start()
    try:
        assert shift_weights(number) is None and space_to_depth(number) is None
        assert tracemalloc.get_traced_memory()[1] < 500_000
    finally:
        tracemalloc.stop()
