"""TensorRT-RTX engines, built here for a GPU that is not here."""

import importlib.util
import json
import sys

import pytest
import torch

from deploy.engines import load_engine
from deploy.engines.sidecar import sidecar_of, verify_engine
from deploy.engines.tensorrt.building import engine_from_onnx
from deploy.errors import DeployError, MissingDependency
from deploy.exporting.parity import parity
from deploy.files import sha256

HERE = importlib.util.find_spec("tensorrt_rtx") is not None
needs_rtx = [
    pytest.mark.tensorrt,
    pytest.mark.skipif(not HERE, reason="the package tensorrt_rtx is not installed"),
]


def rtx(*values):
    return pytest.param(*values, marks=needs_rtx)


@pytest.mark.parametrize(("file", "precision"), [rtx("fp32", "fp32"), rtx("fp16", "fp16"), rtx("signed", "int8")])
def test_an_engine_for_sm86_with_its_sidecar(file, precision, files, tmp_path, capfd):
    import tensorrt_rtx

    path = engine_from_onnx(files[file], tmp_path / "e", target="sm86", precision=precision, profile=(1, 2, 4))
    source = sha256(files[file])
    version = tensorrt_rtx.__version__
    assert path.name == f"model-{source[:12]}.{precision}.b1-2-4.tensorrt_rtx-{version}.sm86.engine"
    sidecar = json.loads(sidecar_of(path).read_text())
    assert sidecar["build_seconds"] > 0
    assert isinstance(sidecar["flags"], list)
    assert {key: sidecar[key] for key in sidecar if key not in ("build_seconds", "flags")} == {
        "format": "niwaki-engine-1",
        "engine": path.name,
        "engine_sha256": sha256(path),
        "bytes": path.stat().st_size,
        "source": files[file].name,
        "source_sha256": source,
        "precision": precision,
        "profile": [1, 2, 4],
        "runtime": "tensorrt_rtx",
        "version": version,
        "target": "sm86",
    }
    assert len(list(path.parent.iterdir())) == 2
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("target", [rtx(name) for name in ("sm75", "sm80", "sm86", "sm89", "sm120")])
def test_an_fp16_engine_for_every_generation_is_what_its_header_says(target, files, tmp_path):
    path = engine_from_onnx(files["fp16"], tmp_path, target=target)
    assert verify_engine(path).target == target
    other = "sm80" if target != "sm80" else "sm86"
    edit(path, target=other)
    with pytest.raises(DeployError, match=f"its header does not name {other}, which its sidecar does"):
        verify_engine(path)


@pytest.mark.parametrize("how", [rtx("cut"), rtx("version")])
def test_the_header_is_believed_over_a_sidecar_that_was_made_to_fit(how, files, tmp_path):
    path = engine_from_onnx(files["fp16"], tmp_path, target="sm86")
    if how == "cut":
        path.write_bytes(path.read_bytes()[:-100])
        edit(path, bytes=path.stat().st_size, engine_sha256=sha256(path))
        says = "its header says that it was longer; copy it again"
    else:
        edit(path, version="1.2.3.4")
        says = r"its header says version .* and its sidecar 1\.2\.3\.4"
    with pytest.raises(DeployError, match=says):
        verify_engine(path)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("file", [rtx("fp16")])
def test_without_a_gpu_loading_is_one_sentence(file, files, tmp_path):
    path = engine_from_onnx(files[file], tmp_path, target="sm86")
    with pytest.raises(MissingDependency, match="runs on an NVIDIA GPU and there is none") as caught:
        load_engine(path)
    assert caught.value.exit_code == 3


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no NVIDIA GPU")
@pytest.mark.parametrize("file", [rtx("fp32"), rtx("fp16"), rtx("signed")])
def test_on_a_gpu_it_computes_what_the_model_computes(file, files, resnet, images, tmp_path):
    path = engine_from_onnx(files[file], tmp_path, profile=(1, 8, 32))
    with load_engine(path) as engine:
        assert min(row["snr_db"] for row in parity(resnet, engine, torch.from_numpy(images), (1, 5, 32))) > 20
        assert engine.layers()
        assert sum(engine.layer_times({"image": images[:8]}).values()) > 0


def edit(path, **values):
    beside = sidecar_of(path)
    beside.write_text(json.dumps(json.loads(beside.read_text()) | values))


@pytest.mark.parametrize("target", [rtx("sm90"), rtx("SM86"), rtx("86"), rtx("current")])
def test_an_unknown_target_names_those_that_are_known(target, files, tmp_path):
    with pytest.raises(DeployError, match=r"choose one of .*sm86"):
        engine_from_onnx(files["fp32"], tmp_path / "e", target=target)


@pytest.mark.parametrize("target", [rtx("sm75")])
def test_what_the_builder_refuses_is_one_sentence_and_no_file(target, files, tmp_path):
    with pytest.raises(DeployError, match=r"refuses to build .* for sm75 .*FP32 GEMM"):
        engine_from_onnx(files["fp32"], tmp_path / "e", target=target)
    assert not (tmp_path / "e").exists()


def test_a_batch_fixed_in_the_file_is_refused(files, tmp_path):
    pytest.importorskip("tensorrt_rtx", reason="the package tensorrt_rtx is not installed")
    import onnx

    model = onnx.load(files["fp32"])
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 3
    onnx.save(model, tmp_path / "fixed.onnx")
    with pytest.raises(DeployError, match="fixes the batch at 3"):
        engine_from_onnx(tmp_path / "fixed.onnx", tmp_path / "e", target="sm86")


def test_unsigned_files_are_refused_before_any_build(files, tmp_path):
    with pytest.raises(DeployError, match="uint8 values"):
        engine_from_onnx(files["int8"], tmp_path / "e", target="sm86")
    assert not (tmp_path / "e").exists()


def test_a_wrong_precision_or_profile_is_refused(files, tmp_path):
    with pytest.raises(DeployError, match="is fp32, not fp16"):
        engine_from_onnx(files["fp32"], tmp_path / "e", target="sm86", precision="fp16")
    for profile in ((0, 1, 2), (2, 1, 4), (1, 8, 4)):
        with pytest.raises(DeployError, match="The profile is"):
            engine_from_onnx(files["fp32"], tmp_path / "e", target="sm86", profile=profile)


def test_without_the_package_the_error_says_how_to_get_it(files, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    with pytest.raises(MissingDependency, match=r"uv sync --extra tensorrt-rtx.*niwaki-vision\[tensorrt-rtx\]"):
        engine_from_onnx(files["fp32"], tmp_path / "e", target="sm86")


def test_a_missing_engine_is_one_sentence(tmp_path):
    with pytest.raises(DeployError, match="There is no engine at"):
        load_engine(tmp_path / "x.engine")
