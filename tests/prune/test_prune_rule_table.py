"""Every rule of the table: a network in which channels reach its operator, and the ways of breaking it that show."""

from functools import cache

import pytest
import torch
import torch.nn.functional as F
from prune_nets import Net, conv, draw, image
from rule_cases import normed
from rule_moves import CASES
from rule_nets import BROKEN, Reached, prove, ruled
from rule_space import STATISTICS
from torch.utils._python_dispatch import TorchDispatchMode

from compress import prune
from compress.errors import PlanError
from compress.prune.dispatch import VIEWS, operator
from compress.prune.rules import CONSTANT, RULES

EQUIVALENT = {
    # Channels whose zero matters are held, whatever is said of it.
    "aten.sqrt": {"never zero"},
    "aten.sqrt_": {"never zero"},
    # Of the columns, which a direction over all of them holds.
    "aten._weight_norm_interface": {"always zero"},
    # What nothing has been written into is neither.
    "aten.empty_like": {"never zero"},
    # Padded channels that nothing makes cannot go, and of those that meet others a trial cut finds the number fixed.
    # That no parameter has them is asked only of what an operator moves, and padding is not held to move.
    "aten.constant_pad_nd": {"does not protect", "does not fresh"},
}
"""Operator -> ways of breaking its rule that change nothing."""


@cache
def reached(op):
    """What the rule of an operator did in each of its cases, all of which hold."""
    found = []
    for case in CASES[op]:
        found.append(Reached())
        with ruled(op, found[-1].watching(RULES[op])):
            prove(case)
    return found


def test_the_cases_are_those_of_the_table():
    assert set(CASES) == set(RULES)


@pytest.mark.parametrize("op", sorted(RULES))
def test_the_operator_exists_and_is_looked_up_under_its_name(op):
    namespace, _, name = op.partition(".")
    packet = getattr(getattr(torch.ops, namespace), name)
    overload = getattr(packet, packet.overloads()[0])
    assert (operator(overload).name, operator(overload).rule) == (op, RULES[op])


@pytest.mark.parametrize("op", sorted(RULES))
def test_the_channels_are_those_expected_and_every_cut_is_the_mask(op):
    assert all(case.labelled for case in reached(op))


_DRAWN = ("bernoulli_", "rand_like", "randn_like", "normal_", "uniform_", "exponential_", "log_normal_")
DRAWN = {f"aten.{name}" for name in _DRAWN}
"""Called as operators they draw anew, and other values for other sizes."""

HELD = {
    op: [case for case in cases if "becomes a constant" in case.held.get("a.weight:0", "")]
    for op, cases in CASES.items()
}


@pytest.mark.parametrize("op", sorted(op for op, cases in HELD.items() if cases and op not in DRAWN))
def test_what_weights_read_where_it_is_a_constant_is_free_and_every_cut_exact(op):
    for case in HELD[op]:
        torch.manual_seed(0)
        net, x = case.make()
        trace = prune.trace(net, x, heads=case.heads)
        units = trace.slots["a.weight", 0]
        if CONSTANT in trace.protected.get("a.weight:0", "") or trace.protected_units[units].all():
            continue
        assert not trace.preserving[units].any(), "the trace says that a mask alone does not do what a cut does"
        for seed in range(2):
            prune.check(net, draw(trace, seed), x, seed=seed)


@pytest.mark.heavy
@pytest.mark.parametrize("op", sorted(RULES))
def test_a_rule_that_is_broken_on_purpose_is_found(op):
    ways = dict.fromkeys(way for case in reached(op) for way in case.broken)
    assert set(ways) - EQUIVALENT.get(op, set())
    missed = set()
    for way in ways:
        cases = [case for case, said in zip(CASES[op], reached(op), strict=True) if way in said.broken]
        if not any(fails(op, way, case) for case in cases):
            missed.add(way)
    assert missed == EQUIVALENT.get(op, set())


def fails(op, way, case):
    """Whether a case shows that a rule is broken in one way."""
    with ruled(op, BROKEN[way](RULES[op])):
        try:
            prove(case, draws=2)
        except Exception:  # noqa: BLE001  (an expectation that is not met, a proof that fails, a crash)
            return True
    return False


def test_a_wrong_order_of_channels_is_found_by_the_proof_itself():
    """Not only because a case expects an order."""
    for op in ("aten.relu", "aten.convolution", "aten.native_batch_norm", "aten.cat", "aten.max_pool2d_with_indices"):
        with ruled(op, BROKEN["reverses"](RULES[op])), pytest.raises(PlanError, match="differs from the masked one"):
            for case in CASES[op]:
                prove(unexpected(case))


def partly(net, x, *slots):
    """What the network gives once some of `a` is cut, and what stays of each slot, given with its size."""
    found = prune.trace(net, x)
    plan = next(plan for plan in (draw(found, seed, least=2) for seed in range(9)) if "a.weight:0" in plan.slots)
    return prune.apply(net, plan)(x), [plan.kept_indices((name, dim), size) for name, dim, size in slots]


@pytest.mark.parametrize("name", sorted(STATISTICS))
def test_a_statistic_over_channels_is_that_of_those_left(name):
    """Written out by hand, since the proof follows the channels by the same rules."""
    torch.manual_seed(0)
    net = Net(lambda m, x: m.b(STATISTICS[name](m.a(x), [1])[:, None]), a=conv(3, 6), b=conv(1, 5)).double()
    x = image(side=4).double()
    out, (kept,) = partly(net, x, ("a.weight", 0, 6))
    assert 2 <= len(kept) < 6
    torch.testing.assert_close(out, net.b(STATISTICS[name](net.a(x)[:, kept], [1])[:, None]))


def test_a_norm_of_weights_is_that_of_the_columns_left():
    torch.manual_seed(0)
    net = Net(lambda m, x: m.b(m.w(m.a(x))), a=conv(3, 6), w=normed(), b=conv(7, 5)).double()
    x = image(side=4).double()
    own = "w.parametrizations.weight.original"
    out, (rows, columns) = partly(net, x, (f"{own}1", 0, 7), ("a.weight", 0, 6))
    assert 2 <= len(columns) < 6
    magnitudes, directions = net.get_parameter(f"{own}0")[rows], net.get_parameter(f"{own}1")[rows][:, columns]
    weight = magnitudes * F.normalize(directions.flatten(1)).view_as(directions)
    made = F.conv2d(net.a(x)[:, columns], weight, net.w.bias[rows], padding=1)
    torch.testing.assert_close(out, F.conv2d(made, net.b.weight[:, rows], net.b.bias, padding=1))


def unexpected(case):
    """The same case without what it expects of slots."""
    return type(case)(case.make, case.free)


class Names(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(str(func.overloadpacket))
        return func(*args, **kwargs or {})


def test_a_reshape_is_one_operator_under_each_of_its_names():
    names = set()
    for case in CASES["aten.view"]:
        net, x = case.make()
        with Names() as seen, torch.no_grad():
            net(x)
        names |= seen.names
    assert set(VIEWS) <= names
    assert set(VIEWS.values()) == {"aten.view"}
    assert not set(VIEWS) & set(RULES), "the rule of another name would never be asked"
