"""Surgery: the whole plan or nothing, and the original stays as it was."""

import copy

import pytest
import torch
from prune_nets import conv, draw, image
from torch import nn

from compress import prune
from compress.errors import PlanError
from compress.models.cifar_resnet import cifar_resnet
from compress.prune import cut
from compress.prune.planning import KeptSlot


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    return cifar_resnet(8, 8)


@pytest.fixture(scope="module")
def plan(net):
    trace = prune.trace(net, image(2, 16))
    return prune.plan(trace, prune.score(trace, net), ratio=0.4, scope="group")


def altered(plan, key, **changes):
    slots = dict(plan.slots)
    slots[key] = slots[key].model_copy(update=changes)
    return plan.model_copy(update={"slots": slots})


KEY = "layer1.0.conv1.weight:0"
BAD_INDICES = {
    "empty": (),
    "negative": (-1, 2),
    "beyond the end": (0, 8),
    "not rising": (2, 1),
    "twice": (1, 1),
}


@pytest.fixture
def untouched(net, monkeypatch):
    """Sees that no tensor is cut and none of the network's changes."""
    before = {n: t.clone() for n, t in net.state_dict().items()}
    cuts = []
    real = cut.sliced
    monkeypatch.setattr(cut, "sliced", lambda *a: cuts.append(a) or real(*a))
    yield
    assert not cuts
    assert all(torch.equal(t, before[n]) for n, t in net.state_dict().items())


def refused(net, plan, words):
    for function in (prune.validate, prune.apply, prune.mask):
        with pytest.raises(PlanError, match=words) as caught:
            function(net, plan)
        assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("untouched")
class TestIllegalPlans:
    def test_another_architecture(self, plan):
        refused(cifar_resnet(8, 16), plan, "another architecture")
        refused(cifar_resnet(14, 8), plan, "another architecture")

    @pytest.mark.parametrize("kept", BAD_INDICES.values(), ids=BAD_INDICES)
    def test_altered_indices(self, net, plan, kept):
        refused(net, altered(plan, KEY, kept=kept), f"indices for '{KEY}' must be rising")

    def test_a_wrong_size(self, net, plan):
        refused(net, altered(plan, KEY, of=9), f"'{KEY}' to have 9 channels, it has 8")

    @pytest.mark.parametrize("key", ["nowhere.weight:0", "fc.weight:2", "fc.weight:x", "fc.weight", "fc.weight:-1"])
    def test_a_foreign_slot(self, net, plan, key):
        slots = {**plan.slots, key: KeptSlot(kept=(0,), of=10, role="producer")}
        refused(net, plan.model_copy(update={"slots": slots}), "which the network does not have")

    def test_an_attribute_that_differs(self, net, plan):
        attributes = {**plan.attributes, "conv1": {"out_channels": (99, 3)}}
        refused(net, plan.model_copy(update={"attributes": attributes}), "conv1.out_channels = 99, the network has 8")

    def test_an_attribute_of_no_module(self, net, plan):
        attributes = {**plan.attributes, "nowhere": {"out_channels": (8, 3)}}
        refused(net, plan.model_copy(update={"attributes": attributes}), "nowhere.out_channels")


def test_a_plan_that_was_applied_already(net, plan):
    refused(prune.apply(net, plan), plan, "another architecture")


def test_the_original_is_untouched_and_shares_nothing(net, plan):
    before = copy.deepcopy(net)
    small, masked = prune.apply(net, plan), prune.mask(net, plan)
    with torch.no_grad():
        for made in (small, masked):
            for tensor in made.state_dict().values():
                tensor.zero_()
    assert all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), before.state_dict().values(), strict=True))
    assert net.conv1.out_channels == 8


def test_each_tensor_is_the_plain_index_of_the_original(net, plan):
    small = dict(prune.apply(net, plan).state_dict())
    for name, dense in net.state_dict().items():
        expected = dense
        for dim in range(dense.dim()):
            kept = plan.kept_indices((name, dim), dense.shape[dim])
            expected = expected.index_select(dim, torch.from_numpy(kept))
        assert torch.equal(small[name], expected), name
        assert small[name].is_contiguous()


def test_layers_say_the_sizes_they_have(net, plan):
    small = prune.apply(net, plan)
    for module in small.modules():
        if isinstance(module, nn.Conv2d):
            assert (module.out_channels, module.in_channels) == tuple(module.weight.shape[:2])
        if isinstance(module, nn.BatchNorm2d):
            assert module.num_features == len(module.weight)
        if isinstance(module, nn.Linear):
            assert (module.out_features, module.in_features) == tuple(module.weight.shape)


def test_mask_zeroes_rows_and_leaves_columns(net, plan):
    masked = prune.mask(net, plan)
    for key, slot in plan.slots.items():
        name, _, dim = key.rpartition(":")
        before, after = net.state_dict()[name], masked.state_dict()[name]
        kept = torch.tensor(slot.kept)
        gone = torch.tensor(sorted(set(range(slot.of)) - set(slot.kept)))
        if slot.role == "producer":
            assert not after.index_select(int(dim), gone).any()
        elif slot.role == "statistic":
            assert torch.equal(after, before)
        shape = tuple(after.shape)
        assert shape == tuple(before.shape)
        if name.endswith("bias"):
            assert torch.equal(after[kept], before[kept])


def test_training_mode_dtype_and_gradients_carry_over(net, plan):
    other = copy.deepcopy(net).double().train()
    other.layer1.requires_grad_(False)
    small = prune.apply(other, plan)
    assert small.training
    assert {p.dtype for p in small.parameters()} == {torch.float64}
    assert [p.requires_grad for p in small.parameters()] == [p.requires_grad for p in other.parameters()]
    assert all(isinstance(p, nn.Parameter) and p.is_leaf for p in small.parameters())


def test_the_cut_network_trains(net, plan):
    small = prune.apply(net, plan).train()
    small(image(4, 16)).square().mean().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in small.parameters())


def test_a_network_can_be_cut_twice(net, plan):
    small = prune.apply(net, plan)
    again = draw(prune.trace(small, image(2, 16)), 7)
    prune.check(small, again, image(8, 16))


def test_check_finds_a_wrong_cut():
    """One index replaced in the reader alone: legal in shape, wrong in function."""
    net = nn.Sequential(conv(3, 6), nn.ReLU(), conv(6, 4))
    trace = prune.trace(net, image())
    plan = prune.plan(trace, prune.score(trace, net), ratio=0.5)
    others = tuple(sorted(set(range(6)) - set(plan.slots["2.weight:1"].kept)))
    wrong = altered(plan, "2.weight:1", kept=others)
    prune.validate(net, wrong)
    with pytest.raises(PlanError, match="differs from the masked one"):
        prune.check(net, wrong, image())


def test_check_leaves_the_network_as_it_was(net, plan):
    before = {n: t.clone() for n, t in net.state_dict().items()}
    net.eval()
    prune.check(net, plan, image(4, 16))
    assert not net.training
    assert all(torch.equal(t, before[n]) for n, t in net.state_dict().items())
    assert all(p.grad is None for p in net.parameters())
