"""``bench`` across engines whose inputs differ; free sizes, scalars, images without a batch."""

import json

import numpy as np
import onnx
import pytest
import typer
from onnx import TensorProto, helper
from typer.testing import CliRunner

import deploy
from compress.cli.app import app
from compress.cli.timing import shapes_of
from deploy.bench.feeding import Feeding
from deploy.bench.noise import has_batch, noise
from deploy.engines import load_engine
from deploy.engines.base import TensorSpec
from deploy.errors import DeployError

pytestmark = pytest.mark.heavy

KINDS = {"float32": TensorProto.FLOAT, "uint8": TensorProto.UINT8, "float16": TensorProto.FLOAT16}


def network(path, name, shape, kind="float32", scalar=False):
    """Write the sum of what is given, with a factor where ``scalar``."""
    inputs = [helper.make_tensor_value_info(name, KINDS[kind], shape)]
    nodes = [helper.make_node("Cast", [name], ["x"], to=TensorProto.FLOAT)]
    if scalar:
        inputs.append(helper.make_tensor_value_info("factor", TensorProto.FLOAT, []))
        nodes.append(helper.make_node("Mul", ["x", "factor"], ["scaled"]))
    nodes.append(helper.make_node("ReduceSum", ["scaled" if scalar else "x"], ["sum"], keepdims=1))
    output = helper.make_tensor_value_info("sum", TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "g", inputs, [output])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    return path


def bench(*arguments):
    done = CliRunner().invoke(app, ["bench", *map(str, arguments), "--rounds", "5", "--json"])
    return done.exit_code, json.loads(done.stdout) if done.exit_code == 0 else str(done.exception or done.output)


def test_number_12_engines_may_differ_in_name_size_and_type(tmp_path):
    one = network(tmp_path / "a.onnx", "image", ["n", 3, 8, 8])
    other = network(tmp_path / "b.onnx", "pixels", ["n", 16, 16, 3], "uint8")
    code, found = bench(one, other, "--batch", 2)
    assert code == 0 and [record["batch"] for record in found["records"]] == [2, 2]
    assert found["settings"]["inputs"] == {
        "a": "image float32[any, 3, 8, 8]", "b": "pixels uint8[any, 16, 16, 3]",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("shape", "want"), [(["n", 3, "h", "w"], (1, 3, 20, 24)), (["n", "h", "w", 3], (1, 20, 24, 3))]
)
def test_number_12_a_size_fills_free_height_and_width(shape, want, tmp_path):
    path = network(tmp_path / "free.onnx", "image", shape)
    with load_engine(path) as engine:
        feeds, rows = noise(engine.inputs, "free", None, size=(20, 24))
        assert feeds["image"].shape == want and rows == 1
        with pytest.raises(DeployError, match="give --size HEIGHTxWIDTH"):
            noise(engine.inputs, "free", None)
    assert bench(path, "--size", "20x24")[0] == 0
    assert bench(path, "--size", "20")[0] == 2


def test_number_12_a_scalar_input_is_timed(tmp_path):
    path = network(tmp_path / "scaled.onnx", "image", ["n", 3, 8, 8], scalar=True)
    code, found = bench(path, "--batch", 3)
    assert code == 0 and found["records"][0]["batch"] == 3
    assert found["settings"]["threads"] == 1
    alone = network(tmp_path / "alone.onnx", "factor", [])
    code, found = bench(alone)
    assert code == 0 and found["records"][0]["batch"] == 1


def test_number_12_an_image_without_a_batch_is_one_image(tmp_path):
    path = network(tmp_path / "hwc.onnx", "image", [48, 64, 3])
    code, found = bench(path)
    assert code == 0 and found["records"][0]["batch"] == 1 and found["settings"]["batch"] == 1
    with load_engine(path) as engine, pytest.raises(DeployError, match="one per run, and no batch"):
        noise(engine.inputs, "hwc", 48)


