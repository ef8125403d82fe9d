"""What once ended in a traceback, or started another program, ends in a sentence."""

import json
import sys

import onnx
import pytest
from onnx import TensorProto, helper
from PIL import EpsImagePlugin, Image
from safetensors import SafetensorError
from torch import nn

from compress import artifact
from compress.cli import app
from compress.data import files as training
from compress.data.formats import coco, table, voc
from compress.data.formats.masks import load_mask
from compress.errors import ArtifactError, DataError, ImageError
from deploy.engines import load_engine
from deploy.errors import DeployError, MissingDependency
from deploy.processing import preprocess
from deploy.report import write_report
from deploy.report.plots import Point, accuracy_latency

RUNTIMES = ("onnxruntime", "openvino")


def test_no_image_starts_ghostscript_whatever_its_name(tmp_path, monkeypatch):
    assert training.FORMATS == preprocess.FORMATS
    path = tmp_path / "photo.png"
    Image.new("RGB", (8, 8)).save(path, format="EPS")
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_, **__: pytest.fail("Ghostscript was started"))
    with pytest.raises(DeployError, match="not an image of a format that is read"):
        preprocess.load(path)
    with pytest.raises(ImageError, match="missing or damaged"):
        load_mask(path)


def test_an_open_that_a_library_took_over_gives_a_sentence_too(tmp_path, monkeypatch):
    def other(*_, **__):
        raise ModuleNotFoundError("No module named 'pi_heif'")

    path = tmp_path / "a.png"
    path.write_bytes(b"no image")
    monkeypatch.setattr(Image, "open", other)
    with pytest.raises(DeployError, match="not an image of a format that is read"):
        preprocess.load(path)
    with pytest.raises(ImageError, match="missing or damaged"):
        load_mask(path)


@pytest.mark.parametrize("content", [b"qoif" + b"\0" * 12, b"DDS |" + b"\0" * 30, b"8BPS\0\1" + b"\xff" * 40])
def test_formats_that_are_not_read_are_a_sentence(content, tmp_path):
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(DeployError, match="not an image of a format that is read"):
        preprocess.load(tmp_path / "a.png")


def test_names_with_dollars_are_drawn_as_they_are():
    name = r"$\frac{$"
    drawing = accuracy_latency([Point("a", name, 1.0, 0.5)], width=4, height=3, salt="", metric=name)
    assert drawing.count(name) == 2


def test_half_of_a_surrogate_pair_is_a_sentence(tmp_path):
    (tmp_path / "ledger.json").write_text(json.dumps({"format": "niwaki-ledger-1", "name": "\ud800"}))
    with pytest.raises(DeployError, match=r"ledger\.json is not JSON .*surrogates"):
        write_report(tmp_path)


def test_labels_of_thousands_of_digits_are_sorted_as_numbers():
    long = "9" * 5000
    assert table._sorted({long, "10", "9", "010", "8" + long}) == ("9", "010", "10", long, "8" + long)


def test_a_nul_in_a_path_is_a_sentence(tmp_path):
    path = tmp_path / "a\0b"
    for read, error in (
        (coco._parsed, DataError),
        (voc._parsed, DataError),
        (voc._listed, DataError),
        (load_mask, ImageError),
        (preprocess.load, DeployError),
    ):
        with pytest.raises(error):
            read(path)


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("place", ["property", "input"])
def test_onnx_text_that_is_not_utf8_is_a_sentence(place, runtime, tmp_path):
    pytest.importorskip(runtime)
    made = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("abcd", "y")]
    graph = helper.make_graph([helper.make_node("Identity", ["abcd"], ["y"])], "g", [made[0]], [made[1]])
    model = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 18)])
    onnx.helper.set_model_props(model, {"key": "wxyz"})
    content = model.SerializeToString().replace(b"wxyz" if place == "property" else b"abcd", b"\xff\xfe\xfd\xfc")
    (tmp_path / "m.onnx").write_bytes(content)
    with pytest.raises(DeployError, match="not a valid ONNX file"):
        load_engine(tmp_path / "m.onnx", runtime=runtime)


def test_a_full_disk_leaves_no_half_a_network(tmp_path, monkeypatch):
    def full(*_):
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(artifact, "save_file", full)
    with pytest.raises(ArtifactError, match=r"cannot be written .*No space left.*; free some space"):
        artifact.save(nn.Linear(1, 1), tmp_path / "net", artifact.Description.model_construct())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "said",
    [
        "[enforce fail] DefaultCPUAllocator: can't allocate memory",
        "CUDA out of memory.",
        "could not create a primitive",
        "can't start new thread",
    ],
)
def test_no_memory_is_a_sentence_and_exit_3(said, monkeypatch, capsys):
    def allocate(**_):
        raise RuntimeError(said)

    monkeypatch.setattr(app, "app", allocate)
    monkeypatch.setattr(sys, "argv", ["niwaki", "inspect"])
    with pytest.raises(SystemExit) as ended:
        app.main()
    assert ended.value.code == 3
    assert "there is not enough memory" in capsys.readouterr().err


def test_no_memory_for_a_package_is_not_a_package_that_is_missing(monkeypatch, capsys):
    def load(**_):
        why = ImportError("libonnxruntime.so: failed to map segment from shared object")
        raise MissingDependency("The package onnxruntime cannot be imported here; get it.") from why

    monkeypatch.setattr(app, "app", load)
    monkeypatch.setattr(sys, "argv", ["niwaki", "inspect"])
    with pytest.raises(SystemExit) as ended:
        app.main()
    assert ended.value.code == 3
    assert "there is not enough memory" in capsys.readouterr().err
