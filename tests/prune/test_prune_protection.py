"""One tiny network for each rule about space, zeros that become constants, parameters and protection."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from prune_nets import Net, conv, draw, halves, image, proved, sizes
from torch import nn

from compress import prune
from compress.errors import ModelError, PlanError
from compress.models.cifar_resnet import cifar_resnet
from compress.prune.planning import plan_from_kept

# Over space -----------------------------------------------------------------------------------------------

SPATIAL = {
    "max": nn.MaxPool2d(2, padding=1),
    "average": nn.AvgPool2d(2),
    "adaptive": nn.AdaptiveAvgPool2d(3),
    "global": nn.AdaptiveAvgPool2d(1),
    "adaptive max": nn.AdaptiveMaxPool2d(2),
    "nearest": nn.Upsample(scale_factor=2),
    "bilinear": nn.Upsample(scale_factor=2, mode="bilinear"),
    "zero pad": nn.ZeroPad2d(2),
    "reflection": nn.ReflectionPad2d(1),
    "replication": nn.ReplicationPad2d(1),
    "dropout": nn.Dropout(0.3),
}


@pytest.mark.parametrize("layer", SPATIAL.values(), ids=SPATIAL)
def test_what_mixes_positions_leaves_channels_alone(layer):
    net = Net(lambda m, x: m.b(m.s(F.relu(m.a(x)))), a=conv(3, 6), s=layer, b=conv(6, 5))
    trace = proved(net)
    assert sizes(trace) == {"a": 6}
    assert trace.preserving.all()


def test_a_pad_with_a_value_is_a_constant():
    net = Net(lambda m, x: m.b(F.pad(m.a(x), (1, 1, 1, 1), value=1.0)), a=conv(3, 6), b=conv(6, 5))
    trace = prune.trace(net, image())
    assert not trace.preserving[trace.slots["a.weight", 0]].any()


def test_channels_between_padded_ones_are_free():
    net = Net(lambda m, x: m.b(F.pad(m.a(x), (0, 0, 0, 0, 1, 1))), a=conv(3, 6), b=conv(8, 5))
    trace = proved(net)
    assert sizes(trace) == {"a": 6}
    assert trace.protected["b.weight:1"] == "padded channels"


def test_a_shortcut_that_pads_frees_the_channels_that_it_carries():
    """The first stage's channels go on in the middle of the second stage's, whose outer ones stay."""

    def run(m, x):
        x = F.relu(m.bn(m.stem(x)))
        y = m.up(F.relu(m.a(x)))
        return m.head(F.relu(y + F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 3, 3))).mean((2, 3)))

    net = Net(
        run, stem=conv(3, 6), bn=nn.BatchNorm2d(6), a=nn.Conv2d(6, 7, 3, 2, 1), up=conv(7, 12), head=nn.Linear(12, 4)
    )
    trace = proved(net, image(8, 16))
    assert sizes(trace) == {"stem": 6, "a": 7}
    held = trace.protected_units[trace.slots["up.weight", 0]]
    assert held.tolist() == [True] * 3 + [False] * 6 + [True] * 3


def test_zeros_whose_numbers_the_module_keeps_follow_a_cut():
    net = cifar_resnet(8, 8, shortcut="pad")
    trace = proved(net, image(8, 16))
    assert set(trace.protected.values()) == {"graph input", "graph output"}
    assert sizes(trace)["layer2.0.conv2"] == 8
    assert sizes(trace)["layer3.0.conv2"] == 16
    units = trace.slots["layer2.0.conv2.weight", 0]
    scores = torch.ones(trace.units, dtype=torch.float64)
    scores[units[[0, 2, 3, 15]]] = 0
    plan = prune.plan(trace, scores, ratio={"layer2.0.conv2": 0.5})
    assert plan.attributes["layer2.0.downsample"] == {"zeros.0": (4, 1), "zeros.1": (4, 3)}
    assert prune.check(net, plan, image(8, 16)).worst < 1e-10
    assert prune.apply(net, plan).layer2[0].downsample.zeros == (1, 3)


@pytest.mark.parametrize("keep", [True, False])
def test_a_mean_over_space_keeps_channels(keep):
    def run(m, x):
        y = F.relu(m.a(x)).mean((2, 3), keepdim=keep)
        return m.b(y.flatten(1))

    assert sizes(proved(Net(run, a=conv(3, 6), b=nn.Linear(6, 5)))) == {"a": 6}


def test_a_mean_over_channels_is_one_over_those_that_stay():
    net = Net(lambda m, x: m.b(m.a(x).mean(1, keepdim=True)), a=conv(3, 6), b=conv(1, 5))
    trace = proved(net)
    assert sizes(trace) == {"a": 6}
    assert not trace.preserving[trace.slots["a.weight", 0]].any()


# Zeros that become constants ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "function", [torch.sigmoid, torch.exp, torch.cos, F.softplus, lambda y: y + 1, lambda y: 1 - y]
)
def test_a_zero_that_becomes_a_constant_is_not_preserving(function):
    net = Net(lambda m, x: m.b(function(m.a(x))), a=conv(3, 6), b=conv(6, 5))
    trace = prune.trace(net, image())
    assert not trace.preserving[trace.slots["a.weight", 0]].any()
    kept = np.ones(trace.units, dtype=bool)
    kept[trace.slots["a.weight", 0][:2]] = False
    assert plan_from_kept(trace, kept).costs["units_not_preserving"] == 2


def test_a_norm_after_a_sigmoid_brings_the_zero_back():
    net = Net(lambda m, x: m.b(m.n(torch.sigmoid(m.a(x)))), a=conv(3, 6), n=nn.BatchNorm2d(6), b=conv(6, 5))
    assert proved(net).preserving.all()


BOUNDED = {
    "clamp within": (lambda y: y.clamp(-1, 1), True),
    "clamp above zero": (lambda y: y.clamp(0.5, 1), False),
    "clamp by name": (lambda y: torch.clamp(y, max=-0.5), False),
    "clamp_min": (lambda y: y.clamp_min(0.0), True),
    "clamp_min above zero": (lambda y: y.clamp_min(0.5), False),
    "clamp_max": (lambda y: y.clamp_max(1.0), True),
    "clamp_max below zero": (lambda y: y.clamp_max(-0.5), False),
    "relu6": (F.relu6, True),
    "hardtanh": (F.hardtanh, True),
    "hardtanh above zero": (lambda y: F.hardtanh(y, 0.5, 2.0), False),
}


@pytest.mark.parametrize(("function", "preserves"), BOUNDED.values(), ids=BOUNDED)
def test_bounds_keep_zero_only_around_it(function, preserves):
    net = Net(lambda m, x: m.b(function(m.a(x))), a=conv(3, 6), b=conv(6, 5))
    trace = prune.trace(net, image())
    assert trace.preserving[trace.slots["a.weight", 0]].all() == preserves
    if preserves:
        proved(net)


def test_writing_into_a_view_is_not_missed():
    def run(m, x):
        y = m.a(x)
        y[:, :, :2].add_(1.0)
        return m.b(y)

    net = Net(run, a=conv(3, 6), b=conv(6, 5))
    trace = prune.trace(net, image())
    free = np.concatenate([g.units for g in trace.groups]) if trace.groups else np.empty(0, np.int64)
    assert not trace.preserving[free].any(), "channels that a masked network turns into constants"


# Parameters -----------------------------------------------------------------------------------------------


def test_a_plain_parameter_scales_its_channels():
    net = Net(
        lambda m, x: m.b(F.relu(m.a(x) * m.scale + m.offset)),
        a=conv(3, 6), b=conv(6, 5),
        scale=nn.Parameter(torch.rand(1, 6, 1, 1)), offset=nn.Parameter(torch.rand(6, 1, 1)),
    )  # fmt: skip
    trace = proved(net)
    assert {("scale", 1), ("offset", 0)} <= set(trace.groups[0].slots)
    small = prune.apply(net, halves(trace, 2, 0))
    assert small.scale.shape == (1, 4, 1, 1)
    assert small.offset.shape == (4, 1, 1)


def test_tied_weights_are_cut_as_one_and_stay_tied():
    a, b = nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False)
    b.weight = a.weight
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), a, nn.ReLU(), b, nn.ReLU(), nn.Linear(8, 4))
    trace = proved(net, torch.randn(8, 6))
    assert trace.tied == {"4.weight": "2.weight"}
    small = prune.apply(net, draw(trace, 3))
    assert small[4].weight is small[2].weight
    assert small[4].in_features == small[4].weight.shape[1]


def test_a_layer_used_twice_ties_its_rows_to_its_columns():
    net = Net(lambda m, x: m.c(F.relu(m.b(F.relu(m.b(m.a(x)))))), a=conv(3, 8), b=conv(8, 8), c=conv(8, 5))
    trace = proved(net)
    assert sizes(trace) == {"a": 8}
    np.testing.assert_array_equal(trace.slots["b.weight", 0], trace.slots["b.weight", 1])


def test_frozen_parameters_are_cut_and_stay_frozen():
    net = Net(lambda m, x: m.c(F.relu(m.b(F.relu(m.a(x))))), a=conv(3, 6), b=conv(6, 7), c=conv(7, 5))
    net.a.requires_grad_(False)
    net.b.weight.requires_grad_(False)
    trace = proved(net)
    small = prune.apply(net, draw(trace, 0))
    assert {n: p.requires_grad for n, p in small.named_parameters()} == {
        n: p.requires_grad for n, p in net.named_parameters()
    }


def test_a_parameter_used_as_a_whole_is_protected():
    def run(m, x):
        return m.b(m.a(x)) @ m.w.softmax(0)

    net = Net(run, a=nn.Linear(6, 8), b=nn.Linear(8, 4), w=nn.Parameter(torch.rand(4, 3)))
    trace = prune.trace(net, torch.randn(4, 6))
    assert sizes(trace) == {"a": 8}


# Protection -----------------------------------------------------------------------------------------------


def test_input_and_output_are_protected():
    trace = prune.trace(Net(lambda m, x: m.b(m.a(x)), a=conv(3, 8), b=conv(8, 5)), image())
    assert trace.protected == {"a.weight:1": "graph input", "b.weight:0": "graph output", "b.bias:0": "graph output"}


@dataclass
class Result:
    logits: torch.Tensor


OUTPUTS = {
    "tuple": lambda y: (y, y.mean((2, 3))),
    "list": lambda y: [y],
    "dict": lambda y: {"logits": y, "more": [y]},
    "dataclass": Result,
}


@pytest.mark.parametrize("wrap", OUTPUTS.values(), ids=OUTPUTS)
def test_every_kind_of_output_is_protected_or_refused(wrap):
    net = Net(lambda m, x: wrap(m.b(m.a(x))), a=conv(3, 8), b=conv(8, 5))
    try:
        trace = prune.trace(net, image())
    except ModelError:
        return
    assert sizes(trace) == {"a": 8}
    assert trace.protected["b.weight:0"] == "graph output"


def test_an_unknown_operator_protects_by_name():
    net = Net(lambda m, x: m.c(m.b(torch.cummax(m.a(x), dim=1).values)), a=conv(3, 8), b=conv(8, 7), c=conv(7, 5))
    trace = proved(net)
    assert trace.unknown_ops == ("aten.cummax",)
    assert trace.protected["a.weight:0"] == "unknown operator aten.cummax"
    assert trace.protected["b.weight:1"] == "unknown operator aten.cummax"
    assert sizes(trace) == {"b": 7}


def test_channels_under_a_layer_norm_go_and_are_not_called_preserving():
    net = nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, 4))
    trace = proved(net, torch.randn(8, 6))
    assert sizes(trace) == {"0": 8}
    assert not trace.preserving[trace.slots["0.weight", 0]].any()


def test_a_branch_that_only_training_takes_is_traced():
    def run(m, x):
        y = F.relu(m.a(x))
        return (m.b(y), m.aux(y)) if m.training else m.b(y)

    net = Net(run, a=conv(3, 8), b=conv(8, 5), aux=conv(8, 2)).eval()
    trace = proved(net)
    assert ("aux.weight", 1) in trace.groups[0].slots
    assert trace.protected["aux.weight:0"] == "graph output"
    expected = prune.trace(Net(lambda m, x: m.b(F.relu(m.a(x))), a=conv(3, 8), b=conv(8, 5)), image())
    kept = np.ones(trace.units, dtype=bool)
    assert prune.trace(net, image()).macs(kept) == expected.macs(np.ones(expected.units, dtype=bool))


def test_tracing_leaves_the_network_as_it_was():
    net = nn.Sequential(conv(3, 8), nn.BatchNorm2d(8), nn.ReLU(), conv(8, 4)).train()
    net[1].eval()
    before = {n: t.clone() for n, t in net.state_dict().items()}
    prune.trace(net, image())
    assert [m.training for m in net] == [True, False, True, True]
    assert all(torch.equal(before[n], t) for n, t in net.state_dict().items())


def test_a_wrong_example_is_one_sentence():
    with pytest.raises(ModelError, match=r"forward pass of Sequential fails on inputs of shape \(8, 4, 8, 8\)"):
        prune.trace(nn.Sequential(conv(3, 8)), image(channels=4))


def test_a_plan_that_does_not_preserve_is_not_called_a_fault_of_the_trace():
    net = Net(lambda m, x: m.b(torch.sigmoid(m.a(x))), a=conv(3, 6), b=conv(6, 5))
    trace = prune.trace(net, image())
    try:
        prune.check(net, draw(trace, 1), image())
    except PlanError as error:
        assert "fault of the trace" not in str(error)