@pytest.mark.parametrize(("shape", "want"), [(["h", "w", 3], (20, 24, 3)), ([3, "h", "w"], (3, 20, 24))])
def test_number_12_an_image_of_free_size_is_one_image_and_no_batch(shape, want, tmp_path):
    path = network(tmp_path / "free.onnx", "image", shape)
    code, found = bench(path, "--size", "20x24")
    assert code == 0 and found["records"][0]["batch"] == 1
    with load_engine(path) as engine:
        assert noise(engine.inputs, "free", None, size=(20, 24))[0]["image"].shape == want
    for given in (["--size", "20x24"], ["--shape", "x".join(map(str, want))]):
        code, found = bench(path, *given, "--batch", 20)
        assert code != 0 and "one per run, and no batch" in found


def test_number_12_a_size_that_fills_nothing_is_refused(tmp_path):
    fixed, free = (network(tmp_path / f"{k}.onnx", "image", ["n", 3, *k]) for k in ([16, 16], ["h", "w"]))
    code, found = bench(fixed, "--size", "20x24")
    assert (
        code != 0
        and "--size 20x24 fills no height and width" in found
        and "[any, 3, 16, 16]; leave it out, or" in found
    )
    assert bench(fixed, "--size", "16x16")[0] == 0
    code, found = bench(free, fixed, "--size", "20x24")
    assert code == 0 and found["settings"]["inputs"] != {}
    inputs = {"image": TensorSpec("float32", (None, 3, None, None)), "ids": TensorSpec("int64", (None, None))}
    with pytest.raises(DeployError, match=r"leaves the size of 'ids' open .*; give --shape ids=1x128"):
        noise(inputs, "both", None, size=(8, 8))
    found, _ = noise(inputs, "both", None, size=(8, 8), shapes={"ids": (1, 5)})
    assert [array.shape for array in found.values()] == [(1, 3, 8, 8), (1, 5)]
    with pytest.raises(DeployError, match=r"\[1, any, any, any\], which --size 8x8 does not fit or fill"):
        noise({"image": TensorSpec("float32", (None, None, None, None))}, "all", None, size=(8, 8))
    six = {"image": TensorSpec("float32", (None, None, None, 6))}
    assert noise(six, "six", 2, size=(8, 9))[0]["image"].shape == (2, 8, 9, 6)


@pytest.mark.parametrize(
    ("shape", "batch"),
    [((None, 3, 8, 8), True), ((4, 3, 8, 8), True), ((48, 64, 3), False), ((3, 8, 8), False), ((), False),
     ((7,), False), ((None,), True), ((1, 197, 768), True), ((None, 5), True), ((None, None, 3), False),
     ((None, 64, 3), True), ((48, None, 3), False), ((3, None, None), False), ((None, None, 8), True)],
)  # fmt: skip
def test_number_12_what_a_batch_is(shape, batch):
    assert has_batch(TensorSpec("float32", shape)) is batch


@pytest.mark.parametrize("shape", [(48, 64), (None, 64, 3), (None, None, 1), (48, 64, 4), (3, 48, 64)])
def test_number_12_bytes_are_pixels(shape):
    assert not has_batch(TensorSpec("uint8", shape))
    assert has_batch(TensorSpec("uint8", (None, *shape)))


def test_number_12_a_fixed_batch_is_taken_and_another_refused():
    inputs = {"image": TensorSpec("float32", (4, 3, 8, 8))}
    assert noise(inputs, "four", None)[1] == 4
    with pytest.raises(DeployError, match="not a batch of 2; give --batch 4"):
        noise(inputs, "four", 2)
    with pytest.raises(DeployError, match="too large to be timed"):
        noise({"image": TensorSpec("float32", (None, 3, 40_000, 40_000))}, "large", 1)


def test_number_12_each_engine_takes_its_own_inputs(tmp_path):
    paths = [network(tmp_path / f"{k}.onnx", f"in{k}", ["n", 4 + k]) for k in range(2)]
    with load_engine(paths[0]) as one, load_engine(paths[1]) as other:
        feeds = [{"in0": np.ones((2, 4), np.float32)}, {"in1": np.ones((2, 5), np.float32)}]
        records = deploy.benchmark([one, other], feeds, rounds=2, warmup=2, min_seconds=0)
        assert [record.batch for record in records] == [2, 2]
        with pytest.raises(DeployError, match="inputs for 1 engines and 2 to time"):
            deploy.benchmark([one, other], feeds[:1])


