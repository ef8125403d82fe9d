"""Training goes on after a cut as if the dropped channels had been held at zero."""

import copy
from collections import OrderedDict

import pytest
import torch
import torch.nn.functional as F
from prune_nets import Net, by_hand, conv
from torch import nn
from torch.optim import lr_scheduler
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from compress.errors import PlanError
from compress.prune.architecture import architecture_hash
from compress.prune.proof import check
from compress.prune.surgery import apply, mask_, validate

A, B, C = (0, 2, 3, 6), (1, 2, 4, 5), (0, 1, 5)
PRODUCERS = {
    A: ("c1.weight:0", "n1.weight:0", "n1.bias:0", "n1.running_mean:0"),
    B: ("c2.weight:0", "n2.weight:0", "n2.bias:0", "n2.running_mean:0"),
    C: ("h.weight:0", "h.bias:0", "mix:2", "tied.weight:0", "tied.bias:0"),
}
CONSUMERS = {
    A: ("c2.weight:1",),
    B: ("h.weight:1", "frozen.weight:1"),
    C: ("tied.weight:1", "out.weight:1"),
}
STATISTICS = {A: ("n1.running_var:0",), B: ("n2.running_var:0",)}
SIZES = {
    "c1": {"out_channels": (8, 4)},
    "n1": {"num_features": (8, 4)},
    "c2": {"in_channels": (8, 4), "out_channels": (6, 4)},
    "n2": {"num_features": (6, 4)},
    "h": {"in_features": (6, 4), "out_features": (8, 3)},
}


def run(net, x):
    x = F.gelu(net.n1(net.c1(x)))
    x = F.gelu(net.n2(net.c2(x))).mean((2, 3))
    h = torch.tanh(net.h(x) * net.mix.sum((0, 1)))
    return net.out(torch.tanh(net.again(torch.tanh(net.tied(h))))) + net.frozen(x)


@pytest.fixture
def net():
    """Convolutions, norms, a linear layer under two names, a parameter of three dimensions, a frozen layer."""
    torch.manual_seed(0)
    tied = nn.Linear(8, 8)
    layers = {
        "c1": conv(3, 8, bias=False),
        "n1": nn.BatchNorm2d(8),
        "c2": conv(8, 6, bias=False),
        "n2": nn.BatchNorm2d(6),
        "h": nn.Linear(6, 8),
        "mix": nn.Parameter(torch.randn(2, 3, 8)),
        "tied": tied,
        "again": tied,
        "out": nn.Linear(8, 3),
        "frozen": nn.Linear(6, 3).requires_grad_(False),
    }
    return Net(run, **layers).double()


@pytest.fixture
def plan(net):
    roles = {"producer": PRODUCERS, "consumer": CONSUMERS, "statistic": STATISTICS}
    slots = {k: (kept, role) for role, named in roles.items() for kept, keys in named.items() for k in keys}
    return by_hand(net, slots, SIZES)


def groups(net):
    """Two groups with options of their own; the second is of norms and of what is frozen."""
    few = [p for name, p in net.named_parameters() if name[0] in "nf"]
    own = {id(p) for p in few}
    return [
        {"params": [p for p in net.parameters() if id(p) not in own]},
        {"params": few, "lr": 0.003, "weight_decay": 0.0},
    ]


def kept_of(plan, name, tensor):
    """dimension -> indices, of a parameter under its first name."""
    found = {d: plan.slots.get(f"{name}:{d}") for d in range(tensor.dim())}
    return {d: torch.tensor(slot.kept) for d, slot in found.items() if slot is not None}


def part(plan, name, tensor):
    for d, index in kept_of(plan, name, tensor).items():
        tensor = tensor.index_select(d, index)
    return tensor


def hold(plan, name, tensor):
    """Zeroes, in place, whatever is not kept."""
    for d, index in kept_of(plan, name, tensor).items():
        gone = torch.ones(tensor.shape[d], dtype=torch.bool)
        gone[index] = False
        tensor.index_fill_(d, gone.nonzero().flatten(), 0)


