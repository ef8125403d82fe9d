"""Which file runs by which runtime on which machine: the rule as a table, then on real bundles."""

import json
import sys

import numpy as np
import pytest
import tensorrt_facts
from fake_tensorrt import FakeApi, FakeCuda

import deploy
from deploy.bundle.engines import ENGINES_FOLDER
from deploy.engines.selection import Candidate, Machine, detect_machine, rank
from deploy.engines.sidecar import sidecar_of
from deploy.errors import DeployError, MissingDependency
from deploy.onnx.file import quiet

FP32, INT8 = Candidate("model.fp32.onnx", "fp32"), Candidate("model.int8.onnx", "int8")
TRT = Candidate("engines/t.engine", "int8", "tensorrt", "10.16", "sm86")
RTX = Candidate("engines/r.engine", "fp32", "tensorrt_rtx", "1.7", "sm86")
STALE = Candidate("engines/s.engine", "int8", "tensorrt", "10.16", "sm86", fault="it is stale")
ORT = {"onnxruntime": "1.31"}
GPU = Machine({**ORT, "tensorrt": "10.16", "tensorrt_rtx": "1.7"}, "sm86")

TABLE = [
    # what is offered, the machine, what is asked -> the order, and what is passed over
    ("the base install", [FP32, INT8], Machine(ORT), {}, ["int8 onnxruntime"], []),
    ("a precision", [FP32, INT8], Machine(ORT), {"precision": "fp32"}, ["fp32 onnxruntime"], []),
    ("OpenVINO waits", [INT8], Machine({**ORT, "openvino": ""}), {}, ["int8 onnxruntime", "int8 openvino"], []),
    (
        "OpenVINO preferred",
        [INT8],
        Machine({**ORT, "openvino": ""}),
        {"cpu": "openvino"},
        ["int8 openvino", "int8 onnxruntime"],
        [],
    ),
    ("and not there", [INT8], Machine(ORT), {"cpu": "openvino"}, ["int8 onnxruntime"], ["package openvino cannot"]),
    ("OpenVINO alone", [INT8], Machine({"openvino": ""}), {}, ["int8 openvino"], ["package onnxruntime cannot"]),
    (
        "a CUDA provider",
        [FP32, INT8],
        Machine({**ORT, "onnxruntime_cuda": "1.31"}),
        {},
        ["int8 onnxruntime_cuda", "int8 onnxruntime"],
        [],
    ),
    ("an engine first", [INT8, TRT], GPU, {}, ["int8 tensorrt", "int8 onnxruntime"], []),
    ("the default's first", [INT8, RTX, TRT], GPU, {}, ["int8 tensorrt", "fp32 tensorrt_rtx", "int8 onnxruntime"], []),
    ("any before the CPU", [INT8, RTX], GPU, {}, ["fp32 tensorrt_rtx", "int8 onnxruntime"], []),
    ("but not another than asked", [INT8, RTX], GPU, {"precision": "int8"}, ["int8 onnxruntime"], ["fp32, not int8"]),
    ("another GPU", [INT8, TRT], Machine(GPU.runtimes, "sm89"), {}, ["int8 onnxruntime"], ["the GPU here is sm89"]),
    ("no GPU", [INT8, TRT], Machine(GPU.runtimes), {}, ["int8 onnxruntime"], ["no GPU can be used"]),
    ("no TensorRT", [INT8, TRT], Machine(ORT, "sm86"), {}, ["int8 onnxruntime"], ["package tensorrt cannot"]),
    (
        "another version",
        [INT8, TRT],
        Machine({**ORT, "tensorrt": "11.4"}, "sm86"),
        {},
        ["int8 onnxruntime"],
        ["built by tensorrt 10.16 and 11.4 is installed"],
    ),
    ("a stale engine", [INT8, STALE], GPU, {}, ["int8 onnxruntime"], ["it is stale"]),
    ("not even when asked", [INT8, STALE], GPU, {"runtime": "tensorrt"}, [], ["it is stale"]),
    # Asked for, it is left to the loader to say what is missing.
    ("an engine asked for", [INT8, TRT, RTX], Machine(ORT), {"runtime": "tensorrt"}, ["int8 tensorrt"], []),
    ("a runtime asked for", [FP32, INT8, TRT], GPU, {"runtime": "openvino"}, ["int8 openvino"], []),
    ("with a precision", [FP32, INT8], GPU, {"runtime": "openvino", "precision": "fp32"}, ["fp32 openvino"], []),
    ("no engine to be asked for", [INT8], GPU, {"runtime": "tensorrt_rtx"}, [], []),
    ("nothing at all", [INT8], Machine(), {}, [], ["package onnxruntime cannot"]),
]


@pytest.mark.parametrize(
    ("offers", "machine", "asked", "order", "passed"), [r[1:] for r in TABLE], ids=[r[0] for r in TABLE]
)
def test_the_order(offers, machine, asked, order, passed):
    for offered in (offers, offers[::-1]):
        ranking = rank(offered, machine, default="int8", **asked)
        assert [f"{choice.precision} {choice.runtime}" for choice in ranking.choices] == order
        assert len(ranking.skipped) == len(passed)
        for said, wanted in zip(ranking.skipped, passed, strict=True):
            assert wanted in said
        assert all(choice.reason for choice in ranking.choices)


