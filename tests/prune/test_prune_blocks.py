"""Residual blocks that go whole: found, removed, masked, saved, exported, cut further, scaled to zero."""

import onnx
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prune_nets import Net, conv, image
from torch import nn
from torch.nn import functional as F

import compress
import deploy
from compress import prune
from compress.errors import PlanError
from compress.models.factory import build
from compress.prune.planning import RemovedBlock
from compress.prune.structures import StructureScales, proximal_step


class Residual(nn.Module):
    """x + branch(x), with an activation behind the sum or none."""

    def __init__(self, *branch, after=None):
        super().__init__()
        self.branch, self.after = nn.Sequential(*branch), after

    def forward(self, x):
        y = x + self.branch(x)
        return y if self.after is None else self.after(y)


def weighed(layer, weight, bias=None):
    layer.weight.data.fill_(weight)
    if bias is not None:
        layer.bias.data.fill_(bias)
    return layer


def all_of(found):
    return [block.name for block in found.blocks]


def without(net, x, gone=None):
    """The network without some blocks, or without all that can go, and the plan."""
    found = prune.blocks(net, x)
    plan = prune.plan_of_blocks(found, all_of(found) if gone is None else gone)
    return prune.apply(net, plan), plan


def stays(net, x=None):
    """Why the only block of a network stays."""
    found = prune.blocks(net, image(2) if x is None else x)
    assert found.blocks == ()
    (reason,) = found.stays.values()
    return reason


def trunk(*blocks, wide=6):
    return nn.Sequential(conv(3, wide), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(wide, 4))


def plain(wide=6, after=None):
    return Residual(conv(wide, wide, bias=False), nn.BatchNorm2d(wide), after=after)


def test_a_network_by_hand():
    # x + 3 relu(-2 x + 1) + 0.5, then the same without activation, then times 2.
    first = Residual(
        weighed(nn.Linear(1, 1), -2.0, 1.0), nn.ReLU(), weighed(nn.Linear(1, 1), 3.0, 0.5), after=nn.ReLU()
    )
    second = Residual(weighed(nn.Linear(1, 1), 4.0, -1.0))
    net = nn.Sequential(first, second, weighed(nn.Linear(1, 1), 2.0, 0.0))
    x = torch.tensor([[-3.0], [1.0]])
    # -3: relu(-3 + 21 + 0.5) = 18.5, 18.5 + 73 = 91.5.  1: relu(1 + 0.5) = 1.5, 1.5 + 5 = 6.5.
    assert net(x).flatten().tolist() == [183.0, 13.0]
    found = prune.blocks(net, x)
    assert [(b.name, b.becomes, b.ends, b.weights, b.macs) for b in found.blocks] == [
        ("0", "ReLU", ("0.branch.2",), ("0.branch.2.weight", "0.branch.2.bias"), 4),
        ("1", "Identity", ("1.branch.0",), ("1.branch.0.weight", "1.branch.0.bias"), 2),
    ]
    assert found.macs == 8
    # Without the first: relu(x), then 5 y - 1. Without the second: the first alone. Without both: relu(x).
    for gone, expected in ((["0"], [-2.0, 8.0]), (["1"], [37.0, 3.0]), (["0", "1"], [0.0, 2.0])):
        small, plan = without(net, x, gone)
        assert small(x).flatten().tolist() == expected
        assert prune.mask(net, plan)(x).flatten().tolist() == expected
        assert plan.costs["macs_after"] == 8 - 2 * len(gone) - 2 * ("0" in gone)
        assert not [name for name, _ in small.named_parameters() if name.partition(".")[0] in gone]
    assert net(x).flatten().tolist() == [183.0, 13.0]


def test_removing_nothing_changes_nothing():
    net = trunk(plain(), plain(after=nn.ReLU())).eval()
    small, plan = without(net, image(2), [])
    assert plan.blocks == {}
    assert plan.costs["macs_after"] == plan.costs["macs_before"] > 0
    assert torch.equal(small(image()), net(image()))
    assert list(small.state_dict()) == list(net.state_dict())


KINDS = ("plain", "post", "preactivation", "bottleneck", "in_place", "pair", "gated", "projection", "multiplied")


