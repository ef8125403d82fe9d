"""Criteria of activations by hand, against exhaustive references, and on every kind of unit."""

import itertools

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from prune_nets import Net, conv, image
from test_criteria_weights import free
from torch import nn
from torch.nn import functional as F

from compress import prune
from compress.errors import PlanError
from compress.prune.criteria import second_order
from compress.prune.criteria.lasso import descend, penalties

pytestmark = pytest.mark.heavy


def reader(matrix, channels=3):
    """Channels of the input through a 1x1 convolution, relu, and a reader with the weights of `matrix`."""
    wide = len(matrix[0])
    net = Net(
        lambda m, x: m.b(F.relu(m.a(x))), a=nn.Conv2d(channels, wide, 1), b=nn.Conv2d(wide, len(matrix), 1)
    ).double()
    with torch.no_grad():
        net.b.weight.copy_(torch.tensor(matrix).reshape(len(matrix), wide, 1, 1))
    return net


def read(net, x):
    """What `b` reads, one row a position: [rows, channels]."""
    with torch.no_grad():
        return F.relu(net.a(x)).movedim(1, -1).flatten(0, -2)


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    return reader(torch.randn(4, 5).tolist())


@pytest.fixture(scope="module")
def x():
    return image(6, side=4).double()


def scored(net, x, name, **settings):
    trace = prune.trace(net, x[:2])
    scores = prune.score(trace, net, name, data=[x[:2], x[2:]], normalize="none", **settings)
    return scores[trace.slots["a.weight", 0]]


def test_apoz_criteria_are_shares_that_are_not_zero(net, x):
    torch.testing.assert_close(scored(net, x, "apoz"), (read(net, x) != 0).double().mean(0))


def test_mean_activation_criteria(net, x):
    torch.testing.assert_close(scored(net, x, "mean_activation"), read(net, x).abs().mean(0))


def test_hrank_criteria_are_mean_ranks(net, x):
    with torch.no_grad():
        maps = F.relu(net.a(x))
    expected = [np.mean([np.linalg.matrix_rank(m) for m in maps[:, c].numpy()]) / 4 for c in range(5)]
    torch.testing.assert_close(scored(net, x, "hrank"), torch.tensor(expected, dtype=torch.float64))


def table(net, x):
    """Sums of products of what the channels add to the reader's outputs, as a share of the whole."""
    parts = read(net, x).T[:, :, None] * net.b.weight.detach()[:, :, 0, 0].T[:, None, :]
    products = torch.einsum("iro,jro->ij", parts, parts)
    return products / products.sum()


def test_thinet_criteria_are_the_greedy_choice(net, x):
    products, gone, expected = table(net, x), [], {}
    while len(gone) < 5:
        left = [i for i in range(5) if i not in gone]
        costs = {i: float(products[np.ix_([*gone, i], [*gone, i])].sum()) for i in left}
        best = min(costs, key=costs.get)
        gone.append(best)
        expected[best] = max(costs[best], *expected.values(), 0) if expected else costs[best]
    found = scored(net, x, "thinet")
    assert torch.argsort(found).tolist() == gone
    assert found.tolist() == pytest.approx([expected[i] for i in range(5)], rel=1e-6)


def test_second_order_criteria_are_the_error_of_solving_again(net, x):
    """The first to go against trying each: drop a column, fit the others with an offset, measure."""
    rows = read(net, x)
    outputs = rows @ net.b.weight.detach()[:, :, 0, 0].T
    whole = float((outputs - outputs.mean(0)).square().sum())

    def error(gone):
        left = torch.cat([rows[:, [i for i in range(5) if i not in gone]], torch.ones(len(rows), 1)], 1)
        return float((outputs - left @ torch.linalg.lstsq(left, outputs).solution).square().sum()) / whole

    found, gone = scored(net, x, "second_order"), []
    for _ in range(4):
        costs = {i: error([*gone, i]) for i in range(5) if i not in gone}
        gone.append(min(costs, key=costs.get))
        assert float(found[gone[-1]]) == pytest.approx(costs[gone[-1]], rel=2e-2, abs=1e-4)
    assert torch.argsort(found).tolist()[:4] == gone


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 3), st.integers(1, 2), st.integers(2, 9))
def test_the_surgeon_removes_columns_as_solving_each_choice_from_nothing_does(seed, width, groups, units):
    """tr(W_S ((H^-1)_SS)^-1 W_S^T) of all that is gone, by one Schur complement of the moments."""
    torch.manual_seed(seed)
    n = width * units
    x = torch.randn(groups, 4 * n, n, dtype=torch.float64)
    xx, w = x.mT @ x, torch.randn(groups, 4, n, dtype=torch.float64)
    at = torch.randperm(n).reshape(units, width)
    surgeon = second_order._Surgeon(w.clone(), torch.linalg.inv(xx), at, 2.0)
    lost, gone = 0.0, torch.empty(0, dtype=torch.long)
    for unit in torch.randperm(units)[:-1].tolist():
        lost += float(surgeon.errors()[unit])
        surgeon.remove(unit)
        gone = torch.cat([gone, at[unit]])
        left = torch.tensor([i for i in range(n) if i not in gone])
        across = xx[:, gone][:, :, left]
        schur = xx[:, gone][:, :, gone] - across @ torch.linalg.solve(xx[:, left][:, :, left], across.mT)
        slow = float(((w[:, :, gone] @ schur) * w[:, :, gone]).sum()) / 2.0
        assert lost == pytest.approx(slow, rel=1e-7)
    assert surgeon.errors().count_nonzero() <= 1, "what is gone costs nothing more"


