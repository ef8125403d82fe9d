"""Milliseconds asked for: the sum of layers, the loop that corrects it, and what is refused before any training."""

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from compress import prune
from compress.errors import PlanError
from compress.prune import Budget
from compress.prune.allocation import Limits
from compress.run.additive import AdditiveModel
from compress.run.filling import Shipping, filled, fixed_axes
from compress.run.fitting import LatencyFit, Reading, Target, Tried, _nearest, floor_of
from compress.run.probes import placed_layers
from deploy.errors import DeployError
from deploy.latency.profile import Timing, here
from deploy.latency.table import Network, Table


class Net(nn.Module):
    """Two convolutions, a depthwise one between them, and a head."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 64, 3, padding=1)
        self.deep = nn.Conv2d(64, 64, 3, padding=1, groups=64)
        self.last = nn.Conv2d(64, 64, 1)
        self.head = nn.Linear(64, 5)

    def forward(self, x):
        return self.head(self.last(self.deep(self.first(x)).relu()).relu().mean((2, 3)))


EXAMPLE = torch.rand(2, 3, 8, 8)
ROOMY = Limits(1, 8)


def layer_ms(probe):
    """A staircase of 16 channels with a little overhead; what is depthwise has steps of its own."""
    steps = -(-probe.outputs // 16)
    return 0.1 + steps * (1.0 if probe.layer.per_group else -(-probe.inputs // 16) * 0.25)


class Machine:
    """A machine whose layers take what ``layer_ms`` says, and whose networks what ``whole`` makes of their sum."""

    def __init__(self, whole=lambda total: total + 1.0):
        self.whole = whole
        self.networks = {}
        self.timed = []
        self.written = 0

    def write(self, model, path):
        layers = placed_layers(model, EXAMPLE)
        probes = [Probe(one.layer, *one.dense) for one in layers]
        self.networks[str(path)] = sum(map(layer_ms, probes))
        self.written += 1
        return path

    def timer(self, jobs, how):
        self.timed.append((len(jobs), how.layers))
        return [Timing(path=job.path, ms=self.ms_of(job.path), processes=(1.0,) * 3, load=(0.5,)) for job in jobs]

    def ms_of(self, path):
        if path in self.networks:
            return self.whole(self.networks[path])
        return layer_ms(self.probes[Path(path).name])

    def shipping(self, monkeypatch, **more):
        self.probes = {}
        monkeypatch.setattr(
            "compress.run.filling.write_probe", lambda probe, path: self.probes.update({path.name: probe})
        )
        return Shipping(self.write, timer=self.timer, **more)


class Probe:
    def __init__(self, layer, inputs, outputs):
        self.layer, self.inputs, self.outputs = layer, inputs, outputs


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    return Net().eval()


@pytest.fixture(scope="module")
def trace(net):
    return prune.trace(net, EXAMPLE)


@pytest.fixture(scope="module")
def scores(net, trace):
    return prune.score(trace, net, "l1").numpy()


def silent(done, total, text):
    """Nobody looks on."""


def fit_on(machine, monkeypatch, net, trace, scores, limits=ROOMY, **more):
    shipping = machine.shipping(monkeypatch, **more)
    layers = placed_layers(net, EXAMPLE)
    entries, _ = filled(layers, trace, shipping, silent)
    return LatencyFit(net, net, AdditiveModel(layers, entries, trace), scores, shipping, limits, silent)


def test_the_sum_of_layers_follows_the_widths(monkeypatch, net, trace, scores):
    model = fit_on(Machine(), monkeypatch, net, trace, scores).model
    kept = np.ones(trace.units, dtype=bool)
    assert model.widths(kept) == {"first": (3, 64), "deep": (64, 64), "last": (64, 64), "head": (64, 5)}
    assert model.ms(kept) == pytest.approx(0.4 + 1.0 + 4.0 + 4.0 + 1.0)
    group = next(g for g in trace.groups if g.name == "first")
    kept[group.units[:32]] = False
    assert model.widths(kept) == {"first": (3, 32), "deep": (32, 32), "last": (32, 64), "head": (64, 5)}
    assert model.ms(kept) == pytest.approx(0.4 + 0.5 + 2.0 + 2.0 + 1.0)
    steps = dict(model.steps(np.ones(trace.units, dtype=bool))["first"])
    assert steps[64] - steps[32] == pytest.approx(0.5 + 2.0 + 2.0)
    assert set(steps) == {8, 16, 24, 32, 40, 48, 56, 64}


def test_an_axis_that_no_cut_changes_is_measured_at_one_width(net, trace):
    assert fixed_axes(placed_layers(net, EXAMPLE), trace) == {
        ("first.weight", 1),
        ("deep.weight", 1),
        ("head.weight", 0),
    }


@pytest.mark.parametrize("share", [0.75, 0.5, 0.3])
def test_the_target_is_hit_although_the_sum_of_layers_is_off(monkeypatch, net, trace, scores, share):
    """The whole network takes twice its layers and then some: the first try misses, the loop corrects it."""
    machine = Machine(lambda total: 2 * total + 3.0)
    found = fit_on(machine, monkeypatch, net, trace, scores).fit(Budget(latency=share), Target(share))
    assert found.reading.share <= share * 1.05 and found.rounds <= 4
    assert machine.written == 1 + found.networks
    assert all(group.after % 16 == 0 for group in found.plan.groups)
    said = found.sentence(12.0, "int8 on openvino")
    assert said.startswith("Measured latency of the cut network, int8 on openvino: ")
    assert f"{share:.3f} asked for" in said and "12 s" in said
    prune.validate(net, found.plan)


def test_a_perfect_sum_needs_one_network(monkeypatch, net, trace, scores):
    found = fit_on(Machine(lambda total: total), monkeypatch, net, trace, scores).fit(Budget(latency=0.5), Target(0.5))
    assert found.reading.share <= 0.51 and found.additive_error < 0.01


def test_milliseconds_are_asked_for_as_they_are(monkeypatch, net, trace, scores):
    fit = fit_on(Machine(), monkeypatch, net, trace, scores)
    found = fit.fit(Budget(latency="6 ms"), Target.of(Budget(latency="6 ms")))
    assert found.reading.ms <= 6.0 * 1.05


def test_no_measured_network_is_slower_than_one_that_keeps_more(monkeypatch, net, trace, scores):
    """Widths between two steps take as long as the step above, so only steps are returned."""
    machine = Machine()
    fit = fit_on(machine, monkeypatch, net, trace, scores)
    shares = []
    for share in (0.9, 0.7, 0.5, 0.4):
        found = fit.fit(Budget(latency=share), Target(share))
        shares.append((found.reading.share, found.plan.costs["units_after"]))
    assert shares == sorted(shares, reverse=True) and shares[0][0] < 1


def test_of_two_networks_the_wider_one_is_taken_where_it_is_faster(monkeypatch, net, trace, scores):
    """Whatever lies nearer to the target: a network is not returned that a wider one was seen to outrun."""
    fit = fit_on(Machine(), monkeypatch, net, trace, scores)
    whole = np.ones(trace.units, dtype=bool)
    wide, narrow, other = whole.copy(), whole.copy(), whole.copy()
    wide[trace.groups[0].units[48:]] = narrow[trace.groups[0].units[32:]] = False
    other[trace.groups[-1].units[32:]] = False
    plan = fit._plan(whole, Budget(latency=1.0), fit.model.steps(whole))
    tried = [Tried(kept, 1.0, plan, Path("x"), Reading(ms, 10.0)) for kept, ms in ((wide, 4.8), (narrow, 5.0))]
    assert _nearest(tried, Target(0.5)) is tried[0]
    tried.append(Tried(other, 1.0, plan, Path("x"), Reading(4.9, 10.0)))
    assert _nearest(tried, Target(0.5)) is tried[2]


def test_another_bound_holds_as_well(monkeypatch, net, trace, scores):
    fit = fit_on(Machine(), monkeypatch, net, trace, scores)
    budget = Budget(latency=0.8, macs=0.3)
    found = fit.fit(budget, Target.of(budget))
    assert found.plan.costs["macs_after"] <= 0.3 * found.plan.costs["macs_before"]


def test_rounds_go_a_part_of_the_way_each(monkeypatch, net, trace, scores):
    """The second round cuts what the first one left, and its shares still refer to the whole network."""
    machine = Machine()
    fit = fit_on(machine, monkeypatch, net, trace, scores)
    budget = Budget(latency=0.5)
    first = fit.fit(budget, Target.of(budget, 1, 2))
    assert Target.of(budget, 1, 2, "cubic").share_of(7.0) == 0.5625
    assert first.asked == 0.75 and 0.5 < first.reading.share <= 0.75 * 1.05
    small = prune.apply(net, first.plan)
    again = prune.trace(small, EXAMPLE)
    values = prune.score(again, small, "l1").numpy()
    later = replace(fit, network=small, model=replace(fit.model, trace=again), scores=values)
    second = later.fit(budget, Target.of(budget, 2, 2, "cubic"))
    assert second.reading.share <= 0.5 * 1.05
    prune.validate(net, first.plan.then(second.plan))


def test_what_cannot_be_reached_is_told_with_the_widths_of_the_floor(monkeypatch, net, trace, scores):
    fit = fit_on(Machine(), monkeypatch, net, trace, scores, Limits(1, 48))
    with pytest.raises(
        PlanError, match=r"A latency of 0.2 is impossible here: .*first 48 of 64.*ask for latency: 0.\d+ or more"
    ):
        fit.fit(Budget(latency=0.2), Target(0.2))
    with pytest.raises(PlanError, match=r"0.2 is impossible here"):
        floor_of(fit, Target(0.2))
    assert isinstance(floor_of(fit, Target(0.9)), Reading)
    with pytest.raises(PlanError, match=r"A latency of 1 ms is impossible here: .*ask for latency: [\d.]+ ms or more"):
        fit.fit(Budget(latency="1 ms"), Target.of(Budget(latency="1 ms")))


# --- the table


def test_a_full_table_is_not_measured_again(monkeypatch, net, trace, scores, tmp_path):
    cache = tmp_path / "latency.json"
    fit_on(first := Machine(), monkeypatch, net, trace, scores, cache=cache)
    fit_on(second := Machine(), monkeypatch, net, trace, scores, cache=cache)
    assert all(layers for _, layers in first.timed) and first.timed and not second.timed


def test_a_table_of_another_version_is_measured_anew(monkeypatch, net, trace, scores, tmp_path):
    cache = tmp_path / "latency.json"
    fit_on(first := Machine(), monkeypatch, net, trace, scores, cache=cache)
    stale = json.loads(cache.read_text())
    for entry in stale["entries"]:
        entry["setting"]["version"] = "0.1"
        for point in entry["points"]:
            point["ms"] = 1e6
    cache.write_text(json.dumps(stale))
    fit = fit_on(second := Machine(), monkeypatch, net, trace, scores, cache=cache)
    assert len(second.timed) == len(first.timed)
    assert fit.model.ms(np.ones(trace.units, dtype=bool)) < 100


def test_what_int8_leaves_in_fp32_is_measured_in_fp32(net):
    layers = placed_layers(net, EXAMPLE)
    shipping = Shipping(lambda model, path: path, precision="int8", kept=("depthwise", "first"))
    assert shipping.precisions(layers) == {"first": "fp32", "deep": "fp32", "last": "int8", "head": "int8"}


def device_table(monkeypatch, net, trace, whole, tmp_path):
    """What ``niwaki profile`` brings back from a device: layers and two whole networks."""
    machine = Machine()
    layers = placed_layers(net, EXAMPLE)
    filled(layers, trace, machine.shipping(monkeypatch, cache=tmp_path / "t.json"), silent)
    table = Table.read(tmp_path / "t.json")
    device = here("onnxruntime", "fp32", 1).model_copy(update={"device": "a phone", "version": "9.9"})
    entries = tuple(entry.model_copy(update={"setting": device}) for entry in table.entries)
    model = AdditiveModel(layers, {one.name: Table(entries=entries).entry(one.layer, device) for one in layers}, trace)
    kept = np.ones(trace.units, dtype=bool)
    networks = [Network(name="dense", setting=device, widths=model.widths(kept), ms=whole(model.ms(kept)))]
    for group in trace.groups:
        kept[group.units[16:]] = False
    networks.append(Network(name="narrow", setting=device, widths=model.widths(kept), ms=whole(model.ms(kept))))
    return Table(entries=entries, networks=tuple(networks))


def test_a_devices_table_plans_without_measuring_here(monkeypatch, net, trace, scores, tmp_path):
    table = device_table(monkeypatch, net, trace, lambda total: 2 * total + 3.0, tmp_path)
    machine = Machine()
    found = fit_on(machine, monkeypatch, net, trace, scores, table=table).fit(Budget(latency=0.6), Target(0.6))
    assert machine.timed == [] and machine.written == 0 and found.networks == 0
    assert 0.4 < found.reading.share <= 0.6
    assert "device's table predicts" in found.sentence(0.0, "fp32 on onnxruntime")
    phone = Machine(lambda total: 2 * total + 3.0)
    whole, cut = (phone.write(model, Path(name)) for name, model in (("a", net), ("b", prune.apply(net, found.plan))))
    assert phone.ms_of(str(cut)) / phone.ms_of(str(whole)) == pytest.approx(found.reading.share, rel=0.02)


def test_a_devices_table_of_other_threads_is_refused(monkeypatch, net, trace, scores, tmp_path):
    table = device_table(monkeypatch, net, trace, lambda total: total, tmp_path)
    with pytest.raises(DeployError, match="none for onnxruntime in fp32 with 4 thread"):
        fit_on(Machine(), monkeypatch, net, trace, scores, table=table, threads=4)


def fine_ms(reads, makes):
    """A staircase of 8 channels."""
    return 0.1 + -(-reads // 8) * -(-makes // 8)


class Uneven(Machine):
    """A machine on which each layer takes another multiple of what its small file took."""

    def __init__(self, factors):
        super().__init__(lambda total: total)
        self.factors = factors

    def write(self, model, path):
        layers = placed_layers(model, EXAMPLE)
        self.networks[str(path)] = sum(self.factors.get(one.name, 1.0) * fine_ms(*one.dense) for one in layers)
        return path

    def ms_of(self, path):
        probe = self.probes.get(Path(path).name)
        return self.networks[path] if probe is None else fine_ms(probe.inputs, probe.outputs)


def chain_of_unlike_layers(seed):
    """Thirteen convolutions, each with weights of another size."""
    torch.manual_seed(seed)
    middle = [layer for _ in range(11) for layer in (nn.ReLU(), nn.Conv2d(64, 64, 3, padding=1))]
    net = nn.Sequential(nn.Conv2d(3, 64, 3, padding=1), *middle, nn.Conv2d(64, 5, 1)).eval()
    for layer in net:
        if isinstance(layer, nn.Conv2d):
            layer.weight.data *= float(torch.rand(1)) + 0.1
    return net


@pytest.mark.parametrize("seed", [14, 21])
def test_layers_that_are_off_each_by_another_factor_are_mixed_from_two_networks(monkeypatch, seed):
    """Corrected by one number alone, the loop jumps to and fro: it ends 10 % and more away, or in a refusal."""
    net = chain_of_unlike_layers(seed)
    drawn = np.random.default_rng(seed).choice([0.2, 0.5, 1, 2, 5], 12)
    machine = Uneven({str(2 * place): float(factor) for place, factor in enumerate(drawn)})
    trace = prune.trace(net, EXAMPLE)
    fit = fit_on(machine, monkeypatch, net, trace, prune.score(trace, net, "l1").numpy())
    found = fit.fit(Budget(latency=0.4), Target(0.4))
    assert 0.4 * 0.95 <= found.reading.share <= 0.4 * 1.05 and found.rounds <= 4
    prune.validate(net, found.plan)


class Reordering(Uneven):
    """A machine that brings numbers into another order wherever sixteens meet other widths."""

    def __init__(self, each):
        super().__init__({})
        self.each = each

    def write(self, model, path):
        super().write(model, path)
        orders = [one.dense[1] % 16 == 0 for one in placed_layers(model, EXAMPLE)]
        self.networks[str(path)] += self.each * sum(a != b for a, b in pairwise(orders))
        return path


@pytest.mark.parametrize(("each", "seed"), [(8.0, 1), (16.0, 3), (30.0, 2)])
def test_times_that_jump_between_two_networks_are_met_by_measuring_several_at_once(monkeypatch, each, seed):
    """One network at a time ended 15 % too fast, 12 % too fast and in a refusal."""
    net = chain_of_unlike_layers(seed)
    trace = prune.trace(net, EXAMPLE)
    fit = fit_on(Reordering(each), monkeypatch, net, trace, prune.score(trace, net, "l1").numpy())
    found = fit.fit(Budget(latency=0.4), Target(0.4))
    assert 0.4 * 0.95 <= found.reading.share <= 0.4 * 1.05
    assert found.rounds <= 4 and found.networks <= 1 + 3 * (found.rounds - 1)
    assert f"{found.networks} network(s) measured in {found.rounds} round(s)" in found.sentence(
        1.0, "fp32 on onnxruntime"
    )


def test_a_mixed_network_keeps_the_other_bounds(monkeypatch, net, trace, scores):
    """Nothing is taken from the slower network that another bound forbids, though there are milliseconds for it."""
    fit = fit_on(Machine(), monkeypatch, net, trace, scores)
    whole = np.ones(trace.units, dtype=bool)
    narrow = fit.model.narrowest(scores, ROOMY)
    tried = [
        Tried(kept, fit.model.ms(kept), fit._plan(kept, Budget(latency=1.0), fit.model.steps(kept)), Path("x"), reading)
        for kept, reading in ((narrow, Reading(2.0, 10.0)), (whole, Reading(9.9, 10.0)))
    ]
    for bound in (0.9, 0.3):
        several = fit._mixed(tried, 0.8, Budget(latency=0.8, macs=bound))
        assert several and len({mixed.tobytes() for mixed in several}) == len(several)
        for mixed in several:
            assert narrow.sum() < mixed.sum() < whole.sum()
            assert trace.macs(mixed) <= bound * trace.macs(whole)
    assert fit._mixed(tried[:1], 0.8, Budget(latency=0.8)) == []