class Pair(nn.Module):
    """Two branches, one after the other, as in a transformer."""

    def __init__(self, wide):
        super().__init__()
        self.first, self.second = nn.Sequential(nn.GroupNorm(1, wide), conv(wide, wide)), conv(wide, wide)

    def forward(self, x):
        x = self.first(x) + x
        return x + self.second(F.relu(x))


class InPlace(nn.Module):
    """As torchvision writes it."""

    def __init__(self, wide):
        super().__init__()
        self.conv, self.norm, self.relu = conv(wide, wide), nn.BatchNorm2d(wide), nn.ReLU(inplace=True)

    def forward(self, x):
        out = self.norm(self.conv(x))
        out += x
        return self.relu(out)


class Gated(nn.Module):
    """A branch whose last layer is multiplied by a gate and by a learned number for each channel."""

    def __init__(self, wide):
        super().__init__()
        self.conv, self.gate, self.scale = conv(wide, wide), conv(wide, wide, 1), nn.Parameter(torch.rand(wide, 1, 1))

    def forward(self, x):
        return x + self.scale * (self.conv(x) * self.gate(x.mean((2, 3), keepdim=True)).sigmoid())


class Multiplied(nn.Module):
    """Nothing that can go: the shortcut is no identity."""

    def __init__(self, wide):
        super().__init__()
        self.conv = conv(wide, wide)

    def forward(self, x):
        return torch.add(self.conv(x), x, alpha=2)


def block(kind, wide):
    made = {
        "plain": lambda: plain(wide),
        "post": lambda: plain(wide, after=nn.SiLU()),
        "preactivation": lambda: Residual(nn.BatchNorm2d(wide), nn.ReLU(), conv(wide, wide)),
        "bottleneck": lambda: Residual(conv(wide, 3, 1), nn.ReLU(), conv(3, wide, 1), nn.Dropout(0.5)),
        "in_place": lambda: InPlace(wide),
        "pair": lambda: Pair(wide),
        "gated": lambda: Gated(wide),
        "projection": lambda: Net(lambda m, x: m.a(x) + m.b(x), a=conv(wide, wide), b=conv(wide, wide, 1)),
        "multiplied": lambda: Multiplied(wide),
    }
    return made[kind]()


@settings(max_examples=12, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(st.lists(st.sampled_from(KINDS), min_size=1, max_size=4), st.data())
def test_whatever_goes_of_a_random_network_removed_equals_masked(kinds, data):
    torch.manual_seed(0)
    net = trunk(*(block(kind, 6) for kind in kinds)).eval()
    found = prune.blocks(net, image(2))
    able = [str(k) for k, kind in enumerate(kinds, 1) if kind not in ("projection", "multiplied")]
    assert all_of(found) == able
    assert len(found.stays) == len(kinds) - len(able)
    gone = data.draw(st.sets(st.sampled_from(able))) if able else set()
    small, plan = without(net, image(2), gone)
    assert torch.equal(small(image()), prune.mask(net, plan)(image()))
    assert prune.check(net, plan, image()).worst == 0
    # What is left is a network like any other: its channels are traced, cut and proved, by itself and as one plan.
    trace = prune.trace(small, image(2))
    later = prune.plan(trace, prune.score(trace, small), ratio=0.5, scope="group")
    whole = plan.then(later)
    assert prune.check(net, whole, image()).worst <= 1e-8
    assert torch.equal(prune.apply(net, whole)(image()), prune.apply(small, later)(image()))


def test_a_block_in_a_block_goes_with_it():
    net = trunk(Residual(plain(), conv(6, 6))).eval()
    found = prune.blocks(net, image(2))
    assert all_of(found) == ["1", "1.branch.0"]
    both, inner = (prune.plan_of_blocks(found, gone) for gone in (all_of(found), ["1.branch.0"]))
    assert list(both.blocks) == ["1"]
    for plan in (both, inner, inner.then(both)):
        prune.check(net, plan, image())
    assert list(inner.then(both).blocks) == ["1"]


def test_blocks_go_out_of_a_network_whose_channels_are_cut():
    net = trunk(plain(), plain(), plain()).eval()
    trace = prune.trace(net, image(2))
    first = prune.plan(trace, prune.score(trace, net), ratio=0.5, scope="group")
    narrow = prune.apply(net, first)
    small, second = without(narrow, image(2), ["2"])
    whole = first.then(second)
    assert not [key for key in whole.slots if key.startswith("2.")]
    assert whole.groups == first.groups
    assert torch.equal(prune.apply(net, whole)(image()), small(image()))
    assert prune.Plan.from_json(whole.to_json()) == whole
    prune.check(net, whole, image())


@pytest.mark.heavy
def test_saved_loaded_and_exported_nothing_is_left_of_a_block(tmp_path):
    net = build("niwaki:cifar_resnet", {"depth": 14, "width": 8}, 4).eval()
    small, plan = without(net, image(2, 16))
    assert list(plan.blocks) == ["layer1.0", "layer1.1", "layer2.1", "layer3.1"]
    back = compress.load(compress.save(small, tmp_path / "small"))
    assert torch.equal(back(image(4, 16)), small(image(4, 16)))
    assert list(back.state_dict()) == list(small.state_dict())
    path = deploy.export(back, image(2, 16), tmp_path / "small.onnx")
    assert deploy.parity(back, path, image(2, 16))[0]["max_relative_error"] < 1e-4
    operators = [node.op_type for node in onnx.load(path).graph.node]
    # Of six blocks the two with a projection are left. What went has neither a sum nor, behind a ReLU, a second one.
    assert [operators.count(kind) for kind in ("Add", "Conv", "Relu")] == [2, 7, 5]


def test_optimizer_and_averages_lose_what_goes():
    net = trunk(plain(), plain())
    optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)
    net(image()).sum().backward()
    optimizer.step()
    average = {f"module.{name}": tensor.clone() for name, tensor in net.state_dict().items()}
    plan = prune.plan_of_blocks(prune.blocks(net, image(2)), ["1"])
    small, cut, mean = prune.apply(net, plan, optimizer=optimizer, ema=average)
    assert {id(p) for p in small.parameters()} == {id(p) for g in cut.param_groups for p in g["params"]}
    assert len(cut.state) == len(list(small.parameters())) < len(optimizer.state)
    assert [name.removeprefix("module.") for name in mean] == list(small.state_dict())
    small(image()).sum().backward()
    cut.step()


