"""What a cut is measured against: norms over kept channels, nothing drawn, nothing zero by chance."""

import copy

import pytest
import torch
import torch.nn.functional as F
import torchvision
from prune_nets import CHANNELS, Net, by_hand, conv, image
from torch import nn

from compress.errors import PlanError
from compress.prune.architecture import architecture_hash, named_tensors
from compress.prune.determinism import FEWEST_VALUES, Repeatable, TooFewValuesError
from compress.prune.planning import KeptSlot
from compress.prune.proof import check
from compress.prune.reference import KeptStatistics
from compress.prune.surgery import apply, mask, mask_

KEPT = (0, 2, 3, 6)  # of 8


def between(norm, kept=KEPT, attributes=None, wide=8):
    """conv -> norm -> conv, and the plan that cuts the channels between them."""
    torch.manual_seed(0)
    net = nn.Sequential(conv(CHANNELS, wide), norm, nn.GELU(), conv(wide, 5))
    slots = {
        "0.weight:0": (kept, "producer"),
        "0.bias:0": (kept, "producer"),
        "3.weight:1": (kept, "consumer"),
    }
    slots |= {
        f"1.{n}:0": (kept, "statistic" if "var" in n else "producer") for n, t in named_tensors(norm).items() if t.dim()
    }
    sizes = {"0": {"out_channels": (wide, len(kept))}, "3": {"in_channels": (wide, len(kept))}}
    return net, by_hand(net, slots, {**sizes, "1": attributes or {}})


def linears(norm, attributes):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 8), norm, nn.Tanh(), nn.Linear(8, 3))
    slots = {"0.weight:0": (KEPT, "producer"), "0.bias:0": (KEPT, "producer"), "3.weight:1": (KEPT, "consumer")}
    slots |= {f"1.{name}:0": (KEPT, "producer") for name, _ in norm.named_parameters()}
    return net, by_hand(net, slots, {"1": attributes})


NORMS = {
    "layer norm": lambda: linears(nn.LayerNorm(8), {"normalized_shape": (8, 4)}),
    "layer norm without bias": lambda: linears(nn.LayerNorm(8, bias=False), {"normalized_shape": (8, 4)}),
    "rms norm": lambda: linears(nn.RMSNorm(8), {"normalized_shape": (8, 4)}),
    "layer norm over channels and space": lambda: between(
        nn.LayerNorm([8, 6, 6]), attributes={"normalized_shape": (8, 4)}
    ),
    "torchvision's layer norm": lambda: between(
        torchvision.models.convnext.LayerNorm2d(8), attributes={"normalized_shape": (8, 4)}
    ),
    "part of each group": lambda: between(nn.GroupNorm(2, 8), (0, 2, 5, 6), {"num_channels": (8, 4)}),
    "one group": lambda: between(nn.GroupNorm(1, 8), attributes={"num_channels": (8, 4)}),
    "whole groups and parts of others": lambda: between(
        nn.GroupNorm(4, 8), (1, 6), {"num_channels": (8, 2), "num_groups": (4, 2)}
    ),
}
WHOLE_GROUPS = (2, 3, 6, 7), {"num_channels": (8, 4), "num_groups": (4, 2)}


def batch(net):
    return image(8, 6) if isinstance(net[0], nn.Conv2d) else torch.randn(8, 5)


@pytest.mark.parametrize("make", NORMS.values(), ids=NORMS)
def test_a_norm_that_loses_channels_is_proved_against_statistics_of_what_stays(make):
    net, plan = make()
    proof = check(net, plan, batch(net))
    assert proof.worst <= 1e-12
    assert proof.train_mode


@pytest.mark.parametrize("make", NORMS.values(), ids=NORMS)
def test_zeros_alone_would_not_do(make):
    net, plan = make()
    x = batch(net)
    masked = mask(net, plan)
    assert not torch.allclose(masked(x), apply(net, plan)(x), atol=1e-3)
    with KeptStatistics(masked, plan):
        assert torch.allclose(masked(x), apply(net, plan)(x), atol=1e-5)


def test_whole_groups_need_no_statistics_of_their_own():
    net, plan = between(nn.GroupNorm(4, 8), *WHOLE_GROUPS)
    masked, x = mask(net, plan).double(), image(8, 6).double()
    with KeptStatistics(masked, plan):
        inside = masked(x)
    torch.testing.assert_close(inside, masked(x), rtol=0, atol=1e-14)
    assert check(net, plan, image(8, 6)).worst <= 1e-12


