"""Reconstruction after a choice by criteria: exact where it can be, never worse where it cannot."""

import copy

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from prune_nets import Net, conv, draw, image
from torch import nn
from torch.nn import functional as F

from compress import prune
from compress.errors import PlanError
from compress.models.cifar_resnet import cifar_resnet
from compress.prune.least_squares import RidgeFit, solve
from compress.prune.moments import Moments, as_matrix, rows
from compress.prune.planning import plan_from_kept
from compress.prune.reads import Reads

pytestmark = pytest.mark.heavy


def without(trace, slot, gone):
    """A plan without some channels of one slot."""
    kept = np.ones(trace.units, dtype=bool)
    kept[trace.slots[slot][gone]] = False
    return plan_from_kept(trace, kept)


def images(count=4, batch=16, **settings):
    return [image(batch, seed=k, **settings).double() for k in range(count)]


def linear(m, x):
    return m.c(m.b(m.a(x)).flatten(1)) if hasattr(m, "c") else m.b(m.a(x))


READERS = {
    "conv": lambda: conv(6, 4),
    "strided, dilated, without a bias": lambda: nn.Conv2d(6, 4, 3, 2, 2, 2, bias=False),
    "grouped": lambda: conv(6, 4, groups=2),
    "same padding": lambda: nn.Conv2d(6, 4, (3, 2), padding="same"),
    "one by one": lambda: nn.Conv2d(6, 4, 1),
}


@pytest.mark.parametrize("reader", READERS)
def test_criteria_may_drop_what_others_can_stand_in_for(reader):
    """The last channel of a is a sum of others (and a constant): without it the readers recover exactly."""
    torch.manual_seed(0)
    net = Net(lambda m, x: m.c(m.b(m.a(x)).flatten(1)), a=nn.Conv2d(3, 6, 1), b=READERS[reader](), c=None)
    size = net.b(net.a(image(1))).flatten(1).shape[1]
    net.c = nn.Linear(size, 5)
    net = net.double()
    gone = [2, 5] if reader == "grouped" else [5]
    with torch.no_grad():
        net.a.weight[5] = 2 * net.a.weight[3] - net.a.weight[4]
        net.a.bias[5] = 2 * net.a.bias[3] - net.a.bias[4]
        net.a.weight[2], net.a.bias[2] = 3 * net.a.weight[0], 3 * net.a.bias[0]
    trace = prune.trace(net, image(2).double())
    plan = without(trace, ("a.weight", 0), gone)
    small = prune.apply(net, plan)
    data = images()
    broken = {n: t.clone() for n, t in small.state_dict().items()}
    repaired, report = prune.reconstruct(net, small, plan, data, positions=64)
    x = image(8, seed=99).double()
    assert report.before > 1e-3
    assert report.after < 1e-8
    torch.testing.assert_close(repaired(x), net(x), rtol=1e-2, atol=1e-3)
    assert [layer.kept for layer in report.layers][:1] == [True]
    assert all(torch.equal(broken[n], t) for n, t in small.state_dict().items()), "what was cut is left alone"
    assert [p.shape for p in repaired.parameters()] == [p.shape for p in small.parameters()]


def test_an_offset_goes_into_the_running_mean_of_the_norm_that_follows():
    """A channel that is constant on all images: what it added can only be an offset."""
    torch.manual_seed(0)
    net = Net(
        lambda m, x: m.c(F.relu(m.bn(m.b(F.relu(m.a(x))))).mean((2, 3))),
        a=nn.Conv2d(3, 4, 1), b=nn.Conv2d(4, 4, 1, bias=False), bn=nn.BatchNorm2d(4), c=nn.Linear(4, 3),
    ).double().eval()  # fmt: skip
    with torch.no_grad():
        net.a.weight[1], net.a.bias[1] = 0, 5
        net.bn.running_mean.copy_(net.b(F.relu(net.a(image(64).double()))).mean((0, 2, 3)))
    plan = without(prune.trace(net, image(2).double()), ("a.weight", 0), [1])
    repaired, report = prune.reconstruct(net, prune.apply(net, plan), plan, images())
    x = image(8, seed=5).double()
    torch.testing.assert_close(repaired(x), net(x), rtol=1e-4, atol=1e-5)
    shift = net.bn.running_mean - repaired.bn.running_mean
    torch.testing.assert_close(shift, 5 * net.b.weight[:, 1, 0, 0].detach(), rtol=1e-3, atol=1e-4)
    assert report.measure == "kl"
    assert not report.statistics


