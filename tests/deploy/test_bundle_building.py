"""Engines from a bundle's own ONNX files, by TensorRT alone."""

import importlib.util
import json
import subprocess
import sys

import pytest
import tensorrt_facts
from fake_tensorrt import FakeApi, FakeCuda

import deploy
from deploy.bundle.writing import BundleSpec, write_bundle
from deploy.engines.sidecar import verify_engine
from deploy.errors import DeployError, MissingDependency
from deploy.files import sha256

pytestmark = pytest.mark.heavy

RTX = importlib.util.find_spec("tensorrt_rtx") is not None
FACTS = tensorrt_facts.read()
NONE = "import sys; sys.modules.update({name: None for name in %r}); from compress.cli.app import main; main()"
TRAINING = ("torch", "torchvision", "onnx", "onnxconverter_common", "nncf", "yaml")


@pytest.fixture
def signed_dir(bundle_dir, files, preprocessing):
    """The bundle with the int8 file that TensorRT reads right."""
    return write_bundle(
        bundle_dir,
        BundleSpec(
            models={key: files[key] for key in ("fp32", "fp16", "int8")},
            tensorrt={"int8": files["signed"]},
            default="int8",
            preprocessing=preprocessing,
            classes=tuple("abcde"),
        ),
    )


def niwaki(without, *arguments):
    command = [sys.executable, "-c", NONE % (tuple(without),), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.tensorrt
@pytest.mark.skipif(not RTX, reason="the package tensorrt_rtx is not installed")
def test_the_command_builds_ahead_of_time_where_torch_and_onnx_are_missing(signed_dir):
    for precision in ("fp16", None):
        asked = ["--precision", precision] if precision else []
        done = niwaki(TRAINING, "build", signed_dir, "--target", "sm86", *asked, "--json")
        assert (done.returncode, done.stderr) == (0, "")
        made = json.loads(done.stdout)
        sidecar = verify_engine(signed_dir / "engines" / made["engine"])
        assert (sidecar.precision, sidecar.target, sidecar.profile) == (precision or "int8", "sm86", (1, 1, 8))
        file = f"model.{precision}.onnx" if precision else "model.int8.trt.onnx"
        assert (sidecar.source, sidecar.source_sha256) == (file, sha256(signed_dir / file))
    with deploy.load(signed_dir) as bundle:
        found = bundle.why.count("engines/model-")
        assert (bundle.runtime == "tensorrt_rtx") or found == 2, bundle.why
    done = niwaki(TRAINING, "doctor", signed_dir, "--json")
    assert len(json.loads(done.stdout)["engines"]) == 2


def test_without_a_builder_it_is_one_sentence_and_exit_3(bundle_dir):
    done = niwaki((*TRAINING, "tensorrt", "tensorrt_rtx"), "build", bundle_dir)
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr.count("\n") == 1
    assert "pip install 'niwaki-vision[tensorrt-rtx]'" in done.stderr
    assert not (bundle_dir / "engines").exists()


def test_without_a_gpu_it_asks_for_a_target(bundle_dir, monkeypatch):
    pytest.importorskip("tensorrt_rtx", reason="the package tensorrt_rtx is not installed")

    def none(_):
        raise MissingDependency("no GPU")

    monkeypatch.setattr("deploy.engines.tensorrt.building.Cuda", none)
    with pytest.raises(MissingDependency, match=r"no GPU here to build for; name a target of .*sm86"):
        deploy.build_engine(bundle_dir, runtime="tensorrt_rtx", precision="fp32")


@pytest.mark.parametrize("name", sorted(FACTS))
def test_uint8_never_reaches_tensorrt(name, bundle_dir, signed_dir, files, preprocessing, tmp_path):
    options = {
        "runtime": "tensorrt_rtx" if "rtx" in name else "tensorrt",
        "api": FakeApi(FACTS[name]),
        "cuda": FakeCuda(),
    }
    built = deploy.build_engine(signed_dir, **options)
    assert verify_engine(built).source == "model.int8.trt.onnx"
    plain = write_bundle(
        tmp_path / "plain",
        BundleSpec(models={"int8": files["int8"]}, default="int8", preprocessing=preprocessing, classes=tuple("abcde")),
    )
    with pytest.raises(DeployError, match="uint8 values"):
        deploy.build_engine(plain, **options)


def test_the_builder_is_the_one_that_is_there(bundle_dir, monkeypatch, tmp_path):
    ten, rtx = FakeApi(FACTS["tensorrt 10.16"]), FakeApi(FACTS["tensorrt_rtx"])
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", FakeCuda())
    monkeypatch.setitem(sys.modules, "tensorrt", ten)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", rtx)

    def runtime(**asked):
        return verify_engine(deploy.build_engine(bundle_dir, precision="fp32", out=tmp_path, **asked)).runtime

    assert [runtime(), runtime(target="sm89"), runtime(runtime="tensorrt_rtx")] == ["tensorrt", *["tensorrt_rtx"] * 2]
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    assert runtime() == "tensorrt_rtx"
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    with pytest.raises(MissingDependency, match="neither can be imported here"):
        runtime()


def test_what_cannot_be_asked_is_one_sentence(bundle_dir):
    with pytest.raises(DeployError, match="no fp16 model; it has fp32, int8"):
        deploy.build_engine(bundle_dir, precision="fp16")
    with pytest.raises(DeployError, match="largest batch is 0"):
        deploy.build_engine(bundle_dir, largest=0)
    with pytest.raises(DeployError, match="There is no builder 'tvm'"):
        deploy.build_engine(bundle_dir, precision="fp32", runtime="tvm")


def test_nothing_is_built_through_a_link_out_of_the_bundle(signed_dir, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (signed_dir / "engines").symlink_to(elsewhere)
    options = {"runtime": "tensorrt", "api": FakeApi(FACTS["tensorrt 10.16"]), "cuda": FakeCuda()}
    for refuse in (lambda: deploy.build_engine(signed_dir, **options), lambda: deploy.load(signed_dir)):
        with pytest.raises(DeployError, match="is a link out of the bundle; remove it, or build elsewhere with --out"):
            refuse()
    assert not list(elsewhere.iterdir())
    built = deploy.build_engine(signed_dir, out=elsewhere, **options)
    assert verify_engine(built).source == "model.int8.trt.onnx"