def test_a_plan_of_something_else_is_refused():
    net = trunk(plain())
    _, plan = without(net, image(2))
    bn = RemovedBlock(becomes="Identity", weights=("1.branch.1.weight",))
    for blocks, said in (
        ({"7": bn}, "the block '7', which the network does not have"),
        ({"": bn}, "the block ''"),
        (
            {"1": bn.model_copy(update={"becomes": "Linear"})},
            "leaves a 'Linear' in the place of '1'; there is Identity",
        ),
        ({"1": bn.model_copy(update={"weights": ("0.weight",)})}, "'0.weight', which the block does not have"),
        ({"1": bn, "1.branch": bn}, "changes '1.branch' inside it"),
    ):
        with pytest.raises(PlanError, match=said):
            prune.validate(net, plan.model_copy(update={"blocks": blocks}))


class Twice(nn.Module):
    def __init__(self, keep):
        super().__init__()
        self.stem, self.block, self.keep = conv(3, 6), plain(), keep

    def forward(self, x):
        return self.keep(self, self.stem(x))


@pytest.mark.parametrize(
    ("net", "said"),
    [
        (Twice(lambda m, x: m.block(m.block(x))), "is called 2 times"),
        (Twice(lambda m, x: m.block(x) * m.block.branch(x)), "holds 'block.branch', which is called elsewhere"),
        (Twice(lambda m, x: m.block(x) * m.block.branch[0].weight.sum()), "computes or holds what is read elsewhere"),
        (trunk(Net(lambda m, x: F.avg_pool2d(x, 2) + m.a(x), a=conv(6, 6, stride=2))), "turns [2, 6, 8, 8] into"),
        (trunk(Net(lambda m, x: x.mean((2, 3), True) + m.a(x), a=conv(6, 6))), "a shortcut that is not its input"),
        (trunk(Net(lambda m, x: x.relu_() + m.a(x), a=conv(6, 6))), "a shortcut that is not its input"),
        (trunk(Net(lambda m, x: x + m.a(x + x.view(-1).relu_().sum()), a=conv(6, 6))), "not its input"),
        (trunk(Net(lambda m, x: x + m.a(x).sigmoid(), a=conv(6, 6))), "does not end in a layer whose weights"),
        (trunk(Net(lambda m, x: (x.add_(m.a(x))).relu_(), a=conv(6, 6))), "writes into its input"),
    ],
)
def test_what_has_to_stay_says_why(net, said):
    assert said in stays(net.eval())