@pytest.fixture
def api(monkeypatch):
    """A TensorRT 10.16 and an sm86 that seem to be installed here."""
    fake = FakeApi(tensorrt_facts.read()["tensorrt 10.16"])
    monkeypatch.setitem(sys.modules, "tensorrt", fake)
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", FakeCuda())
    monkeypatch.setattr("deploy.bundle.bundle._check_fit", lambda *_: None)  # the stand-in's network gives no classes
    monkeypatch.setattr("deploy.bundle.bundle.check_outputs", lambda *_: None)
    return fake


def test_an_engine_built_on_the_device_is_found_and_says_why(bundle_dir, images, api):
    built = deploy.build_engine(bundle_dir, precision="fp32", runtime="tensorrt", largest=4)
    assert built.parent == bundle_dir / ENGINES_FOLDER
    with deploy.load(bundle_dir) as bundle:
        assert (bundle.runtime, bundle.precision, bundle.path) == ("tensorrt", "fp32", built)
        assert bundle.why == f"engines/{built.name} by tensorrt, since it was built for the sm86 here"
        np.testing.assert_array_equal(bundle.run({"image": images[:4]})["doubled"], 2 * images[:4])
    with deploy.load(bundle_dir, precision="int8") as bundle:
        assert bundle.runtime == "onnxruntime"
        assert "(it is fp32, not int8)" in bundle.why
    with deploy.load(bundle_dir, runtime="onnxruntime") as bundle:
        assert bundle.why == "model.int8.onnx by onnxruntime, since ONNX Runtime on the CPU was asked for"


def test_more_images_than_an_engine_takes_go_through_it_in_parts(bundle_dir, picture, api, monkeypatch):
    deploy.build_engine(bundle_dir, precision="fp32", runtime="tensorrt", largest=2)
    with deploy.load(bundle_dir) as bundle:
        monkeypatch.setattr(bundle, "_top_classes", lambda row, top: {"sum": float(row.sum())})
        found = bundle.predict([picture] * 5)
    assert len({row["sum"] for row in found}) == 1
    assert len(found) == 5


def test_an_engine_of_other_models_is_passed_over_and_an_altered_one_is_refused(bundle_dir, api):
    built = deploy.build_engine(bundle_dir, precision="fp32", runtime="tensorrt")
    beside = sidecar_of(built)
    said = beside.read_text()
    beside.write_text(json.dumps(json.loads(said) | {"source_sha256": "0" * 64}))
    with deploy.load(bundle_dir) as bundle:
        assert bundle.runtime == "onnxruntime"
        assert "built from none of the bundle's models" in bundle.why
    with pytest.raises(DeployError, match=r"no engine for tensorrt .*none of the bundle's models.* `niwaki build"):
        deploy.load(bundle_dir, runtime="tensorrt")
    beside.write_text("{}")
    with deploy.load(bundle_dir) as bundle:
        assert "is not an engine's sidecar" in bundle.why
    with pytest.raises(DeployError, match=r"no engine for tensorrt_rtx .*is not an engine's sidecar"):
        deploy.load(bundle_dir, runtime="tensorrt_rtx")
    for profile in ([1, 1, 0], [8, 1, 1]):
        beside.write_text(json.dumps(json.loads(said) | {"profile": profile}))
        with deploy.load(bundle_dir) as bundle:
            assert "is not an engine's sidecar (profile" in bundle.why or "does not ascend" in bundle.why
    beside.write_text(said)
    built.write_bytes(built.read_bytes() + b"x")
    with pytest.raises(DeployError, match="copy it again, or build it again"):
        deploy.load(bundle_dir)


def test_a_provider_that_finds_no_gpu_gives_way_to_the_cpu(bundle_dir, monkeypatch):
    import onnxruntime

    both = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: both)
    if "CUDAExecutionProvider" in onnxruntime.capi._pybind_state.get_available_providers():
        pytest.skip("ONNX Runtime has a CUDA provider here")
    with quiet(), deploy.load(bundle_dir) as bundle:
        assert bundle.runtime == "onnxruntime"
        assert "passed over: onnxruntime_cuda (ONNX Runtime's CUDAExecutionProvider cannot start here" in bundle.why
    with pytest.raises(MissingDependency, match="cannot start here"), quiet():
        deploy.load(bundle_dir, runtime="onnxruntime_cuda")


def test_what_is_here_is_asked_of_the_packages(monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    machine = detect_machine([INT8, TRT])
    assert "onnxruntime" in machine.runtimes
    assert not {"openvino", "tensorrt"} & set(machine.runtimes)
    assert machine.gpu is None
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert detect_machine([INT8]) == Machine()


def test_nothing_that_runs_it_is_one_sentence(bundle_dir, monkeypatch):
    for name in ("onnxruntime", "openvino"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(
        MissingDependency, match=r"No runtime here runs .*; get one with `pip install onnxruntime`"
    ) as caught:
        deploy.load(bundle_dir)
    assert caught.value.exit_code == 3
