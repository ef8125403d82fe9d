"""One suite that every engine passes, and the registry."""

import importlib.util

import numpy as np
import pytest
import torch

from deploy.engines import ENGINES, Engine, load_engine
from deploy.engines.base import TensorSpec, precision_of
from deploy.errors import DeployError, MissingDependency

RUNTIMES = [
    pytest.param(
        name,
        marks=pytest.mark.skipif(importlib.util.find_spec(name) is None, reason=f"the package {name} is not installed"),
    )
    for name in ("onnxruntime", "openvino")
]


@pytest.fixture(params=RUNTIMES)
def runtime(request):
    return request.param


@pytest.fixture
def engine(runtime, files):
    with load_engine(files["fp32"], runtime=runtime) as loaded:
        yield loaded


def test_it_says_what_it_is(engine, runtime, files):
    assert isinstance(engine, Engine)
    assert (engine.name, engine.runtime, engine.precision) == ("model.fp32", runtime, "fp32")
    assert engine.path == files["fp32"]
    assert engine.inputs == {"image": TensorSpec("float32", (None, 1, 16, 16))}
    assert engine.outputs == {"logits": TensorSpec("float32", (None, 5))}


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8", "signed"])
def test_each_precision_loads_and_tells_its_precision(runtime, precision, files, images):
    with load_engine(files[precision], runtime=runtime) as engine:
        assert engine.precision == ("int8" if precision == "signed" else precision)
        value = engine.run({"image": images})["logits"]
    assert value.dtype == np.float32
    assert value.shape == (32, 5)


def test_it_computes_what_the_model_computes(engine, resnet, images):
    with torch.inference_mode():
        reference = resnet(torch.from_numpy(images)).numpy()
    np.testing.assert_allclose(engine.run({"image": images})["logits"], reference, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_any_batch_gives_the_rows_of_the_whole(engine, batch, images):
    whole = engine.run({"image": images})["logits"]
    np.testing.assert_allclose(engine.run({"image": images[:batch]})["logits"], whole[:batch], atol=1e-5)


def test_an_output_outlives_the_next_run(engine, images):
    first = engine.run({"image": images[:1]})["logits"]
    kept = first.copy()
    engine.run({"image": images[1:2]})
    np.testing.assert_array_equal(first, kept)


def test_the_feed_is_not_changed(engine, images):
    feed = images[:2].copy()
    engine.run({"image": feed})
    np.testing.assert_array_equal(feed, images[:2])


@pytest.mark.parametrize(
    ("feeds", "says"),
    [
        ({}, r"takes the inputs \['image'\] but was given \[\]"),
        ({"pixels": np.zeros((1, 1, 16, 16), np.float32)}, "pixels"),
        ({"image": np.zeros((1, 1, 16, 16), np.float64)}, "float64"),
        ({"image": np.zeros((1, 1, 16, 17), np.float32)}, r"\[1, 1, 16, 17\]"),
        ({"image": np.zeros((1, 16, 16), np.float32)}, r"\[1, 16, 16\]"),
        ({"image": [[0.0]]}, "is a list"),
    ],
)
def test_a_wrong_feed_is_one_sentence(engine, feeds, says):
    with pytest.raises(DeployError, match=says):
        engine.run(feeds)


def test_closed_means_closed(engine, images):
    engine.close()
    engine.close()
    with pytest.raises(DeployError, match="closed"):
        engine.run({"image": images})


@pytest.mark.parametrize(("content", "says"), [(None, "no ONNX file"), (b"", "cannot load"), (b"junk", "cannot load")])
def test_a_bad_file_is_one_sentence(runtime, content, says, tmp_path):
    path = tmp_path / "model.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DeployError, match=says) as caught:
        load_engine(path, runtime=runtime)
    assert "\n" not in str(caught.value)


def test_a_truncated_model_is_one_sentence(runtime, files, tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(files["fp32"].read_bytes()[:-500])
    with pytest.raises(DeployError, match="cannot load"):
        load_engine(path, runtime=runtime)


def test_negative_threads_are_refused(runtime, files):
    with pytest.raises(DeployError, match="threads is -1"):
        load_engine(files["fp32"], runtime=runtime, threads=-1)


def test_the_registry_chooses_by_ending_or_by_name(files, tmp_path):
    assert set(ENGINES) == {"onnxruntime", "openvino", "tensorrt", "tensorrt_rtx"}
    with load_engine(str(files["fp32"])) as engine:
        assert engine.runtime == "onnxruntime"
    with pytest.raises(DeployError, match="There is no runtime 'tflite'"):
        load_engine(files["fp32"], runtime="tflite")
    with pytest.raises(DeployError, match="does not say which runtime"):
        load_engine(tmp_path / "model.pt")


def test_a_missing_runtime_says_how_to_get_it(files, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "openvino", None)
    with pytest.raises(MissingDependency, match=r"pip install 'niwaki\[openvino\]'") as caught:
        load_engine(files["fp32"], runtime="openvino")
    assert caught.value.exit_code == 3


def test_precision_comes_from_metadata_then_from_the_name(tmp_path):
    assert precision_of(tmp_path / "model.fp32.onnx", {"niwaki.precision": "int8"}) == "int8"
    assert precision_of(tmp_path / "model.fp16.onnx", {}) == "fp16"
    assert precision_of(tmp_path / "model.onnx", {}) == "unknown"