def test_a_block_that_shares_its_weights_stays():
    net = trunk(plain(), nn.Conv2d(6, 6, 3, padding=1, bias=False))
    net[2].weight = net[1].branch[0].weight
    assert "shares '1.branch.0.weight' with another module" in stays(net)


def test_a_block_without_which_the_network_does_not_run_stays():
    net = Net(lambda m, x: m.block(m.stem(x)) * m.block.branch[1].eps, stem=conv(3, 6), block=plain())
    assert "does not run" in stays(net)


def test_a_network_without_blocks_is_refused():
    found = prune.blocks(nn.Sequential(conv(3, 4), nn.ReLU(), conv(4, 2)), image(2))
    with pytest.raises(PlanError, match=r"No residual block of this network can go whole \(no module gives a sum"):
        StructureScales(found, strength=1.0, rate=lambda step: 0.1)
    found = prune.blocks(trunk(block("multiplied", 6)), image(2))
    with pytest.raises(PlanError, match=r"can go whole \(1 has a shortcut that is not its input as it is\); prune"):
        found.required()
    with pytest.raises(PlanError, match="The block '1' cannot go: it has a shortcut"):
        prune.plan_of_blocks(found, ["1"])
    with pytest.raises(PlanError, match="There is no residual block '9'; those that can go are: none"):
        prune.plan_of_blocks(found, ["9"])


# --- scales behind branches


def test_the_scales_of_branches_step_by_the_gradients_of_what_these_give():
    torch.manual_seed(0)
    net = trunk(Pair(6), plain(after=nn.ReLU())).eval()
    images, labels = image(), torch.arange(8) % 4
    found = prune.blocks(net, images)
    scales = StructureScales(found, strength=0.5, rate=lambda step: 0.1)
    # By hand: what the last layers give times s has the gradient sum(output * its gradient) at s = 1.
    products = []
    for end in (end for one in found.blocks for end in one.ends):
        given = []
        handle = net.get_submodule(end).register_forward_hook(lambda m, _, out, given=given: given.append(out))
        slope = torch.autograd.grad(F.cross_entropy(net(images), labels), given)[0]
        products.append((given[0] * slope).sum().detach())
        handle.remove()
    gradient = torch.stack([products[0] + products[1], products[2]])
    scales.attach(net)
    scales(net)
    F.cross_entropy(net(images), labels).backward()
    expected, _ = proximal_step(torch.ones(2), torch.zeros(2), gradient, 0.1, 0.5)
    assert torch.allclose(scales.scales, expected, atol=1e-6)


def test_what_is_zero_goes_with_nothing_to_mend_once_folded():
    torch.manual_seed(0)
    net = trunk(plain(), Pair(6), block("gated", 6), plain(after=nn.ReLU())).eval()
    found = prune.blocks(net, image(2))
    scales = StructureScales(found, strength=0.5, rate=lambda step: 0.1)
    scales.attach(net)
    scales.scales.copy_(torch.tensor([0.0, 0.25, 2.0, 0.0]))
    with torch.no_grad():
        expected = net(image())
        scales.fold(net)
        assert torch.allclose(net(image()), expected, atol=1e-5)
        small, _ = without(net, image(2), ["1", "4"])
        assert torch.allclose(small(image()), expected, atol=1e-5)
    assert scales.zeros == 2


def test_attention_is_scaled_and_goes():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 8), block_of_attention(8), nn.Linear(8, 3)).eval()
    x = torch.rand(4, 7, 5)
    found = prune.blocks(net, x)
    assert found.blocks[0].ends == ("1.attention",)
    scales = StructureScales(found, strength=0.5, rate=lambda step: 0.1)
    scales.attach(net)
    scales.scales.fill_(0.5)
    expected = net(x)
    scales.fold(net)
    assert torch.allclose(net(x), expected, atol=1e-6)
    _, plan = without(net, x)
    prune.check(net, plan, x)


def block_of_attention(wide):
    run = lambda m, x: x + m.attention(m.norm(x), m.norm(x), m.norm(x))[0]  # noqa: E731
    return Net(run, norm=nn.LayerNorm(wide), attention=nn.MultiheadAttention(wide, 2, batch_first=True))
