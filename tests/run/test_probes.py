"""The layers of a network as small files, and the widths at which they are measured."""

import numpy as np
import pytest
import torch
from torch import nn

from compress import prune
from compress.prune.planning import plan_from_kept
from compress.run.additive import AdditiveModel
from compress.run.probes import placed_layers, probes_of, widths_of, write_probe
from deploy.engines import load_engine
from deploy.latency.profile import Probe
from deploy.latency.table import TimedLayer


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU6())
        self.alike = nn.ModuleList(nn.Conv2d(16, 16, 3, 1, 1) for _ in range(2))
        self.deep = nn.Conv2d(16, 16, 3, 1, 1, groups=16)
        self.act = nn.SiLU()
        self.head = nn.Linear(16, 10)

    def forward(self, x):
        x = self.stem(x)
        for conv in self.alike:
            x = conv(x)
        return self.head(self.act(self.deep(x)).mean((2, 3)))


@pytest.fixture(scope="module")
def layers():
    return placed_layers(Net(), torch.zeros(1, 3, 8, 8))


def test_every_layer_is_found_with_its_place_and_what_follows_it(layers):
    found = {one.name: (one.layer.key, one.dense) for one in layers}
    assert found == {
        "stem.0": ("conv k3x3 s2x2 p1x1 d1x1 at 8x8 + relu6", (3, 16)),
        "alike.0": ("conv k3x3 s1x1 p1x1 d1x1 at 4x4", (16, 16)),
        "alike.1": ("conv k3x3 s1x1 p1x1 d1x1 at 4x4", (16, 16)),
        "deep": ("depthwise k3x3 s1x1 p1x1 d1x1 at 4x4 + silu", (16, 16)),
        "head": ("linear at a vector", (16, 10)),
    }


def test_layers_alike_are_measured_once_and_fixed_axes_at_one_width(layers):
    precisions = {one.name: "fp32" for one in layers}
    probes = probes_of(layers, precisions, frozenset({("stem.0.weight", 1), ("head.weight", 0)}))
    assert sorted((p.layer.key.split()[0], p.inputs, p.outputs) for p in probes) == [
        ("conv", 3, 8), ("conv", 3, 16), ("conv", 8, 16), ("conv", 16, 8), ("conv", 16, 16),
        ("depthwise", 8, 8), ("depthwise", 16, 16), ("linear", 8, 10), ("linear", 16, 10),
    ]  # fmt: skip
    assert len({p.file for p in probes}) == len(probes)


def test_grouped_layers_keep_what_a_group_reads():
    (one,) = placed_layers(nn.Sequential(nn.Conv2d(32, 64, 1, groups=4)), torch.zeros(1, 32, 2, 2))
    assert list(widths_of(one)) == [(8, 16), (16, 32), (24, 48), (32, 64)]


class Up(nn.Module):
    """Two transposed convolutions, the second one depthwise, and one of two groups."""

    def __init__(self):
        super().__init__()
        self.up = nn.ConvTranspose2d(16, 24, 3, stride=2, padding=1, output_padding=1)
        self.deep = nn.ConvTranspose2d(24, 24, 2, stride=2, groups=24)
        self.halves = nn.ConvTranspose2d(24, 8, 1, groups=2)

    def forward(self, x):
        return self.halves(self.deep(self.up(x).relu()))


def test_transposed_convolutions_have_files_of_their_own():
    """What reads comes first in their weights; of several groups only the depthwise ones are measured."""
    up, deep = placed_layers(Up(), torch.zeros(1, 16, 4, 4))
    assert (up.name, up.layer.key, up.dense) == (
        "up",
        "transposed k3x3 s2x2 p1x1 d1x1 o1x1 at 4x4",
        (16, 24),
    )
    assert (up.reads, up.makes) == (("up.weight", 0), ("up.weight", 1))
    assert deep.layer.key == "depthwise transposed k2x2 s2x2 p0x0 d1x1 o0x0 at 8x8" and deep.dense == (24, 24)
    assert (deep.reads, deep.makes) == (("deep.weight", 0), ("deep.weight", 0))


def test_the_widths_of_a_transposed_convolution_follow_the_cut():
    net = nn.Sequential(nn.Conv2d(3, 16, 1), nn.ConvTranspose2d(16, 24, 2, 2), nn.ReLU(), nn.Conv2d(24, 4, 1))
    example = torch.zeros(2, 3, 4, 4)
    trace = prune.trace(net, example)
    kept = np.ones(trace.units, dtype=bool)
    for group, stays in zip(trace.groups, (8, 12), strict=True):
        kept[group.units[stays:]] = False
    cut = prune.apply(net, plan_from_kept(trace, kept))
    widths = AdditiveModel(placed_layers(net, example), {}, trace).widths(kept)
    assert widths == {one.name: one.dense for one in placed_layers(cut, example)}
    assert widths["1"] == (8, 12)


CONV = TimedLayer(kind="conv", size=(6, 6), kernel=(3, 3), stride=(2, 2), padding=(1, 1), dilation=(1, 1))
UP = CONV.model_copy(update={"kind": "transposed", "output_padding": (1, 1)})


@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize(
    ("layer", "reads", "makes", "given", "made"),
    [
        (CONV, 5, 7, (2, 5, 6, 6), (2, 7, 3, 3)),
        (CONV.model_copy(update={"activation": "relu6"}), 5, 7, (2, 5, 6, 6), (2, 7, 3, 3)),
        (CONV.model_copy(update={"activation": "silu", "per_group": 1}), 5, 5, (2, 5, 6, 6), (2, 5, 3, 3)),
        (TimedLayer(kind="linear", activation="relu"), 5, 7, (2, 5), (2, 7)),
        (UP, 5, 7, (2, 5, 6, 6), (2, 7, 12, 12)),
        (UP.model_copy(update={"activation": "relu", "per_group": 1}), 5, 5, (2, 5, 6, 6), (2, 5, 12, 12)),
        (TimedLayer(kind="linear", size=(9,)), 5, 7, (2, 9, 5), (2, 9, 7)),
        (TimedLayer(kind="linear", size=(9,), activation="hardswish"), 5, 7, (2, 9, 5), (2, 9, 7)),
    ],
)  # fmt: skip
def test_a_small_file_runs_and_keeps_its_widths(tmp_path, precision, layer, reads, makes, given, made):
    path = tmp_path / "probe.onnx"
    write_probe(Probe(file=path.name, layer=layer, inputs=reads, outputs=makes, precision=precision), path)
    with load_engine(path) as engine:
        (name,) = engine.inputs
        kind = np.uint8 if precision == "int8" else np.float32
        (result,) = engine.run({name: np.ones(given, kind)}).values()
    assert result.shape == made and result.dtype == kind


def test_the_network_comes_back_as_it_was():
    net = Net().train()
    placed_layers(net, torch.zeros(1, 3, 8, 8))
    assert net.training and not any(module._forward_hooks for module in net.modules())