def test_norms_that_lose_nothing_are_left_alone():
    net, plan = linears(nn.LayerNorm(8), {"normalized_shape": (8, 4)})
    other, x = nn.LayerNorm(8), torch.randn(4, 8)
    with KeptStatistics(net, plan):
        assert torch.equal(other(x), F.layer_norm(x, (8,)))
        assert torch.equal(F.group_norm(x, 2), F.group_norm(x, 2))
    exact, exact_plan = between(nn.BatchNorm2d(8), KEPT, {"num_features": (8, 4)})
    masked, images = mask(exact, exact_plan), image()
    with KeptStatistics(masked, exact_plan):
        inside = masked.eval()(images)
    assert torch.equal(inside, masked(images))


def test_a_group_norm_keeps_equal_numbers_in_its_groups():
    net, plan = between(nn.GroupNorm(2, 8), (0, 1, 2, 5), {"num_channels": (8, 4)})
    with pytest.raises(PlanError, match=r"keeps \[3, 1\] channels of the groups"):
        check(net, plan, image(8, 6))


CALLS = {
    "F.layer_norm": lambda n, x, w, b: F.layer_norm(x, (n,), w, b, 1e-3),
    "F.layer_norm by name": lambda n, x, w, b: F.layer_norm(input=x, normalized_shape=(n,), weight=w, bias=b, eps=1e-3),
    "torch.layer_norm": lambda n, x, w, b: torch.layer_norm(x, (n,), w, b, 1e-3, True),
    "native": lambda n, x, w, b: torch.native_layer_norm(x, (n,), w, b, 1e-3)[0],
    "F.rms_norm": lambda n, x, w, b: F.rms_norm(x, (n,), w, 1e-3),
    "torch.rms_norm": lambda n, x, w, b: torch.rms_norm(x, (n,), weight=w),
    "F.group_norm": lambda n, x, w, b: F.group_norm(x, 1, w, b, 1e-3),
    "torch.group_norm": lambda n, x, w, b: torch.group_norm(x, 1, w, b, 1e-3, True),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_every_way_to_call_a_norm(call):
    torch.manual_seed(0)
    norm, index = nn.LayerNorm(8).double(), torch.tensor(KEPT)
    plan = by_hand(norm, {"weight:0": (KEPT, "producer"), "bias:0": (KEPT, "producer")})
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    x = torch.randn(3, 8, dtype=torch.float64, requires_grad=True)

    def run(x):
        with KeptStatistics(norm, plan):
            return call(8, x, norm.weight, norm.bias)

    found = run(x)
    torch.testing.assert_close(found[:, index], call(4, x[:, index], norm.weight[index], norm.bias[index]))
    assert found.count_nonzero() == 3 * len(KEPT)
    assert torch.autograd.gradcheck(run, (x,))


@pytest.mark.parametrize("names", [("a", "b"), ("b", "a"), ("b",)], ids="+".join)
def test_a_norm_under_two_names(names):
    torch.manual_seed(0)
    norm = nn.LayerNorm(8)
    layers = {"first": nn.Linear(5, 8), "a": norm, "middle": nn.Linear(8, 8), "b": norm, "last": nn.Linear(8, 3)}
    net = Net(lambda n, x: n.last(n.b(torch.tanh(n.middle(n.a(n.first(x)))))), **layers)
    slots = {"first.weight:0": (KEPT, "producer"), "first.bias:0": (KEPT, "producer")}
    slots |= {f"{n}.{kind}:0": (KEPT, "producer") for n in names for kind in ("weight", "bias")}
    slots |= {"middle.weight:1": (KEPT, "consumer"), "last.weight:1": (KEPT, "consumer")}
    slots |= {"middle.weight:0": (KEPT, "producer"), "middle.bias:0": (KEPT, "producer")}
    plan = by_hand(net, slots, {names[0]: {"normalized_shape": (8, 4)}})
    assert check(net, plan, torch.randn(8, 5)).worst <= 1e-12
    small = apply(net, plan)
    assert small.a is small.b


def test_the_fused_encoder_layer_is_not_taken_past_the_norms():
    """In eval without gradients torch computes a whole encoder layer in one call, norms and all."""
    torch.manual_seed(0)
    net = nn.TransformerEncoderLayer(8, 2, 8, batch_first=True).eval()
    plan = by_hand(net, {"norm1.weight:0": (KEPT, "producer"), "norm1.bias:0": (KEPT, "producer")})
    x = torch.randn(2, 3, 8)
    with torch.no_grad(), KeptStatistics(net, plan):
        fused = net(x)
    with KeptStatistics(net, plan):
        torch.testing.assert_close(fused, net(x))
    with torch.no_grad():
        assert not torch.allclose(fused, net(x), atol=1e-3)


# What is drawn --------------------------------------------------------------------------------------------

DRAWING = {
    "dropout": lambda x: F.dropout(x, 0.5),
    "dropout by place": lambda x: F.dropout(x, 0.5, True, False),
    "torch.dropout": lambda x: torch.dropout(x, 0.5, True),
    "dropout in place": lambda x: F.dropout(x.clone(), 0.5, training=True, inplace=True),
    "dropout of channels": lambda x: F.dropout2d(x, 0.5),
    "alpha dropout": lambda x: F.alpha_dropout(x, 0.5, training=True),
    "a module": nn.Dropout(0.5),
    "feature alpha dropout": nn.FeatureAlphaDropout(0.5),
    "stochastic depth": lambda x: torchvision.ops.stochastic_depth(x, 0.5, "row"),
    "a drawn mask": lambda x: x * torch.bernoulli(torch.ones(x.shape), 0.5) * 2,
    "drop block": lambda x: torchvision.ops.drop_block2d(x, 0.3, 3),
}


@pytest.mark.parametrize("call", DRAWING.values(), ids=DRAWING)
def test_what_is_drawn_is_its_mean(call):
    x = image(4, 8)
    with Repeatable():
        torch.testing.assert_close(call(x), x)


def test_attention_draws_nothing_and_random_slopes_are_their_mean():
    torch.manual_seed(0)
    attention, x = nn.MultiheadAttention(8, 2, dropout=0.5, batch_first=True), torch.randn(2, 4, 8)
    with Repeatable():
        inside = attention(x, x, x)
        slopes = F.rrelu(x, 0.1, 0.3, training=True)
        attended = F.scaled_dot_product_attention(x, x, x, None, 0.5)
    for found, expected in zip(inside, attention.eval()(x, x, x), strict=True):
        torch.testing.assert_close(found, expected)
    torch.testing.assert_close(slopes, F.leaky_relu(x, 0.2))
    torch.testing.assert_close(attended, F.scaled_dot_product_attention(x, x, x))


def test_running_statistics_stay_and_few_values_are_refused():
    norm, x = nn.BatchNorm2d(3), image(4, 2)
    with Repeatable():
        found = norm(x)
        with pytest.raises(TooFewValuesError):
            norm(image(FEWEST_VALUES - 1, 1))
    assert not norm.running_mean.any()
    torch.testing.assert_close(found, norm(x))
    x = image(2, 1)
    with Repeatable(batch_statistics=False):
        few = norm(x)
    torch.testing.assert_close(few, norm.eval()(x))


# The check ------------------------------------------------------------------------------------------------


def zeros(module):
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


def wrong(plan, key="3.weight:1"):
    """The reader keeps other channels than are made: legal in shape, wrong in function."""
    slot = plan.slots[key]
    others = tuple(sorted(set(range(slot.of)) - set(slot.kept)))[: len(slot.kept)]
    return plan.model_copy(update={"slots": {**plan.slots, key: slot.model_copy(update={"kept": others})}})


def frozen():
    norm = torchvision.ops.FrozenBatchNorm2d(5)
    norm.weight.zero_()
    return norm


STARTS = {
    "a head of zeros": lambda: zeros(nn.Conv2d(5, 5, 1)),
    "a frozen norm of zero": frozen,
    "a scale of zero": lambda: nn.Parameter(torch.zeros(1)),
    "a tiny constant scale": lambda: nn.Parameter(torch.full((5, 1, 1), 1e-12)),
}


@pytest.mark.parametrize("make", STARTS.values(), ids=STARTS)
def test_what_hides_an_error_by_its_start_does_not(make):
    last = make()
    body, plan = between(nn.BatchNorm2d(8), KEPT, {"num_features": (8, 4)})
    layers = {"body": body, "last": last, "side": conv(CHANNELS, 5)}
    net = Net(lambda n, x: n.side(x) + (n.last(n.body(x)) if callable(n.last) else n.last * n.body(x)), **layers)
    slots = {f"body.{key}": slot for key, slot in plan.slots.items()}
    attributes = {f"body.{key}": value for key, value in plan.attributes.items()}
    own = plan.model_copy(update={"architecture": architecture_hash(net), "slots": slots, "attributes": attributes})
    assert check(net, own, image()).worst <= 1e-11
    # Not by a gradient alone.
    with pytest.raises(PlanError, match=r"differs from the masked one \(eval [1-9]\.\de[+-]0[0-2]"):
        check(net, wrong(own, "body.3.weight:1"), image())


def test_few_values_leave_batch_norms_in_eval_and_the_rest_in_training():
    torch.manual_seed(0)
    net, plan = between(nn.BatchNorm2d(8), KEPT, {"num_features": (8, 4)})
    assert check(net, plan, image(1, 4)).train_mode
    proof = check(net, plan, image(1, 2))
    assert not proof.train_mode
    assert proof.worst <= 1e-12
    # A head that only training runs is compared all the same.
    aux = Net(lambda n, x: (n.body(x), n.aux(n.body(x))) if n.training else n.body(x), body=net, aux=conv(5, 2))
    slots = {f"body.{key}": slot for key, slot in plan.slots.items()}
    slots["aux.weight:1"] = KeptSlot(kept=(0, 1, 2), of=5, role="consumer")
    attributes = {f"body.{key}": value for key, value in plan.attributes.items()} | {"aux": {"in_channels": (5, 3)}}
    bad = plan.model_copy(update={"architecture": architecture_hash(aux), "slots": slots, "attributes": attributes})
    with pytest.raises(PlanError, match="does not run"):
        check(aux, bad, image(1, 2))


def test_nests_of_inputs_and_a_part_of_the_network():
    body, plan = between(nn.BatchNorm2d(8), KEPT, {"num_features": (8, 4)})
    seen = []

    class Detector(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = body

        def forward(self, images):
            raise AssertionError("the whole is not to be run")

    net = Detector()
    slots = {f"body.{key}": slot for key, slot in plan.slots.items()}
    attributes = {f"body.{key}": value for key, value in plan.attributes.items()}
    own = plan.model_copy(update={"architecture": architecture_hash(net), "slots": slots, "attributes": attributes})

    def part(network, images, about):
        seen.append((images, about))
        out = network.body(torch.stack(images))
        for x in images:
            x.zero_()
        # Integers and flags are outputs that a detector has; they are compared and carry no gradient.
        return [{"boxes": out, "labels": out.argmax(1), "valid": out > 0}]

    images, about = [image(1, 8)[0], image(1, 8, seed=1)[0]], {"sizes": torch.tensor([8, 8]), "name": "x"}
    before = copy.deepcopy(images)
    assert check(net, own, images, about, forward=part).worst <= 1e-11
    assert all(torch.equal(a, b) for a, b in zip(images, before, strict=True))
    assert all(torch.equal(call[1]["sizes"], about["sizes"]) and call[1]["name"] == "x" for call in seen)
    with pytest.raises(PlanError, match="differs from the masked one"):
        check(net, wrong(own, "body.3.weight:1"), images, about, forward=part)


def test_a_cut_that_does_not_run_is_a_sentence():
    net, plan = between(nn.BatchNorm2d(8), KEPT, {"num_features": (8, 4)})
    slots = {key: slot for key, slot in plan.slots.items() if key != "3.weight:1"}
    with pytest.raises(PlanError, match=r"The cut network does not run .*report the model") as caught:
        check(net, plan.model_copy(update={"slots": slots}), image())
    assert "\n" not in str(caught.value)


def test_gradients_of_tied_uncut_and_frozen_parameters_are_compared():
    torch.manual_seed(0)
    shared = nn.Linear(8, 8)
    net = Net(
        lambda n, x: n.last(torch.tanh(n.again(torch.tanh(n.once(torch.tanh(n.first(x))))))) + n.side(x),
        first=nn.Linear(5, 8),
        once=shared,
        again=shared,
        last=nn.Linear(8, 3),
        side=nn.Linear(5, 3).requires_grad_(False),
    )
    slots = {"first.weight:0": (KEPT, "producer"), "first.bias:0": (KEPT, "producer")}
    # Under its second name, in both dimensions.
    slots |= {"again.weight:0": (KEPT, "producer"), "again.weight:1": (KEPT, "consumer")}
    slots |= {"again.bias:0": (KEPT, "producer"), "last.weight:1": (KEPT, "consumer")}
    plan = by_hand(net, slots)
    assert check(net, plan, torch.randn(8, 5)).worst <= 1e-12
    small = apply(net, plan)
    assert small.once.weight is small.again.weight
    assert small.once.weight.shape == (4, 4)
    assert not small.side.weight.requires_grad

    class Doubled(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            return grad * (2 if net.wide != grad.shape[-1] else 1)

    # A gradient alone that differs, in a layer that is not cut.
    net.wide = 8
    net.run = lambda n, x: n.last(torch.tanh(n.first(x))) + n.side(Doubled.apply(x)).sum() * 0
    assert check(net, plan, torch.randn(8, 5)).worst <= 1e-12
    net.run = lambda n, x: n.last(Doubled.apply(torch.tanh(n.first(x))))
    with pytest.raises(PlanError, match="differs from the masked one"):
        check(net, plan, torch.randn(8, 5))


def test_masking_in_place_is_masking():
    net, plan = between(nn.BatchNorm2d(8), KEPT, {"num_features": (8, 4)})
    masked, own = mask(net, plan), copy.deepcopy(net)
    assert mask_(own, plan) is own
    assert all(torch.equal(a, b) for a, b in zip(own.state_dict().values(), masked.state_dict().values(), strict=True))
    before = copy.deepcopy(own.state_dict())
    with pytest.raises(PlanError):
        mask_(own, plan.model_copy(update={"attributes": {"0": {"out_channels": (9, 4)}}}))
    assert all(torch.equal(own.state_dict()[name], tensor) for name, tensor in before.items())
