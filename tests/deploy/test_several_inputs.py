"""Networks with several inputs in int8 and fp16."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import deploy
from deploy.engines import load_engine
from deploy.errors import DeployError
from deploy.exporting.torch_to_onnx import export_onnx
from deploy.onnx.file import PRECISION
from deploy.onnx.wire import scan
from deploy.quantization.agreement import Agreement
from deploy.quantization.calibration import KEPT
from deploy.quantization.feeds import feeds_of
from deploy.quantization.half import fp16_from_fp32
from deploy.quantization.int8 import int8_from_fp32
from deploy.quantization.search import fastest_int8

pytestmark = pytest.mark.heavy

onnx = pytest.importorskip("onnx")
ReferenceEvaluator = pytest.importorskip("onnx.reference").ReferenceEvaluator
pytest.importorskip("nncf")


class Two(nn.Module):
    """A photo and a vector beside it, to classes and a single number."""

    def __init__(self):
        super().__init__()
        self.body, self.beside = nn.Conv2d(3, 8, 3), nn.Linear(5, 8)
        self.head, self.price = nn.Linear(16, 4), nn.Linear(8, 1)

    def forward(self, photo, facts):
        seen, known = self.body(photo).relu().mean((2, 3)), self.beside(facts).relu()
        return {"kind": self.head(torch.cat([seen, known], 1)), "price": self.price(known).flatten()}


@pytest.fixture(scope="module")
def rows():
    rng = np.random.default_rng(0)
    return [rng.standard_normal((24, *shape), np.float32) for shape in ((3, 8, 8), (5,))]


@pytest.fixture(scope="module")
def fp32(tmp_path_factory, rows):
    torch.manual_seed(0)
    example = {"photo": torch.from_numpy(rows[0][:2]), "facts": torch.from_numpy(rows[1][:2])}
    return export_onnx(Two().eval(), example, tmp_path_factory.mktemp("two") / "two.onnx")


def named(rows):
    return [{"facts": facts, "photo": photo} for photo, facts in zip(*rows, strict=True)]


def test_number_11_every_form_of_several_inputs_is_the_same_calibration(fp32, rows, tmp_path):
    tensors = [torch.from_numpy(array) for array in rows]
    forms = {
        "mappings": named(rows),
        "tuples": list(zip(*rows, strict=True)),
        "loader": DataLoader(TensorDataset(*tensors), batch_size=7),
        "loader of mappings": DataLoader([{**row, "label": 3} for row in named(rows)], batch_size=7),
        "with labels": [((rows[0], rows[1]), np.arange(24))],
    }
    with load_engine(fp32) as engine:
        wanted = feeds_of(forms["mappings"], engine.inputs)
        assert len(wanted) == 24
        for what, form in forms.items():
            for one, other in zip(wanted, feeds_of(form, engine.inputs), strict=True):
                assert list(other) == ["photo", "facts"], what
                assert all(np.array_equal(one[name], other[name]) for name in one), what
    made = {what: int8_from_fp32(fp32, tmp_path / f"{what}.onnx", forms[what]) for what in ("mappings", "loader")}
    assert made["mappings"].read_bytes() == made["loader"].read_bytes()


def test_number_11_int8_of_several_inputs_states_its_worst_output(fp32, rows, tmp_path):
    path = deploy.quantize(fp32, tmp_path / "int8.onnx", named(rows)[:16], held_out=named(rows)[16:])
    feeds = [{name: array[None] for name, array in row.items()} for row in named(rows)]
    with load_engine(fp32) as dense, load_engine(path) as rounded, load_engine(path, runtime="openvino") as other:
        assert rounded.precision == "int8" and list(rounded.inputs) == ["photo", "facts"]
        want, found, third = ([engine.run(feed) for feed in feeds[:16]] for engine in (dense, rounded, other))

    def decibels(given, name):
        signal = sum(float((one[name].astype(np.float64) ** 2).sum()) for one in want)
        noise = sum(
            float(((two[name] - one[name]).astype(np.float64) ** 2).sum()) for one, two in zip(want, given, strict=True)
        )
        return 10 * np.log10(signal / noise)

    stated = Agreement.read(path)
    # Averaged over rows, the extremes of five numbers would clip most rows: 16 dB.
    assert stated == min((Agreement.of(fp32, path, part) for part in (feeds[:16], feeds[16:])), key=lambda a: a.snr_db)
    own = min(decibels(found, name) for name in ("kind", "price"))
    assert min(decibels(third, name) for name in ("kind", "price")) > 20
    assert Agreement.of(fp32, path, feeds[:16]).snr_db == pytest.approx(own, abs=0.06)
    assert 20 < stated.snr_db < 80 and stated.agreement > 0.8


def test_number_11_fp16_of_several_inputs_keeps_what_one_of_them_overflows(fp32, rows, tmp_path):
    plain = fp16_from_fp32(fp32, tmp_path / "plain.onnx", named(rows))
    assert KEPT not in scan(plain).properties
    large = [{**row, "facts": row["facts"] * 2e5} for row in named(rows)]
    path = deploy.quantize(fp32, tmp_path / "large.onnx", large, precision="fp16")
    assert scan(path).properties[PRECISION] == "fp16" and scan(path).properties[KEPT]
    feed = {name: np.stack([row[name] for row in large]) for name in ("photo", "facts")}
    with load_engine(fp32) as dense:
        want = dense.run(feed)
    # The runtimes of a CPU compute in fp32, where nothing overflows.
    found, narrow = (ReferenceEvaluator(onnx.load(file)).run(list(want), feed) for file in (path, plain))
    for values, exact in zip(found, want.values(), strict=True):
        np.testing.assert_allclose(values, exact, atol=0.01 * np.abs(exact).max())
    assert not all(np.isfinite(values).all() for values in narrow)


def test_number_11_the_search_and_the_bench_take_several_inputs(fp32, rows, tmp_path):
    found = fastest_int8(fp32, tmp_path / "int8.onnx", iter(named(rows)), rounds=2)
    assert Agreement.read(found.path).snr_db > 20
    with load_engine(fp32) as dense, load_engine(found.path) as rounded:
        dense.name = "fp32"
        records = deploy.measure([dense, rounded], named(rows), rounds=2, warmup=2, min_seconds=0).records
    assert [record.batch for record in records] == [1, 1]


@pytest.mark.parametrize("make", [int8_from_fp32, fp16_from_fp32])
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda p, f: {"photo": p, "fact": f}, r"has the keys photo, fact, but the model takes photo, facts; name"),
        (lambda p, f: (p, f, f), r"a tuple of 3, but the model takes 2 inputs \(photo, facts\); give mappings"),
        (lambda p, f: p, r"is a ndarray, but the model takes 2 inputs \(photo, facts\)"),
        (lambda p, f: (f, p), r"float32\[24, 5\]; the model's input 'photo' takes float32\[N, 3, 8, 8\]"),
        (lambda p, f: (p, f[:7]), r"different numbers \(24 of photo, 7 of facts\)"),
        (lambda p, f: (p, "red"), r"input 'facts' is a str; give arrays"),
        (lambda p, f: (p, f * np.nan), "NaN or infinity"),
    ],
)
def test_number_11_several_inputs_that_do_not_fit_are_one_sentence(make, change, said, fp32, rows, tmp_path):
    with pytest.raises(DeployError, match=said) as caught:
        make(fp32, tmp_path / "x.onnx", [change(*rows)])
    assert "\n" not in str(caught.value) and list(tmp_path.iterdir()) == []


def test_number_11_the_method_that_nncf_lacks_for_several_inputs_is_refused(fp32, rows, tmp_path):
    with pytest.raises(DeployError, match="has 2; take 'fast' or 'smooth'"):
        int8_from_fp32(fp32, tmp_path / "x.onnx", named(rows), method="exact")


def test_number_11_a_scalar_goes_whole_into_each_row_or_one_by_one(tmp_path):
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(5, 3)

        def forward(self, facts, scale):
            return self.layer(facts) * scale

    torch.manual_seed(0)
    example = {"facts": torch.randn(4, 5), "scale": torch.tensor(1.5)}
    path = export_onnx(Scaled().eval(), example, tmp_path / "scaled.onnx")
    facts = example["facts"].numpy()
    with load_engine(path) as engine:
        whole = feeds_of([{"facts": facts, "scale": 1.5}], engine.inputs)
        apart = feeds_of([{"facts": facts, "scale": np.arange(4, dtype=np.float32)}], engine.inputs)
        assert [float(feed["scale"]) for feed in whole] == [1.5] * 4
        assert [float(feed["scale"]) for feed in apart] == [0, 1, 2, 3]
        assert engine.run(apart[2])["logits"].shape == (1, 3)
    made = [int8_from_fp32(path, tmp_path / "int8.onnx", whole), fp16_from_fp32(path, tmp_path / "fp16.onnx", whole)]
    for file in made:
        with load_engine(path) as dense, load_engine(file) as other:
            np.testing.assert_allclose(other.run(whole[0])["logits"], dense.run(whole[0])["logits"], atol=0.05)


def test_number_11_the_verbs_take_several_inputs_from_export_to_parity(rows, tmp_path):
    torch.manual_seed(0)
    model, tensors = Two().eval(), [torch.from_numpy(array) for array in rows]
    loader = DataLoader(TensorDataset(*tensors), batch_size=6)
    mapping = dict(zip(("photo", "facts"), tensors, strict=True))
    for k, example in enumerate((loader, mapping, tuple(tensors), [{**mapping, "label": torch.ones(24)}])):
        path = deploy.export(model, example, tmp_path / f"{k}.onnx")
        assert deploy.parity(model, path, example)[0]["max_relative_error"] < 1e-5
    for example, said in ((tensors[0], "takes 2 inputs"), ({"photo": tensors[0]}, "the keys photo; give facts too")):
        with pytest.raises(DeployError, match=said):
            deploy.export(model, example, tmp_path / "x.onnx")
