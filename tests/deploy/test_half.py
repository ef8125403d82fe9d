"""Half precision: what overflows or vanishes in fp16 is found by calibration and stays in fp32; bf16 for RTX."""

import importlib.util
import subprocess
import sys

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from torch import nn

from deploy.engines import load_engine
from deploy.engines.tensorrt.building import engine_from_onnx
from deploy.errors import DeployError
from deploy.exporting.torch_to_onnx import export_onnx
from deploy.onnx.wire import scan
from deploy.quantization.calibration import Calibrated
from deploy.quantization.half import bf16_from_fp32, fp16_from_fp32
from deploy.quantization.ranges import overflowing_nodes, tensor_ranges

pytestmark = pytest.mark.heavy

RTX = [
    pytest.mark.tensorrt,
    pytest.mark.skipif(importlib.util.find_spec("tensorrt_rtx") is None, reason="tensorrt_rtx is not installed"),
]


class Steep(nn.Module):
    """Climbs to some 300,000 and comes down again; the weights of the way down lie among fp16's subnormal numbers."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.up = nn.Conv2d(1, 8, 3, padding=1)
        self.top = nn.Conv2d(8, 8, 3, padding=1)
        self.down = nn.Conv2d(8, 8, 3, padding=1)
        self.flat = nn.Conv2d(8, 8, 1)
        self.head = nn.Linear(8, 5)
        with torch.no_grad():
            self.up.weight.mul_(1e3)
            self.top.weight.mul_(1e3)
            self.down.weight.mul_(1e-6)

    def forward(self, x):
        x = torch.relu(self.up(x))
        x = torch.relu(self.top(x)) + 1.0
        x = torch.relu(self.down(x))
        return self.head(self.flat(x).mean((2, 3)))


@pytest.fixture(scope="module")
def steep(tmp_path_factory, images):
    path = tmp_path_factory.mktemp("steep") / "model.fp32.onnx"
    return export_onnx(Steep().eval(), torch.from_numpy(images[:2]), path)


def decibels(path, images, reference, runtime="onnxruntime"):
    with load_engine(path, runtime=runtime) as engine:
        value = engine.run({"image": images})["logits"]
    return 10 * np.log10((reference**2).sum() / ((value - reference) ** 2).sum())


def answers(path, images):
    with load_engine(path) as engine:
        return engine.run({"image": images})["logits"]


def kinds(path):
    """The names of the convolutions whose weights are fp32."""
    model = onnx.load(path)
    types = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    return [n.input[1] for n in model.graph.node if n.op_type == "Conv" and types[n.input[1]] == TensorProto.FLOAT]


def test_what_overflows_or_vanishes_stays_in_fp32_and_the_file_says_so(steep, images, tmp_path):
    full = fp16_from_fp32(steep, tmp_path / "full.fp16.onnx")
    mixed = fp16_from_fp32(steep, tmp_path / "mixed.fp16.onnx", list(images))
    reference = answers(steep, images)
    # The reference evaluator computes in fp16 what the file says is fp16; CPU runtimes compute in fp32 in secret.
    with np.errstate(all="ignore"):
        (lost,) = ReferenceEvaluator(onnx.load(full)).run(None, {"image": images})
    assert not np.isfinite(lost).all()
    (exact,) = ReferenceEvaluator(onnx.load(mixed)).run(None, {"image": images})
    assert 10 * np.log10((reference**2).sum() / ((exact - reference) ** 2).sum()) > 50
    assert kinds(full) == []
    assert kinds(mixed) == ["top.weight", "down.weight"]
    assert scan(mixed).properties["niwaki.precision"] == "fp16"
    assert scan(mixed).properties["niwaki.kept_fp32"].split(",")[::2] == ["node_conv2d_1", "node_add"]
    assert "niwaki.kept_fp32" not in scan(full).properties


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_the_mixed_file_runs_and_is_closer_than_the_whole_one(runtime, steep, images, tmp_path):
    pytest.importorskip(runtime, reason=f"{runtime} is not installed")
    full = fp16_from_fp32(steep, tmp_path / "full.fp16.onnx")
    mixed = fp16_from_fp32(steep, tmp_path / "mixed.fp16.onnx", list(images))
    reference = answers(steep, images)
    assert decibels(full, images, reference, runtime) < 40 < 60 < decibels(mixed, images, reference, runtime)


@pytest.mark.parametrize("target", [pytest.param(name, marks=RTX) for name in ("sm75", "sm86", "sm120")])
def test_the_mixed_file_builds(target, steep, images, tmp_path):
    mixed = fp16_from_fp32(steep, tmp_path / "mixed.fp16.onnx", list(images))
    assert ".fp16." in engine_from_onnx(mixed, tmp_path / "e", target=target).name


def test_what_fits_becomes_fp16_whole(files, images, tmp_path):
    path = fp16_from_fp32(files["fp32"], tmp_path / "a.fp16.onnx", list(images))
    assert "niwaki.kept_fp32" not in scan(path).properties
    assert kinds(path) == []


def little(path, nodes, weights, opset=18, shape=("n", 4), more=()):
    """image (n, 4), or ``shape``, -> logits, and ``more``, by these nodes and float weights."""
    value = helper.make_tensor_value_info
    tensors = [numpy_helper.from_array(np.asarray(array, np.float32), name) for name, array in weights.items()]
    outputs = [value(name, TensorProto.FLOAT, ["n", *[None] * (len(shape) - 1)]) for name in ("logits", *more)]
    made = [helper.make_node(*node[:3], **dict(*node[3:])) for node in nodes]
    graph = helper.make_graph(made, "g", [value("image", TensorProto.FLOAT, shape)], outputs, tensors)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10), path)
    return path


@pytest.mark.parametrize(
    ("kind", "weight", "kept"),
    [
        ("Mul", [1.0, 2.0, 3.0, 4.0], 0),
        ("Mul", [1e-7] * 4, 2),  # rounds to 1.2e-7, and so does what it gives
        ("Mul", [1e-9] * 4, 2),  # vanishes
        ("Mul", [1e5] * 4, 2),  # a weight that overflows, and the sum that reads what it gives
        ("Mul", [4e4] * 4, 2),  # the weight fits, what it gives does not
        ("Add", [1e-9] * 4, 0),  # what is added and vanishes does not matter
        ("Add", [7e4] * 4, 2),
        ("Add", [4e4] * 4, 2),  # fits, but other images may peak higher
    ],
)
def test_each_reason_to_stay_in_fp32(kind, weight, kept, tmp_path):
    nodes = [(kind, ["image", "w"], ["x"]), ("Div", ["x", "two"], ["logits"])]
    path = little(tmp_path / "m.fp32.onnx", nodes, {"w": weight, "two": [2.0] * 4})
    rows = [np.full((1, 4), value, np.float32) for value in (-2.0, 2.0)]
    source = Calibrated.read(path, rows, 0, "fp16")
    for k, node in enumerate(source.model.graph.node):
        node.name = f"n{k}"
    found = tensor_ranges(source.model, source.feeds)
    assert len([n for n in overflowing_nodes(source.model, found) if n in ("n0", "n1")]) == kept
    mixed = fp16_from_fp32(path, tmp_path / "m.fp16.onnx", rows)
    feed = np.full((1, 4), 1.5, np.float32)
    (value,) = ReferenceEvaluator(onnx.load(mixed)).run(None, {"image": feed})
    np.testing.assert_allclose(value, answers(path, feed), rtol=2e-3)
    assert value.dtype == np.float32
    onnx.checker.check_model(onnx.load(mixed), full_check=True)


def test_a_weight_that_is_shared_is_fp32_where_it_has_to_be(tmp_path):
    """The first product climbs over what fp16 holds, the last does not; both read the same weight."""
    nodes = [("Mul", ["image", "w"], ["a"]), ("Mul", ["a", "w"], ["b"])]
    nodes += [("Mul", ["b", "tiny"], ["c"]), ("Mul", ["c", "w"], ["logits"])]
    path = little(tmp_path / "m.fp32.onnx", nodes, {"w": [300.0] * 4, "tiny": [1e-3] * 4})
    rows = [np.full((1, 4), 1.0, np.float32)]
    mixed = fp16_from_fp32(path, tmp_path / "m.fp16.onnx", rows)
    types = {tensor.name: tensor.data_type for tensor in onnx.load(mixed).graph.initializer}
    assert (types["w"], types["w.fp32"]) == (TensorProto.FLOAT16, TensorProto.FLOAT)
    np.testing.assert_allclose(answers(mixed, rows[0]), answers(path, rows[0]), rtol=2e-3)


def test_what_overflows_and_is_read_twice_never_passes_through_fp16(tmp_path):
    nodes = [("Mul", ["image", "w"], ["a"]), ("Mul", ["a", "tiny"], ["b"]), ("Mul", ["a", "small"], ["c"])]
    path = little(
        tmp_path / "m.fp32.onnx",
        [*nodes, ("Add", ["b", "c"], ["logits"])],
        {"w": [1e3] * 4, "tiny": [1e-3] * 4, "small": [2e-3] * 4},
    )
    rows = [np.full((1, 4), 100.0, np.float32)]
    mixed = fp16_from_fp32(path, tmp_path / "m.fp16.onnx", rows)
    (value,) = ReferenceEvaluator(onnx.load(mixed)).run(None, {"image": rows[0]})
    np.testing.assert_allclose(value, 300.0, rtol=2e-3)
    assert value.dtype == np.float32


def test_zeros_that_the_graph_makes_become_fp16_too(tmp_path):
    """ConstantOfShape gives float32 zeros where it does not say otherwise; Swin's masks come of it."""
    nodes = [("Shape", ["image"], ["shape"]), ("ConstantOfShape", ["shape"], ["zeros"])]
    path = little(tmp_path / "m.fp32.onnx", [*nodes, ("Add", ["image", "zeros"], ["logits"])], {})
    rows = [np.full((1, 4), 1.5, np.float32)]
    np.testing.assert_array_equal(answers(fp16_from_fp32(path, tmp_path / "m.fp16.onnx", rows), rows[0]), rows[0])