def test_a_residual_block_makes_up_for_what_its_shortcut_lacks():
    """A channel of the block's input is wrong; the layer before the sum, whose inputs know better, mends it."""

    def run(m, x):
        y = m.a(x)
        return m.c((y + m.b2(m.b(x))).mean((2, 3)) * 1.0)

    torch.manual_seed(0)
    net = Net(
        run, a=nn.Conv2d(3, 4, 1), b=nn.Conv2d(3, 6, 1), b2=nn.Conv2d(6, 4, 1), c=nn.Linear(4, 3),
    ).double()  # fmt: skip
    plan = without(prune.trace(net, image(2).double()), ("b.weight", 0), [0])
    small = prune.apply(net, plan)
    with torch.no_grad():
        small.a.bias += torch.tensor([1.0, -2.0, 3.0, 0.5])
    repaired, report = prune.reconstruct(net, small, plan, images())
    assert [layer.name for layer in report.layers][:2] == ["b2.weight", "a.weight"], "a waits for what is added"
    x = image(8, seed=9).double()
    torch.testing.assert_close(repaired(x), net(x), rtol=1e-2, atol=1e-3)


def outputs(net):
    return [image(6, side=16, seed=50 + k) for k in range(2)]


@pytest.fixture(scope="module")
def resnet():
    torch.manual_seed(1)
    net = cifar_resnet(8, 8)
    net.train()
    with torch.no_grad():
        for k in range(4):
            net(image(16, 16, seed=k))
        net.fc.weight.mul_(4)
    return net.eval()


@pytest.fixture(scope="module")
def halved(resnet):
    trace = prune.trace(resnet, image(2, 16))
    plan = prune.plan(trace, prune.score(trace, resnet, "signal"), budget=prune.Budget(macs=0.6))
    return plan, prune.apply(resnet, plan)


def divergence(reference, net, xs):
    with torch.no_grad():
        p, q = (torch.cat([n(x) for x in xs]).double().log_softmax(1) for n in (reference, net))
    return float((p.exp() * (p - q)).sum(1).mean())


def test_reconstruction_brings_the_outputs_nearer_and_is_repeatable(resnet, halved):
    plan, small = halved
    state = {n: t.clone() for n, t in resnet.state_dict().items()}
    data = [image(24, 16, seed=k) for k in range(4)]
    repaired, report = prune.reconstruct(resnet, small.train(), plan, data)
    again, other = prune.reconstruct(resnet, small, plan, [(x, None) for x in data])
    assert report == other
    assert all(
        torch.equal(a, b) for a, b in zip(repaired.state_dict().values(), again.state_dict().values(), strict=True)
    )
    assert all(torch.equal(state[n], t) for n, t in resnet.state_dict().items())
    assert all(module.training for module in repaired.modules())
    assert (report.images, report.held_out) == (72, 24)
    fresh = [image(16, 16, seed=100 + k) for k in range(2)]
    assert divergence(resnet, repaired.eval(), fresh) < 0.5 * divergence(resnet, small.eval(), fresh)
    small.eval()
    assert report.after < report.before
    held = [x[3::4] for x in data]
    assert report.before == pytest.approx(divergence(resnet, small, held), rel=1e-4)
    assert report.after == pytest.approx(divergence(resnet, repaired, held), rel=1e-4)


@settings(max_examples=6, deadline=None)
@given(st.integers(0, 1000))
def test_reconstruction_is_never_worse_on_held_out_images(resnet, seed):
    """Too few images to fit anything to, and cuts that are drawn: the measure still does not rise."""
    trace = prune.trace(resnet, image(2, 16))
    plan = draw(trace, seed)
    small = prune.apply(resnet, plan)
    data = [image(4, 16, seed=seed + k) for k in range(2)]
    repaired, report = prune.reconstruct(resnet, small, plan, data)
    held = [x[3::4] for x in data]
    assert report.after <= report.before
    assert divergence(resnet, repaired, held) <= divergence(resnet, small, held) + 1e-6
    for layer in report.layers:
        assert layer.error_after is None or layer.error_after <= layer.error_before


