"""One suite that every engine passes, and the registry."""

import gc
import importlib.util
import resource
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch

from deploy.engines import ENGINES, Engine, load_engine
from deploy.engines.base import TensorSpec, precision_of
from deploy.engines.torch import TorchEngine
from deploy.errors import DeployError, MissingDependency
from deploy.onnx.file import quiet

pytestmark = pytest.mark.heavy


def present(runtime):
    if runtime in ("onnxruntime_cuda", "onnxruntime_tensorrt"):
        kind = {"onnxruntime_cuda": "CUDAExecutionProvider", "onnxruntime_tensorrt": "TensorrtExecutionProvider"}
        return torch.cuda.is_available() and kind[runtime] in ort.get_available_providers()
    return importlib.util.find_spec(runtime) is not None


RUNTIMES = [
    pytest.param(
        name,
        marks=[
            *([pytest.mark.gpu] if name.startswith("onnxruntime_") else []),
            pytest.mark.skipif(not present(name), reason=f"{name} cannot run here"),
        ],
    )
    for name in ("onnxruntime", "openvino", "onnxruntime_cuda", "onnxruntime_tensorrt")
]
TORCH = [
    {"mode": "eager"},
    {"mode": "compiled"},
    *(
        pytest.param(
            {"mode": mode, "device": "cuda", "precision": precision},
            marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no NVIDIA GPU")],
        )
        for mode in ("eager", "compiled", "cuda_graphs")
        for precision in ("fp32", "fp16")
    ),
]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# ONNX Runtime says so itself; OpenVINO would try other formats, so it is asked before.
NO_MODEL = "cannot load|not a valid ONNX file"


@pytest.fixture(params=RUNTIMES)
def runtime(request):
    return request.param


@pytest.fixture
def onnx_engine(runtime, files):
    with load_engine(files["fp32"], runtime=runtime) as loaded:
        yield loaded


@pytest.fixture(
    scope="module",
    params=[*RUNTIMES, *TORCH],
    ids=lambda v: v if isinstance(v, str) else "torch-" + "-".join(v.values()),
)
def engine(request, files, resnet, images):
    if isinstance(request.param, str):
        opened = load_engine(files["fp32"], runtime=request.param)
    else:
        opened = TorchEngine(resnet, torch.from_numpy(images), **request.param)
    with opened as loaded:
        yield loaded


def test_it_says_what_it_is(onnx_engine, runtime, files):
    engine = onnx_engine
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
    tolerance = {"rtol": 1e-4, "atol": 1e-5} if engine.precision == "fp32" else {"rtol": 0.02, "atol": 0.02}
    np.testing.assert_allclose(engine.run({"image": images})["logits"], reference, **tolerance)


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_any_batch_gives_the_rows_of_the_whole(engine, batch, images):
    whole = engine.run({"image": images})["logits"]
    np.testing.assert_allclose(
        engine.run({"image": images[:batch]})["logits"],
        whole[:batch],
        atol=1e-5 if engine.precision == "fp32" else 0.02,
    )


def test_an_output_outlives_the_next_run(engine, images):
    first = engine.run({"image": images[:1]})["logits"]
    kept = first.copy()
    engine.run({"image": images[1:2]})
    np.testing.assert_array_equal(first, kept)


def test_the_feed_is_not_changed(engine, images):
    feed = images[:2].copy()
    engine.run({"image": feed})
    np.testing.assert_array_equal(feed, images[:2])


def test_shapes_and_types_are_stated_and_kept(engine, images):
    assert engine.inputs == {"image": TensorSpec("float32", (None, 1, 16, 16))}
    assert engine.outputs == {"logits": TensorSpec("float32", (None, 5))}
    assert engine.outputs["logits"].accepts(engine.run({"image": images[:3]})["logits"])


def test_threads_get_their_own_results(engine, images):
    wanted = [engine.run({"image": images[k : k + 1]})["logits"] for k in range(8)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda k: engine.run({"image": images[k % 8 : k % 8 + 1]})["logits"], range(64)))
    for k, value in enumerate(found):
        np.testing.assert_allclose(value, wanted[k % 8], atol=1e-5)


@pytest.mark.skipif(not Path("/proc/self/statm").is_file(), reason="memory is read from /proc")
def test_a_thousand_runs_leave_memory_as_it_was(engine, images):
    def resident():
        gc.collect()
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

    for k in range(100):
        engine.run({"image": images[: k % 4 + 1]})
    before = resident()
    for k in range(1000):
        engine.run({"image": images[: k % 4 + 1]})
    assert resident() - before < 8 << 20


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


@pytest.mark.parametrize(("value", "said"), [(np.nan, "NaN"), (np.inf, "infinity"), (-np.inf, "infinity")])
def test_what_is_no_number_is_refused_by_every_engine_alike(engine, value, said, images):
    feed = images[:2].copy()
    feed[1, 0, 7, 9] = value
    with pytest.raises(DeployError, match=rf"was given {said} in input 'image'; feed finite numbers\.$"):
        engine.run({"image": feed})
    assert np.isfinite(engine.run({"image": images[:2]})["logits"]).all()


