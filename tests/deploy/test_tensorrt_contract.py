"""TensorRT 10 and 11 and TensorRT-RTX by their real names: built, run and refused, against the committed facts."""

import json
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import fake_tensorrt
import numpy as np
import pytest
import tensorrt_facts
from fake_tensorrt import FakeApi, FakeCuda

from deploy.bench.transfers import transfers_of
from deploy.engines.sidecar import sidecar_of
from deploy.engines.tensorrt.building import engine_from_onnx, import_api
from deploy.engines.tensorrt.engine import TensorRtEngine
from deploy.errors import DeployError, MissingDependency

pytestmark = pytest.mark.heavy

FACTS = tensorrt_facts.read()


@pytest.fixture(params=sorted(FACTS))
def api(request):
    return FakeApi(FACTS[request.param])


@pytest.fixture
def runtime(api):
    return "tensorrt_rtx" if hasattr(api, "ComputeCapability") else "tensorrt"


@pytest.fixture
def cuda():
    return FakeCuda()


@pytest.fixture
def built(api, runtime, cuda, files, tmp_path):
    return engine_from_onnx(files["fp32"], tmp_path, profile=(1, 2, 4), runtime=runtime, api=api, cuda=cuda)


def opened(path, api, cuda):
    return TensorRtEngine(path, api=api, cuda=cuda)


def test_the_facts_are_of_the_versions_that_are_promised():
    assert sorted(FACTS) == ["tensorrt 10.16", "tensorrt 11.4", "tensorrt_rtx"]
    ten, eleven, rtx = (FACTS[name]["classes"] for name in sorted(FACTS))
    assert "platform_has_fast_fp16" in ten["Builder"]
    assert "platform_has_fast_fp16" not in eleven["Builder"]
    assert "set_compute_capability" in rtx["IBuilderConfig"]
    assert rtx["IOptimizationProfile"]["set_shape"] == [["input", "min", "opt", "max"]]
    assert eleven["Builder"]["create_network"] == [["flags="]]


@pytest.mark.tensorrt
def test_the_facts_of_rtx_are_those_of_the_package():
    rtx = pytest.importorskip("tensorrt_rtx", reason="the package tensorrt_rtx is not installed")
    assert tensorrt_facts.facts(rtx) == FACTS["tensorrt_rtx"]