def test_casts_outputs_read_inside_and_weights_of_what_stays_fp32_fit_together(tmp_path):
    """Detectors have all three: positions cast to float, regions that go on into the box head, limits shared with a
    suppression that takes fp32 alone; Max is such an operator as well."""
    nodes = [
        ("Shape", ["image"], ["shape"]),
        ("Cast", ["shape"], ["sizes"], {"to": TensorProto.FLOAT}),
        ("Mul", ["sizes", "half"], ["halves"]),
    ]
    nodes += [("Max", ["image", "limit"], ["above"]), ("Mul", ["above", "limit"], ["logits"])]
    nodes += [
        ("Add", ["logits", "image"], ["more"]),
        ("ReduceSum", ["halves"], ["sum"], {"keepdims": 0}),
        ("Mul", ["more", "sum"], ["out"]),
    ]
    path = little(tmp_path / "m.fp32.onnx", nodes, {"half": [0.5, 0.5], "limit": [0.25] * 4}, more=("out",))
    rows = [np.float32([[-1.5, 0.125, 0.5, 2.0]])]
    for sample in (None, rows):
        half = fp16_from_fp32(path, tmp_path / "m.fp16.onnx", sample)
        for runtime in ("onnxruntime", "openvino"):
            with load_engine(half, runtime=runtime) as engine, load_engine(path) as whole:
                found, wanted = engine.run({"image": rows[0]}), whole.run({"image": rows[0]})
            assert set(found) == set(wanted) == {"logits", "out"}
            for name, value in wanted.items():
                np.testing.assert_array_equal(found[name], value)  # all of it is exact in fp16


