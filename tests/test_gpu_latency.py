"""The latency script of benchmarks/gpu: all but the CUDA calls, on the CPU with small networks."""

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks.gpu import contenders, latency, networks
from benchmarks.gpu.contenders import Contender, Skip
from benchmarks.gpu.networks import Network

pytestmark = pytest.mark.heavy

ROOT = Path(__file__).resolve().parent.parent
CPU = torch.device("cpu")
EAGER = Contender("torch eager", "fp32")


def small(width, variant, seed=0):
    torch.manual_seed(seed)
    body = [nn.Conv2d(3, width, 3, 2, 1), nn.BatchNorm2d(width), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    module = networks.settle(nn.Sequential(*body, nn.Linear(width, 5)), size=32)
    return Network("small", variant, module, (3, 32, 32))


@pytest.fixture
def two():
    return [small(16, "dense"), small(8, "pruned")]


def measured(two, list_of, seconds=60.0, batches=(1, 4), rounds=5):
    return latency.measure(two, list_of, CPU, batches, time.monotonic() + seconds, rounds=rounds)


def test_every_contender_has_its_rows_or_its_reason(two):
    asked = [
        EAGER,
        Contender("torch eager", "bf16"),
        Contender("torch CUDA graph", "fp16"),
        Contender("onnxruntime CUDA", "fp32"),
        Contender("onnxruntime CUDA", "fp16"),
        Contender("onnxruntime CUDA", "int8"),
        Contender("tensorrt_rtx", "fp16"),
    ]
    rows, skipped = measured(two, asked)
    ran = {(r["variant"], r["runtime"], r["precision"], r["batch"]) for r in rows}
    expected = [("torch eager", "fp32"), ("torch eager", "bf16"), ("onnxruntime CUDA", "fp32")]
    expected += [("onnxruntime CUDA", "fp16")]
    assert ran == {(v, *e, b) for v in ("dense", "pruned") for e in expected for b in (1, 4)}
    for row in rows:
        assert 0 < row["median_ms"] <= row["p90_ms"] <= row["p99_ms"]
        assert row["runs"] == 5
        assert row["error"] <= latency.LIMITS[row["precision"]]
        assert row["images_per_second"] == pytest.approx(row["batch"] * 1e3 / row["median_ms"])
    assert {r["times_as_fast_as_dense_eager_fp32"] for r in rows if r["runtime"] == "torch eager"} >= {1.0}
    assert [r["error"] for r in rows if r["precision"] == "bf16"] > [0.0] * 4
    why = {(s["runtime"], s["precision"]): s["why"] for s in skipped}
    assert why[("torch CUDA graph", "fp16")] == "a CUDA graph needs a GPU, not cpu"
    assert "no int8 kernels" in why[("onnxruntime CUDA", "int8")]
    assert why[("tensorrt_rtx", "fp16")] == "tensorrt_rtx needs a GPU, not cpu"
    assert len(skipped) == 6
    json.dumps(latency.report(CPU, rows, skipped, 1.0), allow_nan=False)
    assert "| small pruned | onnxruntime CUDA fp16 | " in latency.table(rows)


def test_the_int8_file_is_made_once_and_signed_for_tensorrt(two, tmp_path):
    pytest.importorskip("nncf", reason="NNCF is not installed")
    from deploy.onnx.wire import check_tensorrt_qdq

    path = contenders._file(two[0], "int8", tmp_path, signed=True)
    check_tensorrt_qdq(path)
    made = (tmp_path / "small-dense.int8.onnx").stat().st_mtime_ns
    assert contenders._file(two[0], "int8", tmp_path, signed=True) == path
    assert (tmp_path / "small-dense.int8.onnx").stat().st_mtime_ns == made
    call = contenders.onnxruntime_call(path, CPU)
    x = torch.randn(4, 3, 32, 32)
    with torch.inference_mode():
        assert latency.error_of(call(x), two[0].module(x)) < 0.2


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda y: y * float("nan"), "not finite"),
        (lambda y: y[:, :2], r"\[4, 2\] is not finite or not \[4, 5\]"),
        (lambda y: y + 1, "away from eager fp32, more than 0.01"),
    ],
)
def test_a_wrong_answer_is_not_timed(spoil, says, two, monkeypatch):
    real = contenders.prepare

    def prepare(contender, network, *rest):
        call = real(EAGER, network, *rest)
        return call if contender == EAGER else lambda x: spoil(call(x))

    monkeypatch.setattr(latency, "prepare", prepare)
    rows, skipped = measured(two, [EAGER, Contender("broken", "fp32")], batches=(4,))
    assert {row["runtime"] for row in rows} == {"torch eager"}
    assert len(skipped) == 2
    for entry in skipped:
        assert entry["batch"] == 4
        with pytest.raises(AssertionError, match=says):
            raise AssertionError(entry["why"])


def test_one_that_fails_does_not_end_the_others(two, monkeypatch):
    def prepare(contender, network, *rest):
        if contender.runtime == "bad":
            raise RuntimeError("out of memory\nand a long trace")
        return contenders.prepare(contender, network, *rest)

    monkeypatch.setattr(latency, "prepare", prepare)
    rows, skipped = measured(two, [EAGER, Contender("bad", "fp32"), Contender("torch eager", "bf16")])
    assert len(rows) == 8
    assert {entry["why"] for entry in skipped} == {"RuntimeError: out of memory"}


