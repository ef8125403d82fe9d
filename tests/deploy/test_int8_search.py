"""int8 that is worth having: what stays in fp32 and why, accuracy control, and the linter."""

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

import deploy.quantization.search
from deploy.engines import load_engine
from deploy.errors import DeployError
from deploy.exporting.torch_to_onnx import export_onnx
from deploy.onnx.wire import scan
from deploy.quantization.int8 import int8_from_fp32, int8_with_accuracy_control, operators
from deploy.quantization.lint import LintFinding, lint_qdq
from deploy.quantization.search import Int8Choice, fastest_int8

pytestmark = pytest.mark.heavy


@pytest.fixture(scope="module")
def depthwise(tmp_path_factory):
    torch.manual_seed(3)
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, padding=1, groups=16),
        nn.ReLU(),
        nn.Conv2d(16, 16, 1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 5),
    ).eval()
    path = tmp_path_factory.mktemp("depthwise") / "model.fp32.onnx"
    return export_onnx(model, torch.randn(2, 1, 16, 16), path)


def in_fp32(path):
    """The weights that are stored as floats of four dimensions: convolutions that are not quantised."""
    return [t.name for t in onnx.load(path).graph.initializer if t.data_type == 1 and len(t.dims) == 4]


def test_kinds_name_their_operators(depthwise, files):
    model = onnx.load(depthwise)
    (name,) = operators(model, "depthwise")
    (first,) = operators(model, "first")
    assert (name != first, operators(model, "sums")) == (True, [])
    assert len(operators(onnx.load(files["fp32"]), "sums")) == 2
    with pytest.raises(DeployError, match="no kind of operators 'big'; choose among depthwise, first, sums"):
        operators(model, "big")


def test_what_is_kept_stays_in_fp32_and_the_file_says_so(depthwise, images, tmp_path):
    plain = int8_from_fp32(depthwise, tmp_path / "a.onnx", list(images))
    kept = int8_from_fp32(depthwise, tmp_path / "b.onnx", list(images), keep_fp32=["depthwise"])
    assert (len(in_fp32(plain)), len(in_fp32(kept))) == (0, 1)
    assert "niwaki.kept_fp32" not in scan(plain).properties
    assert scan(kept).properties["niwaki.kept_fp32"] == "depthwise"


def test_the_choice_follows_the_times(depthwise, images, tmp_path, monkeypatch):
    cost = {(): 1.2, ("depthwise",): 0.8, ("first",): 1.1, ("depthwise", "first"): 0.79}
    asked = []

    def timed(engines, inputs, **_):
        sets = [tuple(scan(e.path).properties.get("niwaki.kept_fp32", "").split(",")) for e in engines[1:]]
        asked.append([tuple(k for k in kinds if k) for kinds in sets])
        return [None, *(type("Row", (), {"share": cost[kinds]}) for kinds in asked[-1])]

    monkeypatch.setattr(deploy.quantization.search, "benchmark", timed)
    told = []
    choice = fastest_int8(depthwise, tmp_path / "m.onnx", list(images), tell=told.append)
    assert told[:3] == [f"try with {kinds} in fp32" for kinds in ("nothing", "depthwise", "first")]
    assert told[-1] == "calibrate the fastest"
    # Keeping the first convolution too would bring one percent: not worth it.
    assert (choice.kept, choice.ratio, choice.tried) == (("depthwise",), 0.8, cost)
    assert str(choice) == "depthwise kept in fp32, 0.80 of the time of fp32"
    assert scan(choice.path).properties["niwaki.kept_fp32"] == "depthwise"
    assert "int8 is no faster than fp32 by onnxruntime here" in str(Int8Choice(choice.path, (), 1.3, {}))


def test_measured_for_real_the_choice_is_the_fastest_of_what_was_tried(depthwise, images, tmp_path):
    choice = fastest_int8(depthwise, tmp_path / "m.onnx", list(images), rounds=5)
    assert choice.ratio == choice.tried[choice.kept] <= min(choice.tried.values()) / 0.98
    with load_engine(choice.path) as engine:
        assert engine.precision == "int8"


@pytest.mark.slow
def test_accuracy_control_gives_layers_back_until_the_drop_is_small(files, images, tmp_path):
    with load_engine(files["fp32"]) as engine:
        wanted = engine.run({"image": images})["logits"]

    def closeness(engine):
        return 1 - float(np.abs(engine.run({"image": images})["logits"] - wanted).max() / np.abs(wanted).max())

    plain = int8_from_fp32(files["fp32"], tmp_path / "a.onnx", list(images))
    with load_engine(plain) as engine:
        drop = 1 - closeness(engine)
    options = {"max_drop": drop / 2}
    path = int8_with_accuracy_control(files["fp32"], tmp_path / "b.onnx", list(images), closeness, **options)
    with load_engine(path) as engine:
        assert (engine.precision, 1 - closeness(engine) <= drop / 2) == ("int8", True)
    assert len(in_fp32(path)) > len(in_fp32(plain)) == 0
    with pytest.raises(DeployError, match="max_drop is -1"):
        int8_with_accuracy_control(files["fp32"], tmp_path / "c.onnx", list(images), closeness, max_drop=-1)
    with pytest.raises(DeployError, match=r"quality of .* is 0\.0"):
        int8_with_accuracy_control(files["fp32"], tmp_path / "c.onnx", list(images), lambda engine: 0)


def test_the_linter_passes_what_we_write_and_names_what_is_kept(files, depthwise, images, tmp_path):
    assert [f for f in lint_qdq(files["int8"]) if "fused" not in f.what] == []
    kept = int8_from_fp32(depthwise, tmp_path / "b.onnx", list(images), keep_fp32=["depthwise"])
    islands = [f for f in lint_qdq(kept) if f.what.startswith("Conv in fp32")]
    assert islands and all(f.intended and f.why == "left so on purpose: depthwise" for f in islands)
    model = onnx.load(kept)
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "untold.onnx")
    untold = [f for f in lint_qdq(tmp_path / "untold.onnx") if f.what.startswith("Conv in fp32")]
    assert len(untold) == len(islands) and not any(f.intended for f in untold)
    with pytest.raises(DeployError, match="is not quantised"):
        lint_qdq(files["fp32"])


@pytest.mark.parametrize(
    ("value", "what"),
    [
        ({1: np.float32(0)}, "scale 0"),
        ({1: np.float32(np.nan)}, "scale nan"),
        ({2: np.uint8(3)}, "a zero-point that is neither 0 nor uint8's middle"),
    ],
)
def test_the_linter_sees_broken_parameters(value, what, files, tmp_path):
    model = onnx.load(files["int8"])
    node = next(n for n in model.graph.node if n.op_type == "QuantizeLinear")
    for index, array in value.items():
        tensor = next(t for t in model.graph.initializer if t.name == node.input[index])
        tensor.CopyFrom(numpy_helper.from_array(np.asarray(array), tensor.name))
    onnx.save(model, tmp_path / "m.onnx")
    found = lint_qdq(tmp_path / "m.onnx")
    assert what in {finding.what for finding in found}
    assert str(LintFinding("a", "b", "c")) == "b: a (c)"
