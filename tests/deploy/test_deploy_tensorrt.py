"""TensorRT-RTX engines, built here for a GPU that is not here."""

import importlib.util
import json
import sys

import pytest

from deploy.engines import load_engine
from deploy.engines.tensorrt import engine_from_onnx, sidecar_of
from deploy.errors import DeployError, MissingDependency
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
    with pytest.raises(DeployError, match="executing on GPUs is not built yet"):
        load_engine(path)


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
    with pytest.raises(MissingDependency, match=r"uv sync --extra tensorrt-rtx.*niwaki\[tensorrt-rtx\]"):
        engine_from_onnx(files["fp32"], tmp_path / "e", target="sm86")


def test_a_missing_engine_is_one_sentence(tmp_path):
    with pytest.raises(DeployError, match="There is no engine at"):
        load_engine(tmp_path / "x.engine")
