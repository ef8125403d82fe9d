"""Weights in a file beside the ONNX file: no hash covers them, so no bundle takes them."""

import hashlib
import json
import shutil

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import deploy
from deploy.bundle.manifest import MANIFEST
from deploy.engines import load_engine
from deploy.engines.onnxruntime import engine as onnxruntime_engine
from deploy.errors import DeployError
from deploy.onnx.wire import scan

RUNTIMES = ("onnxruntime", "openvino")


def outside(name, location, values):
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=values.shape)
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    return tensor


def as_constant(tensor):
    return [helper.make_node("Constant", [], ["w"], value=tensor)], []


def as_initializer(tensor):
    return [], [tensor]


def in_a_branch(tensor):
    yes = numpy_helper.from_array(np.asarray(True), "yes")
    tensor.name = "inner"
    branch = helper.make_graph(
        [helper.make_node("Identity", ["inner"], ["branch"])],
        "branch",
        [],
        [helper.make_tensor_value_info("branch", TensorProto.FLOAT, tensor.dims)],
        [tensor],
    )
    return [helper.make_node("If", ["yes"], ["w"], then_branch=branch, else_branch=branch)], [yes]


PLACES = [as_initializer, as_constant, in_a_branch]


def write_model(path, place, location="w.bin"):
    """A classifier of 16 x 16 grey images whose 5 rows of weights lie in ``location``."""
    weights = np.zeros((256, 5), np.float32)
    weights[:, 0] = 1
    (path.parent / "w.bin").write_bytes(weights.tobytes())
    before, constants = place(outside("w", location, weights))
    nodes = [
        *before,
        helper.make_node("Flatten", ["image"], ["flat"]),
        helper.make_node("MatMul", ["flat", "w"], ["y"]),
    ]
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 1, 16, 16])
    logits = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 5])
    graph = helper.make_graph(nodes, "g", [image], [logits], constants)
    path.write_bytes(
        helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 18)]).SerializeToString()
    )
    return path


def put_into(folder, model):
    """Put a model and its weights into a bundle in place of its int8 model, with the hash that it has."""
    target = folder / "model.int8.onnx"
    shutil.copyfile(model, target)
    shutil.copyfile(model.with_name("w.bin"), folder / "w.bin")
    said = json.loads((folder / MANIFEST).read_text())
    content = target.read_bytes()
    said["models"]["int8"] |= {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (folder / MANIFEST).write_text(json.dumps(said))


@pytest.mark.parametrize("place", PLACES)
def test_a_bundle_whose_weights_lie_in_another_file_is_neither_signed_nor_loaded(place, bundle_dir, keys):
    (keys / "made").mkdir()
    put_into(bundle_dir, write_model(keys / "made" / "m.onnx", place))
    for refuse in (
        lambda: deploy.sign(bundle_dir, keys / "mine.pem"),
        lambda: deploy.load(bundle_dir),
        lambda: deploy.load(bundle_dir, precision="fp32"),
        lambda: deploy.build_engine(bundle_dir),
    ):
        with pytest.raises(DeployError, match="in another file, which no hash covers; save it as one file"):
            refuse()


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_outside_a_bundle_weights_lie_beside_the_file_or_nowhere(runtime, tmp_path):
    pytest.importorskip(runtime)
    folder = tmp_path / "models"
    folder.mkdir()
    with load_engine(write_model(folder / "m.onnx", as_initializer), runtime=runtime) as engine:
        found = engine.run({"image": np.ones((1, 1, 16, 16), np.float32)})["y"]
        assert found.argmax() == 0 and found[0, 0] == 256
    shutil.copyfile(folder / "w.bin", tmp_path / "w.bin")
    (folder / "link.bin").symlink_to(tmp_path / "w.bin")
    for location in ("../w.bin", str(tmp_path / "w.bin"), "link.bin", "none.bin", ".", "w\0.bin", ""):
        path = write_model(folder / "bad.onnx", as_initializer, location)
        with pytest.raises(DeployError, match="which is not a file in its folder"):
            load_engine(path, runtime=runtime)


def test_a_record_counts_the_weights_that_lie_outside(tmp_path):
    path = write_model(tmp_path / "m.onnx", as_constant)
    with load_engine(path) as engine:
        (record,) = deploy.benchmark([engine], {"image": np.ones((1, 1, 16, 16), np.float32)}, rounds=2, min_seconds=0)
    assert record.file_bytes == path.stat().st_size + 4 * 256 * 5


def test_what_was_hashed_is_what_runs(bundle_dir, monkeypatch):
    """A file that is swapped after its check, before it is opened, is not what runs."""
    checked = onnxruntime_engine.read_model

    def swap(path, sha256):
        assert sha256 is not None
        found = checked(path, sha256)
        path.write_bytes(b"swapped")
        return found

    monkeypatch.setattr(onnxruntime_engine, "read_model", swap)
    with deploy.load(bundle_dir, runtime="onnxruntime") as bundle:
        assert bundle.run({next(iter(bundle.inputs)): np.ones((1, 1, 16, 16), np.float32)})


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_file_swapped_after_the_manifest_was_checked_is_refused(runtime, bundle_dir, monkeypatch):
    pytest.importorskip(runtime)
    from deploy.bundle import bundle

    checked = bundle.read_trusted

    def swap(folder, key):
        found = checked(folder, key)
        shutil.copyfile(folder / "model.fp32.onnx", folder / "model.int8.onnx")
        return found

    monkeypatch.setattr(bundle, "read_trusted", swap)
    with pytest.raises(DeployError, match=r"model\.int8\.onnx was altered"):
        deploy.load(bundle_dir, runtime=runtime)


def test_a_field_number_that_readers_understand_differently_is_refused(tmp_path):
    """Some readers drop the high bits of a key: to them this is field 5, to others an unknown one."""
    graph = bytes([0xAA, 0x80, 0x80, 0x80, 0x80, 0x01, 0x00])
    path = tmp_path / "m.onnx"
    path.write_bytes(bytes([0x3A, len(graph)]) + graph)
    with pytest.raises(DeployError, match="not a valid ONNX file"):
        scan(path)


def test_an_engine_in_another_file_counts_as_outside(tmp_path):
    node = helper.make_node("EPContext", ["image"], ["y"], domain="com.microsoft", embed_mode=0)
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, [1])
    path = tmp_path / "m.onnx"
    onnx.save(helper.make_model(helper.make_graph([node], "g", [image], [])), path)
    assert scan(path).outside == {"EPContext": "an engine"}