def test_number_12_without_a_batch_the_files_own_is_timed(tmp_path):
    fixed, free = (network(tmp_path / f"{name}.onnx", "rows", [n, 4]) for name, n in (("fixed", 3), ("free", "n")))
    code, found = bench(free, fixed)
    assert code == 0 and [record["batch"] for record in found["records"]] == [3, 3]
    code, found = bench(free, fixed, "--batch", "1")
    assert code != 0 and "give --batch 3" in found


def test_a_whole_shape_is_given_for_one_input_or_by_name(tmp_path):
    free = network(tmp_path / "free.onnx", "image", ["n", "c", "h", "w"])
    code, found = bench(free, "--shape", "4x3x20x24")
    assert code == 0 and found["records"][0]["batch"] == 4 and found["settings"]["shapes"] == {"": [4, 3, 20, 24]}
    scaled = network(tmp_path / "scaled.onnx", "image", ["n", 3, "h", 8], scalar=True)
    code, found = bench(scaled, "--shape", "image=2x3x5x8")
    assert code == 0 and found["records"][0]["batch"] == 2 and found["settings"]["shapes"] == {"image": [2, 3, 5, 8]}
    with load_engine(free) as engine:
        assert Feeding(shapes={"": (1, 2, 3, 4)}).feed(engine, free, None).feeds["image"].shape == (1, 2, 3, 4)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--shape", "2x3x5x8"], "say whose the shape is: --shape NAME=1x3x224x224"),
        (["--shape", "image=2x3x5x9"], "which --shape 2x3x5x9 does not fit"),
        (["--shape", "image=2x3x5"], "which --shape 2x3x5 does not fit"),
        (["--shape", "picture=2x3x5x8"], "--shape names the input 'picture'; the engines have factor, image"),
        (["--shape", "image=2x3x5x8", "--batch", 4], "leave --batch out"),
    ],
)
def test_a_shape_that_fits_no_input_is_a_sentence(given, said, tmp_path):
    code, found = bench(network(tmp_path / "scaled.onnx", "image", ["n", 3, "h", 8], scalar=True), *given)
    assert code != 0 and said in found.replace("\n", " ")


@pytest.mark.parametrize(
    "said", [["image=2x3x0x8"], ["image="], ["image=2x3x5x8"] * 2, ["2x3x5x99999999999999999999"], ["2x-3"], ["2x 3"]]
)
def test_what_is_no_shape_is_a_sentence(said):
    with pytest.raises(typer.BadParameter, match=r"is not a shape; give .* such as ids=1x128, once for each input"):
        shapes_of(said)


def test_a_gate_times_again_at_the_size_that_the_record_was_taken_at(tmp_path):
    free = network(tmp_path / "free.onnx", "image", ["n", 3, "h", "w"])
    twice = ["--name", f"a={free}", "--name", f"b={free}"]
    code, found = bench(*twice, "--size", "20x24", "--out", tmp_path / "now.json")
    assert code == 0 and [record["name"] for record in found["records"]] == ["a", "b"], "one file under two names"
    assert found["settings"]["size"] == [20, 24]
    found["records"][1] |= {"ratio_of_best": 1e-3, "best_interval": [1e-3, 1e-3]}
    (tmp_path / "past.json").write_text(json.dumps(found))
    done = CliRunner().invoke(
        app, ["gate", f"{tmp_path}/now.json", "--baseline", f"{tmp_path}/past.json", "--repeats", "1", "--json"]
    )
    assert done.exit_code == 1, done.output
    assert json.loads(done.stdout)["repeats"] == 1


@pytest.mark.parametrize(
    "settings", [{"size": "20x24"}, {"size": [20]}, {"size": [20, -1]}, {"size": [True, 2]}, {"shapes": [1]},
                 {"shapes": {"x": [1, 1 << 40]}}, {}],
)  # fmt: skip
def test_settings_that_are_no_sizes_are_left_out(settings):
    assert Feeding.from_settings(settings) == Feeding()


def test_the_least_time_and_number_of_runs_may_be_said(tmp_path):
    path = network(tmp_path / "a.onnx", "rows", ["n", 4])
    assert bench(path, "--seconds", 0)[1]["records"][0]["repeats"] == 25
    assert bench(path, "--seconds", 0.2)[1]["records"][0]["repeats"] > 200