@pytest.mark.parametrize("precision", ["fp16", "int8", "signed"])
def test_no_precision_makes_nan_finite(runtime, precision, files, images):
    feed = images[:1].copy()
    feed[0, 0, 0, 0] = np.nan
    with load_engine(files[precision], runtime=runtime) as engine, pytest.raises(DeployError, match="was given NaN"):
        engine.run({"image": feed})


@pytest.mark.parametrize("runtime", [*RUNTIMES, "torch"])
def test_closed_means_closed(runtime, files, resnet, images):
    torch_engine = runtime == "torch"
    engine = (
        TorchEngine(resnet, torch.from_numpy(images)) if torch_engine else load_engine(files["fp32"], runtime=runtime)
    )
    engine.close()
    engine.close()
    with pytest.raises(DeployError, match="closed"):
        engine.run({"image": images})


@pytest.mark.parametrize(("content", "says"), [(None, "no ONNX file"), (b"", NO_MODEL), (b"junk", NO_MODEL)])
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
    with pytest.raises(DeployError, match=NO_MODEL):
        load_engine(path, runtime=runtime)


def test_negative_threads_are_refused(runtime, files):
    with pytest.raises(DeployError, match="threads is -1"):
        load_engine(files["fp32"], runtime=runtime, threads=-1)


def test_the_registry_chooses_by_ending_or_by_name(files, tmp_path):
    assert sorted(ENGINES) == [
        "onnxruntime",
        "onnxruntime_cuda",
        "onnxruntime_tensorrt",
        "openvino",
        "tensorrt",
        "tensorrt_rtx",
    ]
    with load_engine(str(files["fp32"])) as engine:
        assert engine.runtime == "onnxruntime"
    with pytest.raises(DeployError, match="There is no runtime 'tflite'"):
        load_engine(files["fp32"], runtime="tflite")
    with pytest.raises(DeployError, match="does not say which runtime"):
        load_engine(tmp_path / "model.pt")


@pytest.mark.parametrize(
    ("package", "way_out"),
    [("openvino", r"pip install 'niwaki-vision\[openvino\]'"), ("onnxruntime", "pip install onnxruntime")],
)
def test_a_missing_runtime_says_how_to_get_it(package, way_out, files, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, package, None)
    with pytest.raises(MissingDependency, match=way_out) as caught:
        load_engine(files["fp32"], runtime=package)
    assert caught.value.exit_code == 3


def test_precision_comes_from_metadata_then_from_the_name(tmp_path):
    assert precision_of(tmp_path / "model.fp32.onnx", b"", {"niwaki.precision": "int8"}) == "int8"
    assert precision_of(tmp_path / "model.fp16.onnx", b"", {}) == "fp16"
    assert precision_of(tmp_path / "model.onnx", b"", {}) == "unknown"


@pytest.mark.parametrize("runtime", ["onnxruntime_cuda", "onnxruntime_tensorrt"])
def test_a_provider_that_is_not_there_is_never_the_cpu_in_disguise(runtime, files, monkeypatch):
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(MissingDependency, match=r"here has no .*onnxruntime-gpu"):
        load_engine(files["fp32"], runtime=runtime)
    provider = "CUDAExecutionProvider" if runtime == "onnxruntime_cuda" else "TensorrtExecutionProvider"
    monkeypatch.setattr(ort, "get_available_providers", lambda: [provider])
    if not torch.cuda.is_available():
        with pytest.raises(MissingDependency, match=f"{provider} cannot start here"), quiet():
            load_engine(files["fp32"], runtime=runtime)


def test_tensorrt_inside_onnx_runtime_gets_no_unsigned_file(files, monkeypatch):
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["TensorrtExecutionProvider"])
    with pytest.raises(DeployError, match="uint8 values"):
        load_engine(files["int8"], runtime="onnxruntime_tensorrt")


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_torch_computes_in_what_is_asked_and_leaves_the_module_alone(precision, cnn, images):
    example = torch.from_numpy(images)
    with TorchEngine(cnn, example, precision=precision) as engine, torch.inference_mode():
        value = engine.run({"image": images})["logits"]
        reference = cnn(example).numpy()
    assert value.dtype == np.float32
    assert 1e-5 < np.abs(value - reference).max() / np.abs(reference).max() < 0.05
    assert {p.dtype for p in cnn.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"mode": "fast"}, "mode is 'fast'"),
        ({"precision": "int4"}, "precision is 'int4'"),
        ({"mode": "cuda_graphs"}, "CUDA graphs need device='cuda', not 'cpu'"),
        ({"outputs": ("a", "b")}, "gives 1 tensors but 2 names"),
    ],
)
def test_what_torch_cannot_be_asked_is_one_sentence(options, says, cnn, images):
    with pytest.raises(DeployError, match=says):
        TorchEngine(cnn, torch.from_numpy(images), **options)


def test_torch_without_a_gpu_says_so(cnn, images, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(MissingDependency, match="finds no NVIDIA GPU") as caught:
        TorchEngine(cnn, torch.from_numpy(images), device="cuda")
    assert caught.value.exit_code == 3