def train(net, optimizer, steps, plan=None, ema=None):
    """Steps with data of their own; with a plan, what it drops is held at zero."""
    for k in steps:
        x = torch.randn(8, 3, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(k))
        optimizer.zero_grad()
        F.cross_entropy(net.train()(x), torch.arange(8) % 3).backward()
        if plan is not None:
            for name, parameter in net.named_parameters():
                if parameter.grad is not None:
                    hold(plan, name, parameter.grad)
        optimizer.step()
        if plan is not None:
            with torch.no_grad():
                for name, parameter in net.named_parameters():
                    hold(plan, name, parameter)
        if ema is not None:
            ema.update_parameters(net)


def same(value, expected):
    torch.testing.assert_close(value, expected, rtol=1e-10, atol=1e-10)


optim = torch.optim
ELEMENTWISE = {
    "sgd": lambda g: optim.SGD(g, 0.05),
    "momentum": lambda g: optim.SGD(g, 0.05, 0.9, weight_decay=0.01, nesterov=True),
    "adamw": lambda g: optim.AdamW(g, 0.01),
    "amsgrad": lambda g: optim.AdamW(g, 0.01, amsgrad=True),
    "a learning rate in a tensor": lambda g: optim.Adam(g, torch.tensor(0.01)),
    "rmsprop": lambda g: optim.RMSprop(g, 0.01, momentum=0.9, centered=True),
    "adagrad": lambda g: optim.Adagrad(g, 0.05),
    "adadelta": optim.Adadelta,
    "adamax": lambda g: optim.Adamax(g, 0.01),
    "nadam": lambda g: optim.NAdam(g, 0.01),
    "radam": lambda g: optim.RAdam(g, 0.01),
    "rprop": lambda g: optim.Rprop([{"params": group["params"]} for group in g], 0.001),
    "asgd": lambda g: optim.ASGD(g, 0.05),
}


@pytest.mark.parametrize("make", ELEMENTWISE.values(), ids=ELEMENTWISE)
@pytest.mark.parametrize("before", [0, 3])
def test_training_goes_on_as_if_the_rest_were_held_at_zero(net, plan, make, before):
    optimizer = make(groups(net))
    ema = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(0.8), use_buffers=True)
    train(net, optimizer, range(before), ema=ema)
    old = copy.deepcopy((net.state_dict(), optimizer.state_dict(), ema.state_dict()))
    small, own, own_ema = apply(net, plan, optimizer, ema)
    for value, expected in zip((net.state_dict(), optimizer.state_dict(), ema.state_dict()), old, strict=True):
        torch.testing.assert_close(value, expected, rtol=0, atol=0)
    assert type(own) is type(optimizer)
    assert type(own_ema) is AveragedModel

    mask_(net, plan)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            hold(plan, name, parameter)
            for value in optimizer.state.get(parameter, {}).values():
                if isinstance(value, torch.Tensor) and value.shape == parameter.shape:
                    hold(plan, name, value)
    train(net, optimizer, range(before, before + 5), plan, ema)
    train(small, own, range(before, before + 5), ema=own_ema)

    assert small.tied.weight is small.again.weight
    assert not small.frozen.weight.requires_grad
    trained = dict(net.named_parameters())
    for name, parameter in small.named_parameters():
        same(parameter, part(plan, name, trained[name]))
        for key, value in own.state.get(parameter, {}).items():
            expected = optimizer.state[trained[name]][key]
            tensor = isinstance(value, torch.Tensor) and value.dim() > 0
            same(value, part(plan, name, expected) if tensor else expected)
    averaged = dict(ema.module.named_parameters())
    for name, parameter in own_ema.module.named_parameters():
        same(parameter, part(plan, name, averaged[name]))
    same(own_ema.module.n2.running_mean, ema.module.n2.running_mean[list(B)])
    assert own_ema.n_averaged == ema.n_averaged


