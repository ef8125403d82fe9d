"""The export stage's int8 files: the fastest for here, whole for a GPU, or held to an accuracy."""

from pathlib import Path

import onnx
import pytest
import torch
from torch import nn

from compress import data
from compress.data import ImageReader
from compress.recipe.loading import load_recipe
from compress.run.stages import export
from compress.run.workspace import Workspace
from compress.train import TASKS
from deploy.exporting.torch_to_onnx import export_onnx
from deploy.onnx.wire import scan
from deploy.processing import preprocess
from deploy.processing.preprocess import Preprocessing
from deploy.quantization.int8 import int8_from_fp32
from deploy.quantization.search import Int8Choice

pytestmark = pytest.mark.heavy

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    body = [nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.ReLU()]
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 10)).eval()


@pytest.fixture
def work(model, tmp_path, monkeypatch):
    """A run on digits of 16 px whose student is the small network."""

    def make(*sets):
        recipe = load_recipe(
            ROOT / "recipes/digits.yaml", ["preprocessing.size=[16, 16]", "deploy.calibration_images=10", *sets]
        )
        reader = ImageReader(preprocess.load, Preprocessing(**recipe.preprocessing.model_dump()))
        made = Workspace(recipe, tmp_path, reader, data.load(recipe.target, reader, recipe.seed), None)
        monkeypatch.setattr(Workspace, "load", lambda self, name: model)
        return made, export_onnx(model, made.example, tmp_path / "student.fp32.onnx")

    return make


def weights_in_fp32(path):
    return [t.name for t in onnx.load(path).graph.initializer if t.data_type == 1 and len(t.dims) == 4]


def choose(monkeypatch, *kinds, ratio=0.8):
    def fastest(src, dst, images, *, seed, held_out, **how):
        # Validation images, of which no range is taken.
        assert len(held_out) == 64 and set(how) == {"threads", "runtime", "tell"}
        int8_from_fp32(src, dst, images, seed=seed, keep_fp32=kinds)
        return Int8Choice(dst, kinds, ratio, {})

    monkeypatch.setattr(export, "fastest_int8", fastest)


def test_what_is_kept_for_this_processor_is_int8_for_the_gpu(work, monkeypatch):
    made, fp32 = work()
    choose(monkeypatch, "depthwise")
    monkeypatch.setattr(export, "int8_sums", lambda: "exact")
    path, notes = fp32.with_name("student.int8.onnx"), []
    assert export._int8(made, fp32, path, notes, str) == 0.8
    assert len(weights_in_fp32(path)) == 1
    assert weights_in_fp32(path.with_suffix(".trt.onnx")) == []
    assert notes[0] == "int8: depthwise kept in fp32, 0.80 of the time of fp32"
    assert not any("in fp32" in note for note in notes[1:])  # said once: it is so on purpose


def test_when_int8_is_no_faster_the_notes_say_so(work, monkeypatch):
    made, fp32 = work()
    choose(monkeypatch, ratio=1.25)
    monkeypatch.setattr(export, "int8_sums", lambda: "saturating")
    notes = []
    assert export._int8(made, fp32, fp32.with_name("student.int8.onnx"), notes, str) == 1.25
    assert "int8 is no faster than fp32 by onnxruntime here" in notes[1]
    assert notes[0].startswith("int8: sums saturate in 16 bits on this processor (no VNNI)")


@pytest.mark.parametrize("drop", [0.0, 0.02])
def test_an_accuracy_drop_holds_int8_to_the_validation_accuracy(drop, work, monkeypatch):
    made, fp32 = work(f"deploy.accuracy_drop={drop}")
    choose(monkeypatch, "first")
    asked = {}

    def controlled(src, dst, images, measure, *, max_drop, **options):
        from deploy.engines import load_engine

        with load_engine(src) as engine:
            asked.update(quality=measure(engine), max_drop=max_drop, keep=options["keep_fp32"], images=len(images))
        assert len(options["held_out"]) == 64
        return int8_from_fp32(src, dst, images, seed=options["seed"], keep_fp32=("first", "depthwise"))

    monkeypatch.setattr(export, "int8_with_accuracy_control", controlled)
    path = fp32.with_name("student.int8.onnx")
    export._int8(made, fp32, path, [], str)
    assert (asked["max_drop"], asked["keep"], asked["images"]) == (drop, ("first",), 10)
    split = made.target.splits["val"]
    with torch.no_grad():
        right = sum(
            int((made.load("student")(b.images).argmax(1) == torch.as_tensor(b.targets)).sum())
            for b in split.batches(64)
        )
    assert asked["quality"] == pytest.approx(right / len(split))
    assert TASKS["classification"].selects == "top1"
    # The signed file comes from the one that was held to the accuracy.
    assert len(weights_in_fp32(path)) == len(weights_in_fp32(path.with_suffix(".trt.onnx"))) == 2
    assert scan(path).properties["niwaki.kept_fp32"] == "first,depthwise"