def test_without_the_reference_nothing_is_reported(two, monkeypatch):
    def prepare(contender, network, *rest):
        if contender == EAGER and network.variant == "pruned":
            raise Skip("not this one")
        return contenders.prepare(contender, network, *rest)

    monkeypatch.setattr(latency, "prepare", prepare)
    rows, skipped = measured(two, [EAGER, Contender("torch eager", "bf16")], batches=(1,))
    assert {row["variant"] for row in rows} == {"dense"}
    assert "nothing to compare it with" in skipped[-1]["why"]


def test_when_the_time_is_spent_the_rest_says_so(two):
    rows, skipped = measured(two, [EAGER, Contender("torch eager", "bf16")], seconds=0.0)
    assert {(r["variant"], r["precision"], r["runs"]) for r in rows} == {("dense", "fp32", 1)}
    assert {entry["why"] for entry in skipped} == {"there was no time left to prepare it"}
    assert len(skipped) == 3


def test_every_round_begins_with_another():
    order = []
    calls = [lambda x, k=k: order.append(k) for k in range(3)]
    times = latency.in_turns(calls, None, 2, time.monotonic() + 60, lambda: None)
    assert times.shape == (3, 2)
    assert order[9:] == [0, 1, 2, 1, 2, 0]
    assert (times > 0).all()


def test_the_widths_are_what_the_pruning_keeps_and_cost_half():
    pytest.importorskip("scipy", reason="SciPy is not installed")
    stored = json.loads(networks.WIDTHS.read_text("utf-8"))["networks"]
    assert networks.widths_of("mobilenet_v2") == stored["mobilenet_v2"]
    assert all(0.45 < one["macs"] <= 0.5 for one in stored.values())
    assert set(stored) == set(latency.ARCHITECTURES)


@pytest.mark.parametrize("architecture", latency.ARCHITECTURES)
def test_the_cut_network_has_those_widths_and_runs(architecture):
    dense, pruned = networks.pair(architecture)
    stored = json.loads(networks.WIDTHS.read_text("utf-8"))["networks"][architecture]["slots"]
    tensors = dict(pruned.module.named_parameters()) | dict(pruned.module.named_buffers())
    assert all(
        tensors[name].shape[int(dim)] == n for (name, dim), n in ((k.rsplit(":", 1), n) for k, n in stored.items())
    )
    with torch.inference_mode():
        answers = [one.module(torch.randn(2, 3, 64, 64)) for one in (dense, pruned)]
    assert all(a.shape == (2, 1000) and a.isfinite().all() and a.std(0).min() > 0 for a in answers)
    assert (
        0.4
        < sum(p.numel() for p in pruned.module.parameters()) / sum(p.numel() for p in dense.module.parameters())
        < 0.7
    )


def test_it_needs_torch_torchvision_and_numpy_alone():
    script = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in %r:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Blocked())
import time, torch
from benchmarks.gpu import latency, networks
from tests.test_gpu_latency import small
"""
    # The tests themselves need pytest, so the small network is made here again.
    script = (
        script.replace("from tests.test_gpu_latency import small\n", "")
        + """
module = networks.settle(torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Flatten(),
                                             torch.nn.LazyLinear(3)), size=8)
one = networks.Network("small", "dense", module, (3, 8, 8))
rows, skipped = latency.measure([one], [c for c in latency.CONTENDERS if "compiled" not in c.runtime],
                                torch.device("cpu"), (1, 2), time.monotonic() + 60, rounds=2)
assert len(rows) == 6, (rows, skipped)
for entry in skipped:
    print(entry["runtime"], entry["precision"], entry["why"])
"""
    )
    absent = ("pydantic", "scipy", "lightning", "safetensors", "torchmetrics", "yaml", "onnx", "onnxscript", "nncf")
    absent += ("onnxruntime", "onnxconverter_common", "rich", "typer", "tensorrt_rtx")
    done = subprocess.run(
        [sys.executable, "-c", script % (absent,)], cwd=ROOT, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert "onnxruntime CUDA fp32 Exporting to ONNX needs the package pydantic" in done.stdout


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so_in_one_sentence(tmp_path, capsys):
    assert latency.main(["--out", str(tmp_path / "x.json")]) == 3
    assert capsys.readouterr().err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no NVIDIA GPU")
def test_on_a_gpu_the_graph_computes_what_eager_computes(two):
    device = torch.device("cuda", 0)
    two = [Network(n.architecture, n.variant, n.module.to(device), n.shape) for n in two]
    asked = [EAGER, Contender("torch CUDA graph", "fp32"), Contender("torch CUDA graph", "fp16")]
    rows, skipped = latency.measure(two, asked, device, (1, 4), time.monotonic() + 120, rounds=20)
    assert (len(rows), skipped) == (12, [])
    assert np.median([r["error"] for r in rows if r["precision"] == "fp32"]) < 1e-4
