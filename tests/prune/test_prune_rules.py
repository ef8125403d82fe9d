"""One tiny network for each rule of the table: which channels it ties together, and a proof by cutting."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from prune_nets import Net, conv, halves, image, proved, sizes
from torch import nn

from compress import prune

# Products -------------------------------------------------------------------------------------------------


def test_a_convolution_ties_rows_to_the_next_columns():
    trace = proved(Net(lambda m, x: m.b(F.relu(m.a(x))), a=conv(3, 8), b=conv(8, 5)))
    assert sizes(trace) == {"a": 8}
    assert set(trace.groups[0].slots) == {("a.weight", 0), ("a.bias", 0), ("b.weight", 1)}
    assert trace.roles["a.weight", 0] == trace.roles["a.bias", 0] == "producer"
    assert trace.roles["b.weight", 1] == "consumer"


def test_a_grouped_convolution_keeps_its_groups_equal():
    net = Net(lambda m, x: m.c(F.relu(m.g(F.relu(m.a(x))))), a=conv(3, 16), g=conv(16, 12, groups=4), c=conv(12, 5))
    trace = proved(net)
    assert sizes(trace) == {"a": 4, "g": 3}
    small = prune.apply(net, halves(trace, 1, 1))
    assert (small.g.groups, small.g.in_channels, small.g.out_channels) == (4, 12, 8)
    assert small.g.weight.shape == (8, 3, 3, 3)


def test_a_depthwise_convolution_ties_in_to_out_with_its_multiplier():
    net = Net(lambda m, x: m.c(F.relu(m.d(F.relu(m.a(x))))), a=conv(3, 6), d=conv(6, 12, groups=6), c=conv(12, 5))
    trace = proved(net)
    assert sizes(trace) == {"a": 6}
    np.testing.assert_array_equal(trace.slots["d.weight", 0], np.repeat(trace.slots["a.weight", 0], 2))
    small = prune.apply(net, halves(trace, 2, 0))
    assert (small.d.groups, small.d.in_channels, small.d.out_channels) == (4, 4, 8)


def test_a_transposed_convolution_has_its_rows_in_dimension_one():
    net = Net(
        lambda m, x: m.c(F.relu(m.t(F.relu(m.a(x))))), a=conv(3, 6), t=nn.ConvTranspose2d(6, 4, 2, 2), c=conv(4, 5)
    )
    trace = proved(net)
    assert sizes(trace) == {"a": 6, "t": 4}
    assert trace.roles["t.weight", 1] == "producer"
    assert trace.roles["t.weight", 0] == "consumer"


def test_a_grouped_transposed_convolution_ties_the_same_place_of_each_group():
    net = Net(lambda m, x: m.c(m.t(m.a(x))), a=conv(3, 6), t=nn.ConvTranspose2d(6, 4, 2, 2, groups=2), c=conv(4, 5))
    assert sizes(proved(net)) == {"a": 3, "t": 2}


def test_a_depthwise_transposed_convolution_ties_in_and_out():
    net = Net(lambda m, x: m.c(m.t(m.a(x))), a=conv(3, 6), t=nn.ConvTranspose2d(6, 12, 2, 2, groups=6), c=conv(12, 5))
    assert sizes(proved(net)) == {"a": 6}


def test_a_one_dimensional_convolution_is_a_convolution():
    net = Net(lambda m, x: m.b(F.relu(m.a(x))), a=nn.Conv1d(3, 8, 3), b=nn.Conv1d(8, 5, 3))
    assert sizes(proved(net, torch.randn(8, 3, 12))) == {"a": 8}


def test_linear_layers_tie_rows_to_columns():
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 10, bias=False), nn.ReLU(), nn.Linear(10, 4))
    trace = proved(net, torch.randn(8, 6))
    assert sizes(trace) == {"0": 8, "2": 10}
    assert trace.protected["4.weight:0"] == "graph output"


def test_a_linear_layer_reads_the_last_of_three_dimensions():
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))
    assert sizes(proved(net, torch.randn(8, 5, 6))) == {"0": 8}


# Norms ----------------------------------------------------------------------------------------------------


def test_batch_norm_belongs_to_its_channels():
    net = Net(lambda m, x: m.b(F.relu(m.n(m.a(x)))), a=conv(3, 8), n=nn.BatchNorm2d(8), b=conv(8, 5))
    trace = proved(net)
    slots = set(trace.groups[0].slots)
    assert {("n.weight", 0), ("n.bias", 0), ("n.running_mean", 0), ("n.running_var", 0)} <= slots
    assert trace.roles["n.running_var", 0] == "statistic"
    small = prune.apply(net, halves(trace, 3, 0))
    assert small.n.num_features == len(small.n.running_var) == len(small.n.weight) == 5


@pytest.mark.parametrize("settings", [{"affine": False}, {"track_running_stats": False}])
def test_batch_norm_without_affine_or_statistics_is_cut_too(settings):
    net = Net(lambda m, x: m.b(F.relu(m.n(m.a(x)))), a=conv(3, 8), n=nn.BatchNorm2d(8, **settings), b=conv(8, 5))
    trace = prune.trace(net, image())
    assert sizes(trace) == {"a": 8}
    proved(net)
    if "affine" not in settings:
        assert prune.apply(net, halves(trace, 3, 0)).n.num_features == 5


# Channels that meet ---------------------------------------------------------------------------------------


def test_a_residual_sum_ties_both_sides():
    net = Net(
        lambda m, x: (lambda y: m.c(F.relu(y + m.b(y))))(F.relu(m.a(x))), a=conv(3, 8), b=conv(8, 8), c=conv(8, 5)
    )
    trace = proved(net)
    assert sizes(trace) == {"a": 8}
    assert {("a.weight", 0), ("b.weight", 0), ("b.weight", 1), ("c.weight", 1)} <= set(trace.groups[0].slots)


def test_a_squeeze_and_excite_gate_follows_its_channels():
    def run(m, x):
        y = F.relu(m.a(x))
        gate = torch.sigmoid(m.up(F.relu(m.down(F.adaptive_avg_pool2d(y, 1)))))
        return m.b(y * gate)

    net = Net(run, a=conv(3, 8), down=conv(8, 4, 1), up=conv(4, 8, 1), b=conv(8, 5))
    trace = proved(net)
    assert sizes(trace) == {"a": 8, "down": 4}
    assert ("up.weight", 0) in trace.groups[0].slots
    assert trace.preserving.all()


def test_division_keeps_the_zero_of_what_is_divided():
    net = Net(lambda m, x: m.c(m.a(x) / (1 + m.b(x).abs())), a=conv(3, 8), b=conv(3, 8), c=conv(8, 5))
    assert sizes(proved(net)) == {"a": 8}


def test_a_gate_of_one_channel_stays():
    net = Net(lambda m, x: m.c(m.a(x) * torch.sigmoid(m.g(x))), a=conv(3, 8), g=conv(3, 1), c=conv(8, 5))
    trace = prune.trace(net, image())
    assert sizes(trace) == {"a": 8}
    assert ("g.weight", 0) not in trace.slots, "a dimension of one has no channels to lose"
    proved(net)


# Moving elements ------------------------------------------------------------------------------------------


def test_a_concat_is_the_concatenation_of_labels():
    net = Net(lambda m, x: m.c(F.relu(torch.cat([m.a(x), m.b(x)], 1))), a=conv(3, 4), b=conv(3, 6), c=conv(10, 5))
    trace = proved(net)
    assert sizes(trace) == {"a": 4, "b": 6}
    both = np.concatenate([trace.slots["a.weight", 0], trace.slots["b.weight", 0]])
    np.testing.assert_array_equal(trace.slots["c.weight", 1], both)


def test_a_concat_of_a_channel_with_itself_cuts_both_columns():
    net = Net(lambda m, x: (lambda y: m.c(torch.cat([y, y.neg()], 1)))(m.a(x)), a=conv(3, 4), c=conv(8, 5))
    trace = proved(net)
    np.testing.assert_array_equal(trace.slots["c.weight", 1], np.tile(trace.slots["a.weight", 0], 2))


def test_a_concat_over_space_ties_its_parts():
    net = Net(lambda m, x: m.c(torch.cat([m.a(x), m.b(x)], 3)), a=conv(3, 4), b=conv(3, 4), c=conv(4, 5))
    assert sizes(proved(net)) == {"a": 4}


def test_halves_that_are_multiplied_go_in_pairs():
    def run(m, x):
        left, right = m.a(x).chunk(2, 1)
        return m.b(left * torch.sigmoid(right))

    trace = proved(Net(run, a=conv(3, 8), b=conv(4, 5)))
    assert sizes(trace) == {"a": 4}
    np.testing.assert_array_equal(trace.slots["a.weight", 0][:4], trace.slots["a.weight", 0][4:])


def test_halves_with_their_own_readers_stay_equal_or_stay_whole():
    """`chunk(2)` halves whatever is there: what one half loses, the other has to lose too."""

    def run(m, x):
        left, right = m.a(x).chunk(2, 1)
        return m.b(left) + m.c(right)

    net = Net(run, a=conv(3, 8), b=conv(4, 5), c=conv(4, 5))
    trace = prune.trace(net, image())
    prune.check(net, halves(trace, 1, 3), image())


def test_a_slice_with_a_hard_coded_end_is_found_by_the_trial_cut():
    net = Net(lambda m, x: m.b(m.a(x)[:, 2:6]), a=conv(3, 8), b=conv(4, 5))
    trace = proved(net)
    assert sizes(trace) == {}
    assert trace.protected["a.weight:0"].startswith("fixed size")


def test_a_slice_over_space_leaves_channels_alone():
    assert sizes(proved(Net(lambda m, x: m.b(m.a(x)[:, :, 1:6, ::2]), a=conv(3, 8), b=conv(8, 5)))) == {"a": 8}


def test_a_flip_ties_mirrored_channels():
    net = Net(lambda m, x: (lambda y: m.b(F.relu(y + y.flip(1))))(m.a(x)), a=conv(3, 8), b=conv(8, 5))
    trace = proved(net)
    units = trace.slots["a.weight", 0]
    assert sizes(trace) == {"a": 4}
    np.testing.assert_array_equal(units, units[::-1])


def test_a_flip_over_space_leaves_channels_alone():
    assert sizes(proved(Net(lambda m, x: m.b(m.a(x).flip(3)), a=conv(3, 8), b=conv(8, 5)))) == {"a": 8}


def test_a_roll_over_space_leaves_channels_alone():
    assert sizes(proved(Net(lambda m, x: m.b(m.a(x).roll((1, 2), (2, 3))), a=conv(3, 8), b=conv(8, 5)))) == {"a": 8}


def test_a_roll_of_channels_by_a_fixed_number_is_protected():
    net = Net(lambda m, x: m.b(F.relu(m.a(x).roll(3, 1) + m.c(x))), a=conv(3, 8), c=conv(3, 8), b=conv(8, 5))
    assert sizes(proved(net, draws=6)) == {}


def test_a_roll_of_channels_by_half_of_them_is_never_cut_wrongly():
    def run(m, x):
        y = m.a(x)
        return m.b(F.relu(y.roll(y.shape[1] // 2, 1) + m.c(x)))

    proved(Net(run, a=conv(3, 8), c=conv(3, 8), b=conv(8, 5)), draws=6)


def shuffled(y, groups):
    n, c, h, w = y.shape
    return y.view(n, groups, c // groups, h, w).transpose(1, 2).reshape(n, c, h, w)


def test_a_channel_shuffle_is_never_cut_wrongly():
    """The code shuffles by c // g, so that only some choices of channels come out in the same order."""
    proved(Net(lambda m, x: m.b(F.relu(shuffled(m.a(x), 2))), a=conv(3, 8), b=conv(8, 5)), draws=6)