def test_adafactor_keeps_its_estimate_of_each_weight_that_stays(net, plan):
    """Its means over rows and columns become those over what stays: the reference trains the kept parts alone."""
    names = [name for name, p in net.named_parameters() if p.requires_grad]
    trained = [p for p in net.parameters() if p.requires_grad]
    optimizer = optim.Adafactor(trained, 0.05, weight_decay=0.01)
    train(net, optimizer, range(3))
    small, own, _ = apply(net, plan, optimizer=optimizer)

    mask_(net, plan)
    parts = [nn.Parameter(part(plan, name, p.detach()).clone()) for name, p in zip(names, trained, strict=True)]
    reference = optim.Adafactor(parts, 0.05, weight_decay=0.01)
    for name, parameter, kept in zip(names, trained, parts, strict=True):
        state = copy.deepcopy(optimizer.state[parameter])
        if "row_var" in state:
            row, column = state["row_var"], state["col_var"]
            second = part(plan, name, row * column / row.mean(-2, keepdim=True))
            state |= {"row_var": second.mean(-1, keepdim=True), "col_var": second.mean(-2, keepdim=True)}
        else:
            state["variance"] = part(plan, name, state["variance"])
        reference.state[kept] = state
        for key, value in own.state[dict(small.named_parameters())[name]].items():
            same(value, state[key])

    class Both:
        """Gradients of the masked network train the kept parts, which go back into it."""

        def zero_grad(self):
            net.zero_grad()

        @torch.no_grad()
        def step(self):
            for name, parameter, kept in zip(names, trained, parts, strict=True):
                kept.grad = part(plan, name, parameter.grad)
            reference.step()
            for name, parameter, kept in zip(names, trained, parts, strict=True):
                places = [kept_of(plan, name, parameter).get(d, torch.arange(n)) for d, n in enumerate(parameter.shape)]
                parameter[torch.meshgrid(*places, indexing="ij")] = kept

    train(net, Both(), range(3, 8), plan)
    train(small, own, range(3, 8))
    for name, kept in zip(names, parts, strict=True):
        same(dict(small.named_parameters())[name], kept)


def test_what_is_returned(net, plan):
    optimizer, ema = optim.SGD(net.parameters(), 0.1), AveragedModel(net)
    assert isinstance(apply(net, plan), nn.Module)
    small, own, none = apply(net, plan, optimizer=optimizer)
    assert none is None
    assert [id(p) for p in own.param_groups[0]["params"]] == [id(p) for p in small.parameters()]
    small, none, own_ema = apply(net, plan, ema=ema)
    assert none is None
    assert own_ema is not ema
    assert [type(x) for x in apply(net, plan, optimizer, ema)] == [Net, optim.SGD, AveragedModel]


# Optimizers -----------------------------------------------------------------------------------------------


def test_groups_options_and_names_are_kept_and_independent(net, plan):
    optimizer = optim.AdamW(net.named_parameters(), torch.tensor(0.5), betas=(0.5, 0.6))
    optimizer.param_groups[0]["note"] = ["own"]
    _, own, _ = apply(net, plan, optimizer)
    group = own.param_groups[0]
    assert {k: v for k, v in group.items() if k != "params"} == {
        k: v for k, v in optimizer.param_groups[0].items() if k != "params"
    }
    group["lr"].fill_(9)
    group["note"].append("new")
    own.defaults["betas"] = None
    assert optimizer.param_groups[0]["lr"] == 0.5
    assert optimizer.param_groups[0]["note"] == ["own"]
    assert optimizer.defaults["betas"] == (0.5, 0.6)


def test_schedulers_and_hooks_stay_with_the_old_optimizer(net, plan):
    optimizer, calls = optim.SGD(net.parameters(), 0.1, momentum=0.9), []
    schedule = lr_scheduler.StepLR(optimizer, 2, 0.5)
    optimizer.register_step_post_hook(lambda *_: calls.append("hook"))
    for k in range(3):
        train(net, optimizer, [k])
        schedule.step()
    small, own, _ = apply(net, plan, optimizer)
    again = lr_scheduler.StepLR(own, 2, 0.5)
    again.load_state_dict(schedule.state_dict())
    before = copy.deepcopy(net.state_dict())
    rates = []
    for k in range(3, 6):
        train(small, own, [k])
        again.step()
        rates.append(own.param_groups[0]["lr"])
    assert rates == pytest.approx([0.025, 0.025, 0.0125])
    assert calls == ["hook"] * 3
    assert optimizer.param_groups[0]["lr"] == 0.05
    torch.testing.assert_close(dict(net.state_dict()), dict(before), rtol=0, atol=0)
    train(net, optimizer, [3])
    assert len(calls) == 4


