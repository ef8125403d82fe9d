"""torchvision's classifiers and segmenters, half of each free group gone: exact, small and still trainable.

Plain pytest takes a sample of them, `-m zoo` all the others, `-m 'zoo(part=3)'` a seventh of the large ones; detectors
have tests of their own.
"""

from contextlib import nullcontext

import pytest
import torch
import torchvision
import zoo_cases
from filelock import FileLock
from prune_nets import draw, image
from torch import nn
from zoo_cases import CLASSES, NAMES, SAMPLE, TASKS, Case, prune_zoo
from zoo_parts import DAYS, LIGHT, PARTS, rows, zoo

from compress import cost, prune
from compress.prune.rules import tensors

pytestmark = pytest.mark.heavy

EVERY = [pytest.param(name, marks=() if name in SAMPLE else zoo(name)) for name in NAMES]
# Peak of `check`, which holds a network of full size and its gradients in float64, in GB.
NEEDS = {"vit_l_16": 8, "vit_l_32": 8, "vit_h_14": 14, "regnet_y_128gf": 14}
# Layers that give the classes, and how many outputs they make in training; one each where nothing is said.
HEADS = {"googlenet": (3, 3), "inception_v3": (2, 2), "lraspp_mobilenet_v3_large": (2, 1)}
HEADS |= {name: (2, 2) for name in NAMES if name.startswith(("fcn", "deeplabv3"))}


@pytest.fixture(scope="module", params=EVERY)
def case(request, tmp_path_factory):
    # Processes that test side by side hold one large network at a time.
    lock = FileLock(tmp_path_factory.getbasetemp().parent / "large") if request.param in NEEDS else nullcontext()
    with lock:
        zoo_cases.give_back()
        free = zoo_cases.free_gigabytes()
        if free < NEEDS.get(request.param, 0):
            pytest.skip(f"needs {NEEDS[request.param]} GB of free memory, there are {free:.1f}")
        yield Case(request.param)


def test_half_of_each_free_group_goes_and_the_body_is_small(case):
    assert case.trace.unknown_ops == ()
    for group in case.plan.groups:
        assert group.before // 2 <= group.after <= -(-group.before // 2), group
    parameters = dict(case.model.named_parameters())
    given = prune_zoo.outputs(case.trace)
    assert {parameters[name].shape[0] for name in given} == {CLASSES}
    assert len({name.rpartition(".")[0] for name in given}) == HEADS.get(case.name, (1, 1))[0]
    share = prune_zoo.body_kept(case.trace, case.model, case.cut())
    assert share <= prune_zoo.LIMITS[prune_zoo.kind(case.name)]
    # The page's figures are those of the network at its own size, with a thousand classes.
    row = page()[case.name]
    assert share == pytest.approx(float(row["body kept"].rstrip("%")) / 100, abs=0.005)
    assert len(case.trace.groups) == int(row["free groups"])


def test_the_cut_is_the_mask(case):
    proof = prune.check(case.model, case.plan, case.images)
    assert proof.eval_forward <= 1e-10
    assert max(proof.train_forward, proof.train_gradient) <= 1e-8
    assert proof.train_mode


def test_the_cut_runs_and_trains(case):
    small = case.cut().float()
    batch, _, side, _ = case.images.shape
    segmenter = TASKS[case.name] == "segmentation"
    shape = (batch, CLASSES, side, side) if segmenter else (batch, CLASSES)
    in_training = HEADS.get(case.name, (1, 1))[1]
    with torch.no_grad():
        outputs = tensors(small.eval()(case.images))
    assert [tuple(out.shape) for out in outputs] == [shape] * (in_training if segmenter else 1)
    assert all(bool(out.isfinite().all()) for out in outputs)
    before = [p.detach().clone() for p in small.parameters()]
    optimizer = torch.optim.SGD(small.train().parameters(), lr=1e-3)
    outputs = tensors(small(case.images))
    assert [tuple(out.shape) for out in outputs] == [shape] * in_training
    loss = sum(out.square().mean() for out in outputs)
    loss.backward()
    assert bool(loss.isfinite())
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in small.parameters())
    optimizer.step()
    assert all(bool(p.isfinite().all()) for p in small.parameters())
    assert not all(torch.equal(p, was) for p, was in zip(small.parameters(), before, strict=True))


def test_pruning_nothing_is_the_identity(case):
    nothing = prune.plan(case.trace, torch.zeros(case.trace.units), ratio=0.0, scope="group")
    assert (nothing.slots, nothing.attributes, nothing.substitutions) == ({}, {}, {})
    same = prune.apply(case.model, nothing)
    assert [type(m) for m in same.modules()] == [type(m) for m in case.model.modules()]
    expected = case.model.state_dict()
    assert same.state_dict().keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in same.state_dict().items())
    images = case.images.to(case.dtype)
    with torch.no_grad():
        pairs = zip(tensors(same.eval()(images)), tensors(case.model.eval()(images)), strict=True)
        assert all(torch.equal(got, want) for got, want in pairs)