def test_second_order_criteria_take_rounding_about_a_large_mean_for_nothing(x, monkeypatch):
    """In float32 such moments have eigenvalues below zero, by whose inverse units cost less than nothing."""
    torch.manual_seed(0)
    net = reader(torch.randn(2, 24).tolist()).float()
    with torch.no_grad():
        net.a.weight[:23] *= 1e-6
        net.a.bias[:23] = 3000.0
    inverses = []
    errors = second_order._Surgeon.errors
    monkeypatch.setattr(
        second_order._Surgeon, "errors", lambda own: (inverses.append(own.inverse.clone()), errors(own))[1]
    )
    found = scored(net, x.float(), "second_order")
    assert all(bool((torch.linalg.eigvalsh(one) > 0).all()) for one in inverses[:1])
    assert torch.isfinite(found).all() and (found >= 0).all()


def test_second_order_criteria_see_that_a_copy_is_not_needed(x):
    """Two channels alike: one of them goes first, at no cost, whatever the weights that read it are."""
    net = reader([[1.0, 9.0, 2.0, -3.0], [-2.0, 8.0, 1.0, 1.0]])
    with torch.no_grad():
        net.a.weight[1], net.a.bias[1] = net.a.weight[0], net.a.bias[0]
    found = scored(net, x, "second_order")
    assert int(found.argmin()) in (0, 1)
    assert float(found.min()) < 1e-3
    assert float(found[1 - int(found.argmin())]) > 1e3 * float(found.min()), "the one that is left is needed"


def test_kfac_criteria_weigh_errors_by_the_loss(x):
    """Of one output with a slope of 3 at each of 16 positions: half of 16 x 9 x the error of the output."""
    torch.manual_seed(1)
    net = reader([[1.0, -2.0, 0.5, 1.5]])
    shares = scored(net, x, "second_order")
    found = scored(net, x, "kfac", loss=lambda out, _: 3 * out.sum() / len(out))
    outputs = read(net, x) @ net.b.weight.detach()[:, :, 0, 0].T
    variance = float((outputs - outputs.mean(0)).square().mean())
    torch.testing.assert_close(found, shares * 16 * 9 / 2 * variance, rtol=2e-3, atol=1e-6)


def test_a_trial_of_a_greedy_choice_ends_with_the_first_unit_of_a_group(x, monkeypatch):
    net = reader([[1.0, -2.0, 0.5, 1.5]])
    removed = []
    remove = second_order._Surgeon.remove
    monkeypatch.setattr(second_order._Surgeon, "remove", lambda own, unit: (removed.append(unit), remove(own, unit)))
    trace = prune.trace(net, x)
    asked = {"data": [(x, None)], "loss": lambda out, _: out.sum() / len(out)}
    whole = prune.score(trace, net, "kfac", **asked)
    assert len(removed) == 4
    removed.clear()
    trial = prune.score(trace, net, "kfac", **asked, trial=True)
    free = trace.slots["a.weight", 0]
    assert removed == [int(whole[free].argmin())]
    assert float(trial[free][removed[0]]) == float(whole[free].min()) > 0
    assert trial.count_nonzero() == 1


def test_kfac_criteria_spare_what_only_an_output_without_a_slope_reads(x):
    """The loss looks at the first output alone: a channel that the second one reads costs nothing."""
    net = reader([[1.0, 2.0, 0.0], [0.0, 0.0, 9.0]])
    found = scored(net, x, "kfac", loss=lambda out, _: out[:, 0].square().mean())
    assert float(found[2]) < 1e-6 * float(found.max())
    assert float(scored(net, x, "second_order")[2]) > 1e-2


