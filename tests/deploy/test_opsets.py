"""The operator set: one that every runtime named reads, written as asked, or one sentence."""

import importlib.util

import onnx
import pytest
import torch

from deploy.engines import ENGINES, load_engine
from deploy.errors import DeployError
from deploy.exporting.parity import parity
from deploy.exporting.torch_to_onnx import export_onnx
from deploy.onnx.opsets import DEFAULT, READS, opset_for

pytestmark = pytest.mark.heavy


def test_every_runtime_that_there_is_has_its_row():
    assert set(READS) == set(ENGINES)


@pytest.mark.parametrize(
    ("runtimes", "asked", "want"),
    [
        ((), None, DEFAULT),
        (("onnxruntime",), None, READS["onnxruntime"][1]),
        (("onnxruntime", "openvino", "tensorrt_rtx"), None, READS["tensorrt_rtx"][1]),
        (("tensorrt",), 20, 20),
        ((), 21, 21),
    ],
)
def test_the_highest_that_all_read_or_the_one_asked_for(runtimes, asked, want):
    assert opset_for(runtimes, asked) == want


@pytest.mark.parametrize(
    ("runtimes", "asked", "says"),
    [
        (("onnxruntime", "tensorrt"), 25, r"opset is 25, but tensorrt reads 9 to 24; leave it out"),
        (("onnxruntime",), 17, r"opset is 17, but the exporter writes 18 to"),
        (("onnxruntime",), 99, r"opset is 99, but"),
        (("tflite",), None, "There is no runtime 'tflite'"),
    ],
)
def test_what_somebody_cannot_read_is_one_sentence(runtimes, asked, says, cnn, images, tmp_path):
    with pytest.raises(DeployError, match=says):
        export_onnx(cnn, torch.from_numpy(images), tmp_path / "m.onnx", opset=asked, runtimes=runtimes)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino", "tensorrt_rtx"])
def test_what_the_table_says_is_read_is_read(runtime, cnn, images, tmp_path):
    if importlib.util.find_spec(runtime) is None:
        pytest.skip(f"{runtime} is not installed here")
    path = export_onnx(cnn, torch.from_numpy(images), tmp_path / "m.fp32.onnx", runtimes=[runtime])
    assert [one.version for one in onnx.load(path).opset_import if one.domain == ""] == [READS[runtime][1]]
    if runtime == "tensorrt_rtx":
        from deploy.engines.tensorrt.building import engine_from_onnx

        assert engine_from_onnx(path, tmp_path, target="sm86").stat().st_size
        return
    with load_engine(path, runtime=runtime) as engine:
        assert max(row["max_relative_error"] for row in parity(cnn, engine, torch.from_numpy(images))) < 1e-5


def test_onnx_runtime_refuses_the_next_one(cnn, images, tmp_path):
    model = onnx.load(export_onnx(cnn, torch.from_numpy(images), tmp_path / "m.onnx"))
    model.opset_import[0].version = READS["onnxruntime"][1] + 1
    onnx.save(model, tmp_path / "next.onnx")
    with pytest.raises(DeployError, match=r"ONNX Runtime .* does not read operator set"):
        load_engine(tmp_path / "next.onnx")