@pytest.mark.network
@pytest.mark.skipif(not (shutil.which("gcc") and shutil.which("uv")), reason="gcc or uv is not installed")
@pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="the facts are of the wheels for Python 3.11")
@pytest.mark.parametrize("version", ["10.16", "11.4"])
def test_the_facts_of_tensorrt_are_those_of_the_wheel(version, tmp_path):
    get = ["uv", "tool", "run", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    get += ["--python-version", "3.11", "--dest", str(tmp_path)]
    subprocess.run([*get, f"tensorrt_cu13_bindings=={version}.*"], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    assert tensorrt_facts.from_wheel(str(wheel)) == FACTS[f"tensorrt {version}"]


def test_the_stand_in_for_cuda_has_real_names():
    real = pytest.importorskip("cuda.bindings.runtime", reason="the package cuda-bindings is not installed")
    names = [name for name in vars(FakeCuda) if name.startswith("cuda")]
    assert len(names) == 11
    for name in names:
        kind = getattr(FakeCuda, name)
        members = [m.name for m in kind] if isinstance(kind, type) else []
        assert all(hasattr(getattr(real, name), member) for member in members)


def test_it_builds_for_the_gpu_here_and_runs(api, runtime, built, cuda):
    assert built.name.endswith(f".b1-2-4.{runtime}-{api.__version__}.sm86.engine")
    sidecar = json.loads(sidecar_of(built).read_text())
    assert (sidecar["target"], sidecar["flags"], sidecar["profile"]) == ("sm86", ["TF32"], [1, 2, 4])
    (shapes,) = api.state["profiles"]
    assert shapes["image"] == ((1, 1, 16, 16), (2, 1, 16, 16), (4, 1, 16, 16))
    chosen = {k: v.name for k, v in api.state["capabilities"].items()}
    assert chosen == ({0: "SM86"} if runtime == "tensorrt_rtx" else {})
    batch = np.random.default_rng(0).standard_normal((3, 1, 16, 16)).astype(np.float32)
    with opened(built, api, cuda) as engine:
        assert (engine.runtime, engine.precision) == (runtime, "fp32")
        assert str(engine.inputs["image"]) == "float32[any, 1, 16, 16]"
        np.testing.assert_array_equal(engine.run({"image": batch})["doubled"], 2 * batch)
        np.testing.assert_array_equal(engine.run({"image": batch[:1, :, ::-1]})["doubled"], 2 * batch[:1, :, ::-1])
        with pytest.raises(DeployError, match=r"takes batches of 1 to 4 in 'image' but was given 5"):
            engine.run({"image": np.zeros((5, 1, 16, 16), np.float32)})
        with pytest.raises(DeployError, match="was given NaN in input 'image'; feed finite numbers"):
            engine.run({"image": np.where(batch == batch[1, 0, 2, 3], np.nan, batch).astype(np.float32)})
        assert engine.layers() == [{"Name": "doubling", "LayerType": "x"}]
        assert engine.layer_times({"image": batch}, runs=3) == {"doubling": 0.25}
    with pytest.raises(DeployError, match="is closed"):
        engine.run({"image": batch})
    with pytest.raises(DeployError, match="is closed"):
        engine.layers()
    assert (cuda.blocks, cuda.streams) == ({}, set())


def test_copies_are_timed_apart_from_the_network(api, built, cuda, monkeypatch):
    # Three waits, each of which takes longer than the one before.
    passed = iter((0.001, 0.010, 0.100))
    now = [5.0]
    synchronize = cuda.cudaStreamSynchronize

    def wait(stream):
        now.append(now[-1] + next(passed, 0.0))
        return synchronize(stream)

    monkeypatch.setattr(cuda, "cudaStreamSynchronize", wait)
    monkeypatch.setattr("deploy.engines.tensorrt.engine.time", SimpleNamespace(perf_counter=lambda: now[-1]))
    batch = np.ones((2, 1, 16, 16), np.float32)
    with opened(built, api, cuda) as engine:
        assert engine.run_apart({"image": batch}) == pytest.approx((1.0, 10.0, 100.0))
        with pytest.raises(DeployError, match="but was given"):
            engine.run_apart({"image": batch[0]})
        found = transfers_of(engine, {"image": batch}, runs=3)
        assert (found.in_ms, found.network_ms, found.out_ms) == (0.0, 0.0, 0.0)
    with pytest.raises(DeployError, match="is closed"):
        engine.run_apart({"image": batch})


def test_threads_take_turns_and_memory_does_not_grow(api, built, cuda):
    rng = np.random.default_rng(1)
    batches = [rng.standard_normal((k % 4 + 1, 1, 16, 16)).astype(np.float32) for k in range(1000)]
    with opened(built, api, cuda) as engine, ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda batch: engine.run({"image": batch})["doubled"], batches))
        assert len(cuda.blocks) == 2
    assert cuda.allocations <= 8
    for batch, result in zip(batches, results, strict=True):
        np.testing.assert_array_equal(result, 2 * batch)


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ("load", "cannot load .*the engine is of another device.*build it again"),
        ("memory", "has no memory to run"),
        ("dtype", "of type BF16, which NumPy lacks"),
    ],
)
def test_what_the_runtime_refuses_is_one_sentence_and_frees_all(api, built, cuda, fault, says):
    api.broken.add(fault)
    with pytest.raises(DeployError, match=says) as caught:
        opened(built, api, cuda)
    assert "\n" not in str(caught.value)
    assert (cuda.blocks, cuda.streams) == ({}, set())


def test_a_failing_run_or_shape_is_an_error(api, built, cuda):
    feed = {"image": np.zeros((1, 1, 16, 16), np.float32)}
    with opened(built, api, cuda) as engine:
        api.broken.add("run")
        with pytest.raises(DeployError, match="could not run"):
            engine.run(feed)
        api.broken = {"shape"}
        with pytest.raises(DeployError, match=r"refuses \[1, 1, 16, 16\]"):
            engine.run(feed)
    with opened(built, api, FakeCuda(memory=100)) as engine:
        api.broken = set()
        with pytest.raises(DeployError, match=r"cudaMalloc failed .*cudaErrorMemoryAllocation"):
            engine.run(feed)


@pytest.mark.parametrize(
    ("fault", "says"), [("parse", "cannot read .*no such operator"), ("build", "refuses to build .*FP32 GEMM")]
)
def test_what_the_builder_refuses_leaves_no_file(api, runtime, cuda, files, tmp_path, fault, says):
    api.broken.add(fault)
    with pytest.raises(DeployError, match=says):
        engine_from_onnx(files["fp32"], tmp_path / "e", runtime=runtime, api=api, cuda=cuda)
    assert not (tmp_path / "e").exists()


