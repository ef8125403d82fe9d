"""Sensitivity: each group cut alone, against cutting it by hand; what criteria foresaw of it."""

import math

import numpy as np
import pytest
import torch
from prune_nets import image
from test_criteria_weights import CLASSES, residual
from torch.nn import functional as F

from compress import prune
from compress.errors import PlanError
from compress.prune.planning import plan_from_kept


@pytest.fixture(scope="module")
def net():
    return residual().eval()


@pytest.fixture(scope="module")
def trace(net):
    return prune.trace(net, image(2))


@pytest.fixture(scope="module")
def data():
    return [(image(n, seed=n), torch.arange(n) % CLASSES) for n in (3, 5)]


def test_sensitivity_is_the_loss_of_cutting_one_group_alone(net, trace, data):
    scores = prune.score(trace, net, "l1")
    found = prune.measure_sensitivity(trace, net.train(), scores, data, ratios=(0.4, 0.8))
    assert net.training
    net.eval()
    x, y = (torch.cat(parts) for parts in zip(*data, strict=True))
    assert found.images == 8
    assert found.loss == pytest.approx(float(F.cross_entropy(net(x), y)), rel=1e-5)
    assert found.accuracy == pytest.approx(float((net(x).argmax(1) == y).float().mean()))
    assert [curve.group for curve in found.curves] == [group.name for group in trace.groups]
    for group, curve in zip(trace.groups, found.curves, strict=True):
        lowest = group.units[np.argsort(scores[group.units].numpy())]
        for cell in curve.cells:
            gone = round(cell.ratio * len(group.units))
            assert set(cell.units) == set(lowest[:gone].tolist())
            kept = np.ones(trace.units, dtype=bool)
            kept[list(cell.units)] = False
            small = prune.apply(net, plan_from_kept(trace, kept))
            assert cell.loss == pytest.approx(float(F.cross_entropy(small(x), y)), rel=1e-5)
            assert cell.accuracy == pytest.approx(float((small(x).argmax(1) == y).float().mean()))
    assert prune.Sensitivity.model_validate_json(found.model_dump_json()) == found


def test_sensitivity_without_labels_is_against_the_networks_own_answers(net, trace, data):
    found = prune.measure_sensitivity(trace, net, prune.score(trace, net), [x for x, _ in data], ratios=(0.5,))
    assert found.accuracy is None
    # Nothing is nearer to its answers than the network itself.
    assert all(cell.loss > found.loss for curve in found.curves for cell in curve.cells)


def test_rank_correlation_of_criteria_with_what_was_measured(net, trace, data):
    scores = prune.score(trace, net, "l1")
    found = prune.measure_sensitivity(trace, net, scores, data, ratios=(0.2, 0.4, 0.6))
    cells = [cell for curve in found.curves for cell in curve.cells]
    rose = np.array([cell.loss for cell in cells])
    for name in ("l1", "fisher"):
        values = prune.score(trace, net, name, data=data).numpy()
        said = np.array([values[list(cell.units)].sum() for cell in cells])
        concordant = np.corrcoef(np.argsort(np.argsort(said)), np.argsort(np.argsort(rose)))[0, 1]
        assert prune.rank_correlation(found, torch.from_numpy(values)) == pytest.approx(concordant)
    assert math.isnan(prune.rank_correlation(found, torch.zeros(trace.units)))


def test_what_foresees_each_cut_correlates_fully(net, trace, data):
    found = prune.measure_sensitivity(trace, net, prune.score(trace, net), data, ratios=(0.01,))
    scores = torch.zeros(trace.units)
    for curve in found.curves:
        (cell,) = curve.cells
        assert len(cell.units) == 1
        scores[cell.units[0]] = cell.loss
    assert prune.rank_correlation(found, scores) == pytest.approx(1)
    assert prune.rank_correlation(found, -scores) == pytest.approx(-1)


def test_sensitivity_refuses_what_makes_no_sense(net, trace, data):
    with pytest.raises(PlanError, match=r"ratio of 1\.0 is impossible"):
        prune.measure_sensitivity(trace, net, prune.score(trace, net), data, ratios=(1.0,))
    with pytest.raises(PlanError, match="no sensitivity to measure"):
        prune.measure_sensitivity(prune.protect(trace, "*"), net, torch.zeros(trace.units), data)
    with pytest.raises(PlanError, match="loss of batch 1 is nan"):
        prune.measure_sensitivity(trace, net, prune.score(trace, net), data, loss=lambda out, _: out.sum() * math.nan)