def test_a_transpose_before_a_product_does_not_end_the_process(tmp_path):
    """ONNX Runtime 1.31 fuses the two in fp16, where it has no kernel; what that does is undefined."""
    nodes = [("Transpose", ["image"], ["turned"], {"perm": [1, 0, 2]}), ("MatMul", ["turned", "w"], ["logits"])]
    path = little(tmp_path / "m.fp32.onnx", nodes, {"w": [[1.0, 2.0]] * 16}, shape=["n", 16, 16])
    half = fp16_from_fp32(path, tmp_path / "m.fp16.onnx")
    code = f"""
from pathlib import Path
import numpy as np
from deploy.engines import load_engine
with load_engine(Path({str(half)!r})) as engine:
    print(engine.run({{"image": np.ones((2, 16, 16), np.float32)}})["logits"].tolist(), engine.kernels)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("[[[16.0, 32.0]")
    assert "no MatmulTransposeFusion" in done.stdout


def test_a_calibration_that_does_not_fit_is_refused(steep, tmp_path):
    with pytest.raises(DeployError, match="0 images"):
        fp16_from_fp32(steep, tmp_path / "x.onnx", [])
    with pytest.raises(DeployError, match=r"float32\[1, 3, 16, 16\]"):
        fp16_from_fp32(steep, tmp_path / "x.onnx", [np.zeros((1, 3, 16, 16), np.float32)])
    assert list(tmp_path.iterdir()) == []


def test_bf16_is_valid_onnx_that_nothing_overflows_in(steep, images, tmp_path):
    path = bf16_from_fp32(steep, tmp_path / "m.bf16.onnx")
    onnx.checker.check_model(onnx.load(path), full_check=True)
    types = {tensor.data_type for tensor in onnx.load(path).graph.initializer}
    assert TensorProto.BFLOAT16 in types
    assert not types & {TensorProto.FLOAT16, TensorProto.FLOAT}
    (value,) = ReferenceEvaluator(onnx.load(path)).run(None, {"image": images})
    reference = answers(steep, images)
    assert 10 * np.log10((reference**2).sum() / ((value - reference) ** 2).sum()) > 25
    with pytest.raises(DeployError, match="is bf16; make the bf16 file from the fp32 one"):
        bf16_from_fp32(path, tmp_path / "again.onnx")
    with pytest.raises(DeployError, match=r"cannot load .*m\.bf16\.onnx"):
        load_engine(path)


def test_openvino_runs_bf16(steep, images, tmp_path):
    pytest.importorskip("openvino", reason="openvino is not installed")
    path = bf16_from_fp32(steep, tmp_path / "m.bf16.onnx")
    with load_engine(path, runtime="openvino") as engine:
        assert engine.precision == "bf16"
    assert decibels(path, images, answers(steep, images), "openvino") > 25


@pytest.mark.parametrize("target", [pytest.param(name, marks=RTX) for name in ("sm80", "sm86", "sm89", "sm120")])
def test_bf16_builds_from_sm80_on(target, files, tmp_path):
    path = bf16_from_fp32(files["fp32"], tmp_path / "model.bf16.onnx")
    assert ".bf16." in engine_from_onnx(path, tmp_path / "e", target=target).name


@pytest.mark.parametrize("target", [pytest.param("sm75", marks=RTX)])
def test_bf16_for_sm75_is_one_sentence(target, files, tmp_path):
    path = bf16_from_fp32(files["fp32"], tmp_path / "model.bf16.onnx")
    with pytest.raises(DeployError, match=r"refuses to build .* for sm75"):
        engine_from_onnx(path, tmp_path / "e", target=target)