def test_regression_criteria_are_penalties_of_the_lasso(net, x):
    products = table(net, x).numpy()
    found = scored(net, x, "regression").numpy()
    for unit, penalty in enumerate(found):
        if penalty > 2e-4 * found.max():
            assert descend(products, products.sum(1), penalty / 1.05, np.zeros(5), 2000)[unit] != 0
            assert descend(products, products.sum(1), penalty * 1.35, np.zeros(5), 2000)[unit] == 0


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 6))
def test_the_lasso_of_criteria_meets_its_conditions(seed, n):
    """A slope of at most the penalty where a coefficient is zero, of exactly that where it is not."""
    root = np.random.default_rng(seed).normal(size=(n, n + 2))
    products = root @ root.T
    wanted = products.sum(1)
    penalty = 0.3 * np.abs(wanted).max()
    b = descend(products, wanted, penalty, np.zeros(n), 5000)
    slope = wanted - products @ b
    assert (np.abs(slope) <= penalty * (1 + 1e-3)).all()
    assert np.allclose(slope[b != 0], penalty * np.sign(b[b != 0]), rtol=1e-2)
    path = penalties(products)
    assert (path > 0).all()
    assert path.max() <= np.abs(wanted).max() * 1.02


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 1000), st.floats(0.1, 10))
def test_criteria_of_what_readers_see_do_not_depend_on_scale(seed, factor):
    """Errors are shares of the readers' outputs: a reader with larger weights counts no more."""
    torch.manual_seed(seed)
    net, x = reader(torch.randn(3, 4).tolist()), image(4, side=3, seed=seed).double()
    before = {name: scored(net, x, name) for name in ("thinet", "second_order")}
    with torch.no_grad():
        net.b.weight.mul_(factor)
    for name, scores in before.items():
        torch.testing.assert_close(scored(net, x, name), scores, rtol=1e-6, atol=1e-9)


def test_the_greedy_choice_of_criteria_is_near_the_best_set(net, x):
    """All pairs are tried: what greed finds is no more than twice the best."""
    products = table(net, x).numpy()
    gone = torch.argsort(scored(net, x, "thinet")).tolist()[:2]
    costs = [products[np.ix_(pair, pair)].sum() for pair in itertools.combinations(range(5), 2)]
    assert products[np.ix_(gone, gone)].sum() <= 2 * min(costs) + 1e-12


def grouped(m, x):
    return m.d(F.relu(m.c(F.relu(m.b(F.relu(m.a(x)))))).flatten(1))


def joined(m, x):
    return m.c(torch.cat([F.relu(m.a(x)), F.relu(m.b(x))], 1))


ZOO = {
    "grouped, depthwise and flattened": lambda: (
        Net(grouped, a=conv(3, 8), b=conv(8, 8, groups=4), c=conv(8, 8, groups=8), d=nn.Linear(8 * 36, 4)), image(2, 6),
    ),
    "side by side": lambda: (Net(joined, a=conv(3, 4), b=conv(3, 5), c=conv(9, 4)), image(2, 6)),
    "transposed": lambda: (
        Net(lambda m, x: m.b(F.relu(m.a(x))), a=conv(3, 6), b=nn.ConvTranspose2d(6, 4, 2, 2)), image(2, 6),
    ),
    "attention": lambda: (torchvision.models.VisionTransformer(8, 4, 2, 2, 8, 16, num_classes=4), image(2, 8)),
    "windows": lambda: (
        torchvision.models.SwinTransformer([2, 2], 8, [1, 1], [2, 2], [2, 2], num_classes=4), image(2, 8),
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", ZOO)
@pytest.mark.parametrize("name", [n for n, c in prune.CRITERIA.items() if c.needs != "weights"])
def test_criteria_work_for_every_unit_that_the_trace_finds(kind, name):
    torch.manual_seed(0)
    net, x = ZOO[kind]()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    trace = prune.trace(net, x)

    def loss(outputs, _):
        return outputs.square().mean()

    if kind == "transposed" and name in ("thinet", "regression", "second_order", "kfac"):
        with pytest.raises(PlanError, match="cannot judge them"):
            prune.score(trace, net, name, data=[x])
        return
    scores = prune.score(trace, net, name, data=[x], loss=loss)
    assert bool(torch.isfinite(scores).all())
    assert bool((scores[free(trace)] != 0).any())
    plan = prune.plan(trace, scores, ratio=0.3)
    assert prune.apply(net, plan)(x).shape == net(x).shape


def test_criteria_judge_units_that_no_weight_reads_where_they_are_made():
    """Queries and keys meet only each other."""
    torch.manual_seed(0)
    net = Net(
        lambda m, x: m.o((m.q(x) @ m.k(x).transpose(1, 2)).softmax(-1) @ x).mean(1),
        q=nn.Linear(5, 6), k=nn.Linear(5, 6), o=nn.Linear(5, 4),
    )  # fmt: skip
    x = torch.randn(3, 7, 5)
    trace = prune.trace(net, x)
    assert [len(group.units) for group in trace.groups] == [6]
    for name in ("fisher", "taylor_gate", "apoz", "mean_activation", "taylor"):
        assert bool((prune.score(trace, net, name, data=[x])[free(trace)] > 0).all())
    with pytest.raises(PlanError, match="was seen to read"):
        prune.score(trace, net, "thinet", data=[x])
