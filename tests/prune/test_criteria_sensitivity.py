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
from compress.prune.curves import Cell, Curve
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


# Ratios from curves --------------------------------------------------------------------------------------


def curve(name, channels, *cells):
    return Curve(
        group=name,
        channels=channels,
        cells=[Cell(ratio=ratio, units=(), loss=loss, accuracy=None) for ratio, loss in cells],
    )


def test_a_curve_is_straight_between_cells_and_never_falls():
    rises = curve("a", 8, (0.25, 1.5), (0.5, 1.2), (0.75, 4.0)).rises(1.0)
    # 0.5 at a quarter, no less at the half, 3 at three quarters, and on at 4 a whole.
    assert rises.tolist() == pytest.approx([0.25, 0.5, 0.5, 0.5, 1.75, 3.0, 3.5, 4.0])


def test_a_plan_by_curves_spares_what_costs_most(net, trace, data):
    scores = prune.score(trace, net)
    found = prune.measure_sensitivity(trace, net, scores, data, ratios=(0.25, 0.5, 0.75))
    plan = prune.plan(trace, scores, budget=prune.Budget(macs=0.6), curves=found)
    assert plan.costs["macs_after"] <= 0.6 * plan.costs["macs_before"]
    assert plan.asked["scope"] == "sensitivity"
    rises = found.rises(trace)
    gone = [group.before - group.after for group in plan.groups]
    reached = max(rise[count - 1] for rise, count in zip(rises, gone, strict=True) if count)
    for group, rise, count in zip(plan.groups, rises, gone, strict=True):
        assert count == group.before - 1 or rise[count] >= reached
    # Within a group the lowest scores went.
    for group, count in zip(trace.groups, gone, strict=True):
        lowest = set(group.units[np.argsort(scores[group.units].numpy(), kind="stable")][:count].tolist())
        slot = next(slot for slot in group.slots if trace.roles[slot] == "producer")
        left = set(trace.slots[slot][plan.kept_indices(slot, len(trace.slots[slot]))].tolist())
        assert set(group.units.tolist()) - left == lowest


def test_another_networks_curves_are_refused(net, trace):
    other = prune.Sensitivity(loss=1.0, accuracy=None, images=1, curves=[curve("nowhere", 3, (0.5, 2.0))])
    with pytest.raises(PlanError, match=f"no curve of the group '{trace.groups[0].name}'"):
        prune.plan(trace, prune.score(trace, net), budget=prune.Budget(macs=0.6), curves=other)
    with pytest.raises(PlanError, match="Not a measured sensitivity"):
        prune.Sensitivity.from_json('{"curves": 3}')


def test_correlations_name_what_cannot_judge(net, trace, data):
    found = prune.measure_sensitivity(trace, net, prune.score(trace, net), data, ratios=(0.5,))

    def scored(name):
        if name == "thinet":
            raise PlanError("it cannot")
        return prune.score(trace, net, name) if name == "l1" else torch.zeros(trace.units)

    said = prune.correlations(found, scored, criteria=("l1", "thinet", "random"))
    assert said["l1"] == prune.rank_correlation(found, prune.score(trace, net))
    assert said["thinet"] is said["random"] is None


def test_a_measure_of_ones_own_takes_the_place_of_data(net, trace):
    told = []
    found = prune.measure_sensitivity(
        trace,
        net,
        prune.score(trace, net),
        ratios=(0.5,),
        measure=lambda network: (float(sum(p.numel() for p in network.parameters())), 0.25, 7),
        advance=lambda done, total, group: told.append((done, total, group)),
    )
    assert (found.accuracy, found.images) == (0.25, 7)
    assert all(cell.loss < found.loss for own in found.curves for cell in own.cells)
    assert told == [(n, len(trace.groups), group.name) for n, group in enumerate(trace.groups, 1)]
