"""Training goes on after a cut as if the dropped channels had been held at zero."""

import copy

import pytest
import torch
from prune_nets import Net, by_hand
from state_nets import (
    A,
    B,
    groups,
    hold,
    kept_of,
    network,
    part,
    plan_of,
    same,
    train,
)
from torch import nn
from torch.optim import lr_scheduler
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from compress.errors import PlanError
from compress.prune.surgery import apply, mask_


@pytest.fixture
def net():
    return network()


@pytest.fixture
def plan(net):
    return plan_of(net)


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