def test_lbfgs_is_cut_before_its_first_step_only(net, plan):
    optimizer = optim.LBFGS([p for p in net.parameters() if p.requires_grad], max_iter=3)
    small, own, _ = apply(net, plan, optimizer)
    x = torch.randn(8, 3, 6, 6, dtype=torch.float64)

    def closure():
        own.zero_grad()
        loss = small(x).square().mean()
        loss.backward()
        return loss

    first = float(own.step(closure).detach())
    assert float(closure().detach()) < first
    with pytest.raises(PlanError, match="LBFGS keeps one vector"):
        apply(small, by_hand(small, {"out.weight:1": ((0, 1), "consumer")}), own)


class Odd(optim.SGD):
    """Keeps whatever it is given, for the first convolution."""

    def keep(self, value):
        self.state[next(p for p in self.param_groups[0]["params"] if p.dim() == 4)]["odd"] = value
        return self


class Packed(torch.Tensor):
    pass


ODD = {
    "a vector": (lambda: torch.ones(5), r"Odd's odd of 'c1.weight' has shape \(5,\)"),
    "another shape": (lambda: torch.ones(8, 2, 3, 3), r"has shape \(8, 2, 3, 3\)"),
    "a list with one": (lambda: [torch.ones(8, 3, 3, 3), torch.ones(7)], r"has shape \(7,\)"),
    "a kind of tensor": (
        lambda: torch.ones(8, 3, 3, 3).as_subclass(Packed),
        "Odd's odd of 'c1.weight' is of type Packed",
    ),
    "an object": (object, "Odd's odd is of type object, which is not cut"),
}


@pytest.mark.parametrize(("value", "words"), ODD.values(), ids=ODD)
def test_state_that_does_not_follow_a_parameter_is_refused(net, plan, value, words):
    optimizer = Odd(net.parameters(), 0.1).keep(value())
    with pytest.raises(PlanError, match=words) as caught:
        apply(net, plan, optimizer)
    assert "\n" not in str(caught.value)


def test_state_in_containers_and_along_some_dimensions_is_cut(net, plan):
    dense = torch.randn(8, 3, 3, 3).double()
    state = {"all": [dense, (dense[:, :1, :1, :1], None)], "one": torch.ones(1, 1, 1, 1), "n": 3}
    small, own, _ = apply(net, plan, Odd(net.parameters(), 0.1).keep(state))
    found = own.state[small.c1.weight]["odd"]
    same(found["all"][0], dense[list(A)])
    same(found["all"][1][0], dense[list(A), :1, :1, :1])
    assert found["one"].shape == (1, 1, 1, 1)
    assert found["n"] == 3


def test_optimizers_of_another_network_and_wrappers_are_refused(net, plan):
    other = copy.deepcopy(net)
    with pytest.raises(PlanError, match="Parameter 0 in group 1 of SGD is not the network's"):
        mixed = [{"params": [net.out.bias]}, {"params": [other.out.weight]}]
        apply(net, plan, optim.SGD(mixed, 0.1))

    class Wrapper(optim.Optimizer):
        def __init__(self, inner):
            self.inner, self.param_groups, self.state = inner, inner.param_groups, inner.state

    with pytest.raises(PlanError, match="Wrapper wraps another optimizer"):
        apply(net, plan, Wrapper(optim.SGD(net.parameters(), 0.1)))


def test_an_optimizer_of_fabric_is_a_wrapper(net, plan):
    fabric = pytest.importorskip("lightning.fabric").Fabric(accelerator="cpu", devices=1)
    _, optimizer = fabric.setup(net, optim.SGD(net.parameters(), 0.1))
    with pytest.raises(PlanError, match="wraps another optimizer"):
        apply(net, plan, optimizer)
    assert isinstance(apply(net, plan, optimizer.optimizer)[1], optim.SGD)


# Averaged weights -----------------------------------------------------------------------------------------


def shifted(net):
    """Weights of the same names that are not the network's."""
    other = copy.deepcopy(net)
    with torch.no_grad():
        for tensor in other.state_dict().values():
            if tensor.is_floating_point():
                tensor.add_(1)
    return other


AVERAGES = {
    "averaged model": lambda n: AveragedModel(shifted(n)),
    "module": shifted,
    "state dict": lambda n: shifted(n).state_dict(),
    "state dict of an averaged model": lambda n: AveragedModel(shifted(n)).state_dict(),
    "dict of trained parameters": lambda n: {
        k: p.detach().clone() for k, p in shifted(n).named_parameters() if p.requires_grad
    },
    "of a frozen network": lambda n: AveragedModel(shifted(n.requires_grad_(False))),
    "dict of parameters": lambda n: dict(shifted(n).named_parameters()),
}