def test_a_shuffle_between_grouped_convolutions_is_never_cut_wrongly():
    net = Net(
        lambda m, x: m.c(m.h(shuffled(F.relu(m.g(m.a(x))), 2))),
        a=conv(3, 8), g=conv(8, 8, groups=2), h=conv(8, 8, groups=2), c=conv(8, 5),
    )  # fmt: skip
    proved(net, draws=6)


def test_a_hard_coded_view_is_found_by_the_trial_cut():
    def run(m, x):
        y = F.relu(m.a(x))
        return m.b(y.view(len(y), 2, 4, 8, 8).transpose(1, 2).reshape(y.shape))

    trace = proved(Net(run, a=conv(3, 8), b=conv(8, 5)))
    assert sizes(trace) == {}
    assert trace.protected["a.weight:0"].startswith("fixed size")
    assert trace.unknown_ops == ()


def test_a_hard_coded_view_holds_no_other_group_back():
    def run(m, x):
        y = F.relu(m.a(x))
        y = y.view(len(y), 8, 64).view(y.shape)
        return m.c(F.relu(m.b(y)))

    trace = proved(Net(run, a=conv(3, 8), b=conv(8, 6), c=conv(6, 5)))
    assert sizes(trace) == {"b": 6}


def test_a_flatten_repeats_a_channel_for_each_position():
    net = Net(lambda m, x: m.b(torch.flatten(m.a(x), 1)), a=conv(3, 6, stride=2), b=nn.Linear(6 * 16, 5))
    trace = proved(net)
    assert sizes(trace) == {"a": 6}
    np.testing.assert_array_equal(trace.slots["b.weight", 1], np.repeat(trace.slots["a.weight", 0], 16))
    assert prune.apply(net, halves(trace, 2, 0)).b.in_features == 64


def test_pixel_shuffle_never_cuts_wrongly():
    net = Net(lambda m, x: m.b(F.pixel_shuffle(m.a(x), 2)), a=conv(3, 16), b=conv(4, 5))
    proved(net)
