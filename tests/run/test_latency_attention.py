"""Attention blocks under a latency: found in a network, written as one small file, and cut by whole heads."""

import numpy as np
import onnxruntime
import pytest
import torch
from torchvision.models import VisionTransformer

from compress import prune
from compress.prune import Budget
from compress.prune.allocation import Limits
from compress.run.additive import AdditiveModel
from compress.run.filling import Shipping, filled
from compress.run.fitting import LatencyFit, Target
from compress.run.probes import placed_layers, widths_of, write_probe
from deploy.latency.profile import Probe, Timing
from deploy.latency.table import TimedLayer

EXAMPLE = torch.rand(2, 3, 32, 32)
BLOCK = TimedLayer(kind="attention", size=(5,), head=16)


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    sizes = {"num_layers": 2, "num_heads": 4, "hidden_dim": 64, "mlp_dim": 128, "num_classes": 5}
    return VisionTransformer(image_size=32, patch_size=16, **sizes).eval()


def silent(done, total, text):
    """Nobody looks on."""


def test_attention_blocks_are_placed_with_the_axes_of_their_parameters(net):
    blocks = [one for one in placed_layers(net, EXAMPLE) if one.layer.kind == "attention"]
    name = "encoder.layers.encoder_layer_0.self_attention"
    assert len(blocks) == 2 and blocks[0].layer == BLOCK and blocks[0].dense == (64, 64)
    assert (blocks[0].reads, blocks[0].makes) == ((f"{name}.in_proj_weight", 1), (f"{name}.out_proj.weight", 1))
    assert "by heads of 16" in blocks[0].layer.key
    assert [made for read, made in widths_of(blocks[0], frozenset({blocks[0].reads}))] == [64, 16, 32, 48]


@pytest.mark.parametrize(("precision", "kind"), [("fp32", np.float32), ("int8", np.uint8)])
@pytest.mark.parametrize(("reads", "inner"), [(64, 64), (48, 32)])
def test_a_block_is_one_file_that_runs(tmp_path, precision, kind, reads, inner):
    path = tmp_path / "p.onnx"
    write_probe(Probe(file="p.onnx", layer=BLOCK, inputs=reads, outputs=inner, precision=precision), path)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (made,) = session.run(None, {"x": np.ones((2, 5, reads), kind)})
    assert made.shape == (2, 5, reads) and made.dtype == kind


def test_a_latency_cuts_heads_and_widths_of_a_transformer(net, monkeypatch):
    """On a machine on which a layer takes a microsecond for each product of its widths, a block eight times that."""
    probes, networks = {}, {}
    monkeypatch.setattr("compress.run.filling.write_probe", lambda probe, path: probes.update({path.name: probe}))

    def ms(layer, reads, makes):
        return reads * makes * (8 if layer.kind == "attention" else 1) / 1000

    def write(model, path):
        networks[str(path)] = sum(ms(one.layer, *one.dense) for one in placed_layers(model, EXAMPLE))
        return path

    def timer(jobs, how):
        found = []
        for job in jobs:
            probe = probes.get(job.path.rpartition("/")[2])
            took = networks[job.path] if probe is None else ms(probe.layer, probe.inputs, probe.outputs)
            found.append(Timing(path=job.path, ms=took, processes=(took,) * 3))
        return found

    trace = prune.trace(net, EXAMPLE)
    scores = prune.score(trace, net, "l1").numpy()
    shipping = Shipping(write, timer=timer)
    layers = placed_layers(net, EXAMPLE)
    entries, _ = filled(layers, trace, shipping, silent)
    model = AdditiveModel(layers, entries, trace)
    heads = next(n for n, group in enumerate(trace.groups) if group.name.endswith("0.self_attention"))
    assert model.candidates(heads) == (1, 2, 3, 4)
    fit = LatencyFit(net, net, model, scores, shipping, Limits(1, 1), silent)
    found = fit.fit(Budget(latency=0.5), Target(0.5))
    assert 0.4 <= found.reading.share <= 0.525 and found.additive_error < 0.001
    after = {group.name: (group.before, group.after) for group in found.plan.groups}
    assert any(new < old for name, (old, new) in after.items() if name.endswith("self_attention"))
    small = prune.apply(net, found.plan)
    assert small(EXAMPLE).shape == (2, 5)