@pytest.mark.parametrize("make", AVERAGES.values(), ids=AVERAGES)
def test_averaged_weights_are_cut_like_the_network(net, plan, make):
    average = make(net)
    before = copy.deepcopy(average)
    small, _, own = apply(net, plan, ema=average)
    assert type(own) is type(average)
    tensors = own if isinstance(own, dict) else own.state_dict()
    old = before if isinstance(before, dict) else before.state_dict()
    now = average if isinstance(average, dict) else average.state_dict()
    assert list(tensors) == list(old)
    expected = apply(shifted(net), plan).state_dict()
    for key, tensor in tensors.items():
        assert torch.equal(now[key], old[key])
        assert tensor.data_ptr() != now[key].data_ptr()
        if key != "n_averaged":
            assert torch.equal(tensor, expected[key.removeprefix("module.")])
    if isinstance(own, nn.Module):
        root = own.module if isinstance(own, AveragedModel) else own
        assert root.tied.weight is root.again.weight
        assert root.h.in_features == 4
    elif "frozen.weight" in own:
        small.load_state_dict(own, strict=False)


def test_the_metadata_of_a_state_dict_stays(net, plan):
    _, _, own = apply(net, plan, ema=net.state_dict())
    assert isinstance(own, OrderedDict)
    assert own._metadata == net.state_dict()._metadata


def without(key):
    return lambda n: {k: v for k, v in n.state_dict().items() if k != key}


WRONG = {
    "a name missing": (without("h.weight"), "lack 'h.weight'"),
    "a foreign name": (lambda n: {**n.state_dict(), "x": torch.ones(2)}, "have 'x', which the network does not"),
    "another shape": (lambda n: {**n.state_dict(), "out.bias": torch.ones(4)}, r"'out.bias' as \(4,\), the network"),
    "a foreign network": (lambda n: AveragedModel(nn.Linear(3, 3)), "The averaged weights lack"),
    "a network that is cut already": (lambda n: n.small, "'mix' as"),
    "a list": (lambda n: list(n.parameters()), "a module or a dictionary of tensors, not a list"),
    "other attributes": (lambda n: n.changed, "expects h.in_features = 6, the network has 5"),
}


@pytest.mark.parametrize(("make", "words"), WRONG.values(), ids=WRONG)
def test_averaged_weights_of_another_network_are_refused(net, plan, make, words):
    small, changed = apply(net, plan), copy.deepcopy(net)
    changed.h.in_features = 5
    vars(net).update(small=small, changed=changed)
    with pytest.raises(PlanError, match=words) as caught:
        apply(net, plan, ema=make(net))
    assert "\n" not in str(caught.value)


# Substitutions and attributes -----------------------------------------------------------------------------


def heads(kept, wide=8, of=4):
    """Rows of the packed projection, and columns of the output's, for the heads that stay."""
    d = wide // of
    columns = [h * d + k for h in kept for k in range(d)]
    return [block * wide + c for block in range(3) for c in columns], columns


@pytest.mark.parametrize("root", [True, False], ids=["root", "inside"])
def test_a_substitute_is_put_in_before_its_sizes(root):
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(8, 4, batch_first=True)
    path = "" if root else "attention"
    net = (
        attention if root else Net(lambda n, q, k, v: n.attention(q, k, v, need_weights=False)[0], attention=attention)
    )
    dot = "" if root else "attention."
    rows, columns = heads((1, 2))
    slots = {
        f"{dot}in_proj_weight:0": (rows, "producer"),
        f"{dot}in_proj_bias:0": (rows, "producer"),
        f"{dot}out_proj.weight:1": (columns, "consumer"),
    }
    plan = by_hand(net, slots, {path: {"num_heads": (4, 2)}}, {path: "MultiheadAttention"})
    x = torch.randn(4, 6, 8)
    # Weights averaged over heads are another average when heads go.
    proof = check(net, plan, x, x + 1, x - 1, forward=lambda n, *qkv: n(*qkv)[0] if root else n(*qkv))
    assert proof.worst <= 1e-12
    small, _, average = apply(net, plan, ema=AveragedModel(net))
    for cut in (small, average.module):
        found = cut.get_submodule(path)
        assert type(found).__module__ == "compress.prune.attention"
        assert (found.num_heads, found.head_dim, found.scale) == (2, 2, 2**-0.5)
    assert type(attention) is nn.MultiheadAttention

    class Copy(nn.MultiheadAttention):
        pass

    for wrong, words in (
        ({path: "Nothing"}, "puts 'Nothing' in the place of"),
        ({"nowhere": "MultiheadAttention"}, "the network has no module there"),
        ({path: "WindowAttention"}, "the network has a MultiheadAttention there"),
    ):
        with pytest.raises(PlanError, match=words):
            validate(net, plan.model_copy(update={"substitutions": wrong}))