def test_the_plan_is_text_and_back(case):
    assert prune.Plan.from_json(case.plan.to_json()) == case.plan


# Other plans ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["mobilenet_v2", "resnet18", "densenet121", "resnext50_32x4d", "efficientnet_b0", "regnet_y_400mf"]
)
def test_half_the_macs_and_nothing_else(name):
    net, x = zoo_cases.filled(name), image(4, 64)
    trace = prune.trace(net, x[:1])
    assert set(trace.protected.values()) == {"graph input", "graph output"}
    plan = prune.plan(trace, prune.score(trace, net), budget=prune.Budget(macs=0.5), round_to=4, min_kept=4)
    assert 0.4 <= plan.costs["macs_after"] / plan.costs["macs_before"] <= 0.5
    prune.check(net, plan, x)
    small = prune.apply(net, plan)
    assert cost.macs(small, x) == plan.costs["macs_after"]
    assert cost.macs(net, x) == plan.costs["macs_before"]


def test_shufflenet_keeps_its_shuffles_and_is_never_cut_wrongly():
    """Chained shuffles and halves tie a stage's channels into one; what only one branch sees is free."""
    torch.manual_seed(0)
    net, x = torchvision.models.ShuffleNetV2([2, 1, 1], [8, 16, 24, 32, 40], num_classes=7).eval(), image(4, 64)
    trace = prune.trace(net, x[:1])
    assert any("branch2" in group.name for group in trace.groups)
    for seed in range(3):
        prune.check(net, draw(trace, seed), x)


# The page of all of them ---------------------------------------------------------------------------------


def page():
    """Rows of docs/zoo.md by model, each a dictionary by column."""
    return {row[0]: dict(zip(prune_zoo.HEAD, row, strict=True)) for row in rows()}


def test_every_network_is_in_one_part_and_the_sevenths_are_alike():
    size = {name: float(row["parameters"].removesuffix(" M")) for name, row in page().items()}
    assert {name for name, part in PARTS.items() if part == "light"} == {n for n in size if size[n] < LIGHT}
    days = {day: [size[n] for n, part in PARTS.items() if part == day] for day in range(DAYS)}
    assert sum(map(len, days.values())) + sum(part == "light" for part in PARTS.values()) == len(TASKS)
    sums = [sum(found) for found in days.values()]
    assert max(sums) <= 1.1 * min(sums)


def test_the_page_has_every_network_and_none_keeps_too_much():
    rows = page()
    assert rows.keys() == TASKS.keys()
    for task in prune_zoo.CLASSES:
        own = [name for name in rows if TASKS[name] == task]
        assert own == sorted(own)
    for name, row in rows.items():
        assert float(row["body kept"].rstrip("%")) <= 100 * prune_zoo.LIMITS[prune_zoo.kind(name)], name
        assert int(row["free groups"]) > 0


@pytest.mark.parametrize(
    "name", ["mobilenet_v3_small", "resnet18", "shufflenet_v2_x0_5", "swin_t", "lraspp_mobilenet_v3_large",
             "fcos_resnet50_fpn", "ssdlite320_mobilenet_v3_large"],
)  # fmt: skip
def test_the_page_agrees_with_a_fresh_computation(name):
    fresh = dict(zip(prune_zoo.HEAD, prune_zoo.cells(vars(prune_zoo.measure(name))), strict=True))
    row = page()[name]
    again = "python -m benchmarks.prune_zoo --markdown docs/zoo.md makes the page again"
    assert {**fresh, "trace": ""} == {**row, "trace": ""}, again


def test_a_network_that_keeps_too_much_or_fails_is_said(tmp_path, monkeypatch, capsys):
    assert prune_zoo.main(["--models", "resnet18,resnet19"]) == 2
    assert "no network 'resnet19'" in capsys.readouterr().err
    monkeypatch.setattr(prune_zoo, "LIMITS", {"convolutional": 0.2501, "transformer": 0.6})
    monkeypatch.setattr(prune_zoo, "settings", lambda name: {"width": 3} if name == "resnet34" else {})
    to = tmp_path / "zoo.md"
    assert prune_zoo.main(["--models", "squeezenet1_1,resnet34", "--markdown", str(to)]) == 1
    text = to.read_text(encoding="utf-8")
    assert "squeezenet1_1 does not hold to it" in text
    assert text.index("| resnet34 | – |") < text.index("| squeezenet1_1 | 1.2 M | 25.2% |")


def test_the_body_is_what_gives_no_output():
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 6, 1), nn.Conv2d(6, 5, 1))
    trace = prune.trace(net, image(1))
    assert prune_zoo.outputs(trace) == {"2.weight", "2.bias"}
    cut = prune.apply(net, prune.plan(trace, torch.zeros(trace.units), ratio=0.5, scope="group"))
    # 3 -> 4 -> 6 becomes 3 -> 2 -> 3, with biases.
    assert prune_zoo.body_kept(trace, net, cut) == (3 * 2 + 2 + 2 * 3 + 3) / (3 * 4 + 4 + 4 * 6 + 6)