def test_nothing_is_solved_where_nothing_was_cut(resnet):
    net = copy.deepcopy(resnet).double()
    trace = prune.trace(net, image(2, 16).double())
    plan = plan_from_kept(trace, np.ones(trace.units, dtype=bool))
    repaired, report = prune.reconstruct(net, prune.apply(net, plan), plan, [image(8, 16).double()])
    assert report.layers == ()
    assert report.after == report.before == pytest.approx(0, abs=1e-12)
    assert all(torch.equal(a, b) for a, b in zip(repaired.parameters(), net.parameters(), strict=True))


ZOO = {
    "mobile": lambda: (torchvision.models.MobileNetV2(num_classes=4, width_mult=0.25), image(16, 32)),
    "attention": lambda: (torchvision.models.VisionTransformer(8, 4, 2, 2, 8, 16, num_classes=4), image(16, 8)),
    "windows": lambda: (
        torchvision.models.SwinTransformer([2, 2], 8, [1, 1], [2, 2], [2, 2], num_classes=4), image(16, 8),
    ),
    "grouped": lambda: (
        Net(
            lambda m, x: m.c(F.relu(m.b(F.relu(m.a(x)))).mean((2, 3))),
            a=conv(3, 8), b=conv(8, 8, groups=4), c=nn.Linear(8, 4),
        ),
        image(16),
    ),
    "dense outputs": lambda: (
        Net(lambda m, x: {"out": m.c(F.relu(m.b(F.relu(m.a(x)))))}, a=conv(3, 8), b=conv(8, 8), c=conv(8, 5)),
        image(16),
    ),
    "upward": lambda: (
        Net(lambda m, x: m.b(F.relu(m.a(x))), a=conv(3, 6), b=nn.ConvTranspose2d(6, 4, 2, 2)), image(16),
    ),
    "a weight used twice": lambda: (
        Net(lambda m, x: m.c(F.relu(m.b(F.relu(m.b(m.a(x)))))).mean((2, 3)), a=conv(3, 6), b=conv(6, 6), c=conv(6, 4)),
        image(16),
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", ZOO)
def test_every_kind_of_network_is_reconstructed_or_left_as_it_was(kind):
    torch.manual_seed(0)
    net, x = ZOO[kind]()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    net.eval()
    trace = prune.trace(net, x[:2])
    plan = prune.plan(trace, prune.score(trace, net, "random"), ratio=0.4)
    small = prune.apply(net, plan)
    repaired, report = prune.reconstruct(net, small, plan, [x, image(*x.shape[:1], x.shape[-1], seed=7)])
    assert report.after <= report.before
    assert report.measure == ("error" if kind in ("dense outputs", "upward") else "kl")
    said = {layer.name: layer.why for layer in report.layers if layer.why and layer.error_before is None}
    expected = {"upward": {"b.weight": "transposed"}, "a weight used twice": {"b.weight": "several times"}}
    assert set(said) == set(expected.get(kind, {}))
    assert all(words in said[name] for name, words in expected.get(kind, {}).items())
    if kind not in expected:
        assert report.after < 0.9 * report.before
        assert any(layer.kept for layer in report.layers)
    # Still the same architecture: proofs and plans go on to hold.
    assert [p.shape for p in repaired.parameters()] == [p.shape for p in small.parameters()]


def test_reconstruction_refuses_what_does_not_fit(resnet, halved):
    plan, small = halved
    with pytest.raises(PlanError, match="not what this plan makes"):
        prune.reconstruct(resnet, resnet, plan, [image(8, 16)])
    with pytest.raises(PlanError, match=r"2 images are too few to hold 0\.25 of them out"):
        prune.reconstruct(resnet, small, plan, [image(2, 16)])
    with pytest.raises(PlanError, match="no batch"):
        prune.reconstruct(resnet, small, plan, [])
    with pytest.raises(PlanError, match="held_out=1 is impossible"):
        prune.reconstruct(resnet, small, plan, [image(8, 16)], held_out=1)


def test_an_error_in_the_network_ends_every_pass(resnet, halved):
    plan, small = halved
    broken = copy.deepcopy(small)
    broken.layer3[0].conv2.forward = lambda x: (_ for _ in ()).throw(RuntimeError("no more"))
    with pytest.raises(RuntimeError, match="no more"):
        prune.reconstruct(resnet, broken, plan, [image(8, 16)])


# From moments --------------------------------------------------------------------------------------------


def test_rows_times_the_matrix_are_the_layers_outputs():
    """Every kind of product, at a draw of positions."""
    torch.manual_seed(0)
    layers = {
        "conv": nn.Conv2d(6, 8, (3, 2), (2, 1), (1, 0), groups=2, bias=False),
        "same": nn.Conv2d(6, 4, (2, 4), padding="same", dilation=2, bias=False),
        "one": nn.Conv1d(6, 4, 3, padding=1, bias=False),
        "three": nn.Conv3d(6, 6, 2, groups=6, bias=False),
        "linear": nn.Linear(5, 7, bias=False),
    }
    inputs = {"one": (2, 6, 9), "three": (2, 6, 4, 5, 3), "linear": (2, 3, 4, 5)}
    for name, layer in layers.items():
        found = []

        def seen(call, product, found=found):
            out = product(call.x)
            x, y = rows(call, out, 7, torch.Generator().manual_seed(0))
            found.append((x @ as_matrix(call, call.weight).mT, y))
            return out

        with torch.no_grad(), Reads({"w": layer.weight}, seen):
            layer(torch.randn(inputs.get(name, (2, 6, 7, 5))))
        torch.testing.assert_close(*found[0], rtol=1e-4, atol=1e-5)
        assert found[0][0].shape[1] <= 2 * 7


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.booleans())
def test_least_squares_from_moments_are_those_of_the_rows(seed, offsets):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(2, 50, 4, generator=generator, dtype=torch.float64) + 1
    y = torch.randn(2, 50, 3, generator=generator, dtype=torch.float64)
    moments = Moments.of(x[:, :20], y[:, :20]) + Moments.of(x[:, 20:], y[:, 20:])
    now = RidgeFit(torch.zeros(2, 3, 4, dtype=torch.float64), None, 0.0)
    found = solve(moments, moments, now, offsets=offsets)
    full = torch.cat([x, torch.ones(2, 50, 1, dtype=torch.float64)], 2) if offsets else x
    best = torch.linalg.lstsq(full, y).solution
    torch.testing.assert_close(found.matrix, best[:, :4].mT, rtol=1e-3, atol=1e-4)
    error = float((y - full @ best).square().sum())
    assert moments.error(found.matrix, found.offset) == pytest.approx(error, rel=1e-4)


@pytest.mark.parametrize("apart", [1e-2, 1e-3, 1e-5])
def test_inputs_that_all_but_say_the_same_are_not_told_apart_by_large_weights(apart):
    """Large weights of both signs would fit best, and in float16, or layer upon layer, compute nothing but rounding."""
    generator = torch.Generator().manual_seed(0)
    common, own = torch.randn(2, 1, 400, 1, generator=generator, dtype=torch.float64)
    moments = Moments.of(torch.cat([common, common + apart * own], 2), own)
    found = solve(moments, moments, RidgeFit(torch.ones(1, 1, 2, dtype=torch.float64), None, 0.0), offsets=False)
    assert float(found.matrix.abs().max()) < 20


def test_what_is_mostly_mean_is_repaired_though_its_spread_is_small():
    """Weights of common size give outputs that hardly vary, as those of gates: nothing is magnified."""
    generator = torch.Generator().manual_seed(0)
    x = 1 + 0.01 * torch.randn(1, 400, 4, generator=generator, dtype=torch.float64)
    moments = Moments.of(x, x.mean(2, keepdim=True))
    found = solve(moments, moments, RidgeFit(torch.zeros(1, 1, 4, dtype=torch.float64), None, 0.0), offsets=False)
    assert moments.error(found.matrix, None) < 1e-6 * float(moments.yy.sum())


def test_a_large_output_does_not_let_a_small_one_be_magnified():
    generator = torch.Generator().manual_seed(0)
    common, own, other = torch.randn(3, 1, 400, 1, generator=generator, dtype=torch.float64)
    x, y = torch.cat([common, common + 1e-3 * own, other], 2), torch.cat([own, 1e4 * other], 2)
    moments = Moments.of(x, y)
    now = RidgeFit(torch.tensor([[[1.0, 1.0, 0.0], [0.0, 0.0, 1e4]]], dtype=torch.float64), None, 0.0)
    assert float(solve(moments, moments, now, offsets=False).matrix[0, 0].abs().max()) < 100