def test_what_a_substitute_adds_is_not_looked_for_before():
    from torchvision.models.swin_transformer import ShiftedWindowAttention

    torch.manual_seed(0)
    net = Net(lambda n, x: n.attn(x), attn=ShiftedWindowAttention(8, [2, 2], [0, 0], 2))
    kept = [c for head in range(2) for c in (head * 4, head * 4 + 3)]
    rows = [block * 8 + c for block in range(3) for c in kept]
    slots = {
        "attn.qkv.weight:0": (rows, "producer"),
        "attn.qkv.bias:0": (rows, "producer"),
        "attn.proj.weight:1": (kept, "consumer"),
    }
    plan = by_hand(net, slots, {"attn": {"head_dim": (4, 2)}}, {"attn": "WindowAttention"})
    assert check(net, plan, torch.randn(4, 4, 4, 8)).worst <= 1e-12
    with pytest.raises(PlanError, match=r"attn.head_dim = 4, the network has None"):
        validate(net, plan.model_copy(update={"substitutions": {}}))


@pytest.mark.parametrize("shape", [(8,), [8, 2]], ids=["tuple", "list"])
def test_sizes_in_tuples_and_lists(shape):
    norm = nn.LayerNorm(8)
    norm.normalized_shape = shape
    plan = by_hand(norm, {"weight:0": (A, "producer"), "bias:0": (A, "producer")}, {"": {"normalized_shape": (8, 4)}})
    assert apply(norm, plan).normalized_shape == type(shape)([4, *shape[1:]])
    assert norm.normalized_shape == shape
    other = plan.model_copy(update={"attributes": {"": {"normalized_shape": (9, 4)}}})
    with pytest.raises(PlanError, match=r"normalized_shape = 9, the network has"):
        validate(norm, other)
    with pytest.raises(PlanError, match=r"weight = 8, the network has Parameter"):
        validate(norm, plan.model_copy(update={"attributes": {"": {"weight": (8, 4)}}}))


def test_indices_beyond_all_integers_are_a_sentence(net, plan):
    slot = plan.slots["h.weight:0"].model_copy(update={"kept": (0, 10**30)})
    with pytest.raises(PlanError, match=r"indices for 'h.weight:0' must be rising"):
        validate(net, plan.model_copy(update={"slots": {**plan.slots, "h.weight:0": slot}}))


def test_two_names_of_one_tensor_keep_the_same(net, plan):
    slot = plan.slots["tied.weight:0"]
    same_kept = plan.model_copy(update={"slots": {**plan.slots, "again.weight:0": slot}})
    assert apply(net, same_kept).again.weight.shape == (3, 3)
    other = slot.model_copy(update={"kept": (0, 1, 6)})
    with pytest.raises(PlanError, match=r"'again.weight:0' differ from those under the tensor's other name"):
        validate(net, plan.model_copy(update={"slots": {**plan.slots, "again.weight:0": other}}))


def test_a_network_without_storage_is_cut_to_the_same_shapes(net, plan):
    expected = apply(net, plan)
    small = apply(copy.deepcopy(net).to("meta"), plan)
    assert all(tensor.is_meta for tensor in small.state_dict().values())
    assert architecture_hash(small) == architecture_hash(expected)
    assert [p.requires_grad for p in small.parameters()] == [p.requires_grad for p in expected.parameters()]
    assert small.tied.weight is small.again.weight
    assert small.h.weight.dtype == torch.float64