def test_memory_and_the_timing_cache(api, runtime, cuda, files, tmp_path):
    cache = tmp_path / "timing.cache"
    options = {"runtime": runtime, "api": api, "cuda": cuda, "workspace_mib": 64, "timing_cache": cache}
    for _ in range(2):
        engine_from_onnx(files["fp32"], tmp_path, **options)
    assert api.state["limits"] == {"WORKSPACE": 64 << 20}
    if runtime == "tensorrt":  # what builds for a GPU that is not there has nothing to time
        assert cache.read_bytes() == b"++"
        api.broken.add("cache")
        with pytest.raises(DeployError, match=r"timing\.cache holds timings of another GPU"):
            engine_from_onnx(files["fp32"], tmp_path, **options)
    assert cache.exists() == (runtime == "tensorrt")
    with pytest.raises(DeployError, match="workspace_mib is 0"):
        engine_from_onnx(files["fp32"], tmp_path, **{**options, "workspace_mib": 0})


def test_tensorrt_builds_for_no_gpu_but_its_own(api, runtime, cuda, files, tmp_path):
    if runtime == "tensorrt":
        with pytest.raises(DeployError, match=r"builds only for the GPU of this machine, which is sm86, not 'sm89'"):
            engine_from_onnx(files["fp32"], tmp_path, target="sm89", runtime=runtime, api=api, cuda=cuda)
    else:
        path = engine_from_onnx(files["fp32"], tmp_path, target="sm89", api=api)
        with pytest.raises(DeployError, match="was built for sm89 and the GPU here is sm86; build it again"):
            opened(path, api, cuda)
        with pytest.raises(DeployError, match="cannot build for the sm90 here"):
            engine_from_onnx(files["fp32"], tmp_path, api=api, cuda=FakeCuda(capability=(9, 0)))


def test_without_a_gpu_or_a_runtime_it_is_one_sentence(api, runtime, built):
    with pytest.raises(MissingDependency, match=r"runs on an NVIDIA GPU .*cudaErrorNoDevice.*load the ONNX file"):
        opened(built, api, FakeCuda(devices=0))
    with pytest.raises(DeployError, match="There is no builder 'tvm'"):
        import_api("tvm")


def test_an_engine_of_another_version_is_refused(api, built, cuda):
    api.__version__ = "99.1"
    with pytest.raises(DeployError, match=r"was built by tensorrt.* and 99\.1 is installed; build it again"):
        opened(built, api, cuda)


def change(path, **values):
    beside = sidecar_of(path)
    beside.write_text(json.dumps(json.loads(beside.read_text()) | values))


def test_stale_altered_and_renamed_engines_are_refused(api, built, cuda, files, tmp_path):
    whole = built.read_bytes()
    built.write_bytes(whole[:-1])
    with pytest.raises(DeployError, match=rf"has {len(whole) - 1} bytes instead of {len(whole)}; copy it again"):
        opened(built, api, cuda)
    built.write_bytes(whole[:-1] + b"?")
    with pytest.raises(DeployError, match="content is not what its sidecar describes"):
        opened(built, api, cuda)
    built.write_bytes(whole)
    shutil.copy(files["fp16"], tmp_path / files["fp32"].name)
    with pytest.raises(DeployError, match=r"another version of model\.fp32\.onnx than lies beside it"):
        opened(built, api, cuda)
    shutil.copy(files["fp32"], tmp_path / files["fp32"].name)
    opened(built, api, cuda).close()
    other = built.rename(tmp_path / "other.engine")
    sidecar_of(built).rename(sidecar_of(other))
    with pytest.raises(DeployError, match="its sidecar describes model-"):
        opened(other, api, cuda)
    change(other, engine="other.engine", target="86")
    with pytest.raises(DeployError, match=r"is not an engine's sidecar .*target"):
        opened(other, api, cuda)
    sidecar_of(other).unlink()
    with pytest.raises(DeployError, match="has no sidecar"):
        opened(other, api, cuda)


def test_the_stand_in_refuses_what_no_version_has(api):
    builder = api.Builder(None)
    with pytest.raises(AttributeError, match="Builder has no build_cuda_engine"):
        builder.build_cuda_engine  # noqa: B018
    with pytest.raises(AssertionError, match="create_network takes"):
        builder.create_network(1, 2)
    assert fake_tensorrt.checked([["a", "b="]], "f", lambda *a, **k: 1)(1, b=2) == 1
