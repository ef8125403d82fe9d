"""What other people's networks compute over channels: norms by hand, standardised kernels, gates, recurrence."""

import pytest
import torch
import torch.nn.functional as F
from prune_nets import Net, conv, draw, image, proved, sizes
from torch import nn
from torch.nn.utils import prune as unstructured
from torch.nn.utils import weight_norm

from compress import prune


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


# Norms written by hand -------------------------------------------------------------------------------------


class Norm(nn.Module):
    def __init__(self, run, wide=16, dims=2):
        super().__init__()
        self.run = run
        self.weight = nn.Parameter(1 + 0.1 * torch.randn(wide, *[1] * dims))
        self.bias = nn.Parameter(0.1 * torch.randn(wide, *[1] * dims))

    def forward(self, x):
        return self.run(x) * self.weight + self.bias


def layer(x):
    u = x.mean(1, keepdim=True)
    return (x - u) / torch.sqrt((x - u).pow(2).mean(1, keepdim=True) + 1e-6)


def variance(x):
    v, m = torch.var_mean(x, dim=1, keepdim=True, correction=0)
    return (x - m) * (v + 1e-6).rsqrt()


def responses(x):
    g = x.pow(2).sum((2, 3), keepdim=True).add(1e-6).sqrt()
    return x * (g / (g.mean(1, keepdim=True) + 1e-6))


NORMS = {
    "a layer norm": layer,
    "with var_mean": variance,
    "an RMS norm": lambda x: x * torch.rsqrt(x.pow(2).mean(1, keepdim=True) + 1e-6),
    "with mean of squares": lambda x: x / (x.square().mean(dim=1, keepdim=True) + 1e-6).sqrt(),
    "global responses": responses,
    "F.layer_norm of weights that are computed": None,
}


def computed(m, x):
    weight, bias = m.n.weight.flatten() + 1, m.n.bias.flatten() * 2
    y = F.layer_norm(m.a(x).permute(0, 2, 3, 1), (m.a.out_channels,), weight, bias)
    return m.b(y.permute(0, 3, 1, 2).relu())


@pytest.mark.parametrize("name", NORMS)
def test_channels_under_a_norm_by_hand_are_proved_like_those_under_a_layer_norm(name):
    run = NORMS[name]
    forward = computed if run is None else lambda m, x: m.b(m.n(m.a(x)).relu())
    net = Net(forward, a=conv(3, 16), n=Norm(run), b=conv(16, 5))
    trace = prune.trace(net, image(2))
    if run is None:
        # A shift that is computed need not be zero where its channel is masked.
        for seed in range(3):
            if trace.groups:
                prune.check(net, draw(trace, seed), image())
        return
    proved(net, draws=4)
    assert sizes(trace) == {"a": 16}
    assert not trace.preserving[trace.slots["a.weight", 0]].any()


def test_a_gate_over_the_mean_and_the_largest_channel():
    def run(m, x):
        y = m.a(x)
        return m.b(y * m.g(torch.cat([y.mean(1, keepdim=True), y.amax(1, keepdim=True)], 1)).sigmoid())

    trace = proved(Net(run, a=conv(3, 12), g=conv(2, 1), b=conv(12, 5)), draws=4)
    assert sizes(trace) == {"a": 12}


# Kernels ---------------------------------------------------------------------------------------------------


class Standardised(nn.Conv2d):
    """Each filter has mean 0 and variance 1, over the columns that there are."""

    def __init__(self, *args, by, **settings):
        super().__init__(*args, padding=1, **settings)
        self.by, self.gain = by, nn.Parameter(torch.ones(self.out_channels))

    def forward(self, x):
        w = self.weight
        if self.by == "batch norm":
            w = F.batch_norm(w.reshape(1, len(w), -1), None, None, self.gain, training=True, eps=1e-6).reshape_as(w)
        else:
            w = w - w.mean((1, 2, 3), keepdim=True)
            w = w / (w.pow(2).mean((1, 2, 3), keepdim=True) + 1e-6).sqrt() * self.gain.view(-1, 1, 1, 1)
        return F.conv2d(x, w, self.bias, padding=1)


@pytest.mark.parametrize("by", ["batch norm", "hand"])
def test_the_columns_of_a_standardised_kernel_go(by):
    layers = [Standardised(3, 8, 3, by=by), nn.ReLU(), Standardised(8, 10, 3, by=by), nn.ReLU(), conv(10, 5)]
    assert sizes(proved(nn.Sequential(*layers), draws=4)) == {"0": 8, "2": 10}


def test_the_columns_of_a_kernel_with_a_weight_norm_go():
    norm = nn.utils.parametrizations.weight_norm
    trace = proved(nn.Sequential(norm(conv(3, 8)), nn.ReLU(), norm(conv(8, 10)), nn.ReLU(), conv(10, 5)), draws=4)
    assert sorted(n for n in sizes(trace).values()) == [8, 10]


class Blur(nn.Module):
    """A depthwise kernel of constants, one copy a channel."""

    def __init__(self, wide):
        super().__init__()
        self.channels, row = wide, torch.tensor([1.0, 2.0, 1.0]) / 4
        self.register_buffer("kernel", (row[:, None] * row)[None, None].repeat(wide, 1, 1, 1), persistent=False)

    def forward(self, x):
        return F.conv2d(F.pad(x, (1, 1, 1, 1), "reflect"), self.kernel, stride=2, groups=self.channels)


def test_channels_through_a_constant_kernel_go_and_so_do_its_copies():
    net = nn.Sequential(conv(3, 12), nn.ReLU(), Blur(12), conv(12, 5))
    trace = proved(net)
    assert sizes(trace) == {"0": 12}
    small = prune.apply(net, draw(trace, 1))
    assert len(small[2].kernel) == small[2].channels == small[0].out_channels


# Constants beside channels ---------------------------------------------------------------------------------


@pytest.mark.parametrize("first", [True, False])
def test_channels_beside_constants_and_inputs_go(first):
    def run(m, x):
        y, more = m.a(x), [torch.ones(len(x), 2, *x.shape[2:]).to(x), x]
        return m.b(torch.cat([y, *more] if first else [*more, y], 1))

    trace = proved(Net(run, a=conv(3, 12), b=conv(17, 5)))
    assert sizes(trace) == {"a": 12}


# Recurrence ------------------------------------------------------------------------------------------------

RECURRENT = {
    "LSTM": lambda: nn.LSTM(9, 8, batch_first=True),
    "LSTM of two layers and directions": lambda: nn.LSTM(9, 8, 2, batch_first=True, bidirectional=True),
    "GRU": lambda: nn.GRU(9, 8, batch_first=True),
    "GRU of two layers": lambda: nn.GRU(9, 8, 2, batch_first=True),
    "RNN": lambda: nn.RNN(9, 8, batch_first=True),
}


@pytest.mark.parametrize("name", RECURRENT)
def test_hidden_units_and_inputs_go(name):
    own = RECURRENT[name]()
    wide = 8 * (2 if own.bidirectional else 1)
    net = Net(lambda m, x: m.o(m.r(m.i(x))[0]), i=nn.Linear(5, 9), r=own, o=nn.Linear(wide, 3))
    trace = proved(net, torch.randn(4, 3, 5), draws=2)
    assert sizes(trace) == {"i": 9, "r": 8}
    small = prune.apply(net, draw(trace, 1))
    assert (small.r.input_size, small.r.hidden_size) == (small.i.out_features, small.r.weight_hh_l0.shape[1])


@pytest.mark.parametrize("cell", [nn.LSTMCell, nn.GRUCell, nn.RNNCell])
@pytest.mark.parametrize("steps", [1, 3])
def test_hidden_units_of_cells_go(cell, steps):
    def run(m, x):
        state = None
        for k in range(steps):
            state = m.r(m.i(x[:, k]), state)
        return m.o(state[0] if cell is nn.LSTMCell else state)

    trace = proved(Net(run, i=nn.Linear(5, 9), r=cell(9, 8), o=nn.Linear(8, 3)), torch.randn(4, 3, 5), draws=2)
    assert sizes(trace) == {"i": 9, "r": 8}


def test_a_projection_of_hidden_units_stays():
    net = Net(lambda m, x: m.r(x)[0], r=nn.LSTM(5, 8, proj_size=3, batch_first=True))
    assert "has no rule" in prune.trace(net, torch.randn(2, 3, 5)).protected["r.weight_hh_l0:0"]


class Convolutional(nn.Module):
    """A state that starts at zero, side by side with the input."""

    def __init__(self, hidden=6):
        super().__init__()
        self.hidden, self.gates, self.o = hidden, conv(3 + hidden, 4 * hidden), conv(hidden, 5)

    def forward(self, x):
        h = c = torch.zeros(len(x), self.hidden, *x.shape[2:]).to(x)
        for _ in range(2):
            i, f, o, g = self.gates(torch.cat([x, h], 1)).chunk(4, 1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
        return self.o(h)


def test_a_state_that_starts_at_zero_goes_with_its_channels():
    assert sizes(proved(Convolutional(), image(4, 5))) == {"gates": 6}


def test_zeros_that_something_is_written_into_are_zeros_no_more():
    def run(m, x):
        y = m.a(x)
        out = torch.zeros(len(x), y.shape[1], *x.shape[2:]).to(x)
        out[:, :, 1:] = torch.sigmoid(y[:, :, 1:])
        return m.b(out * torch.exp(m.c(x)))

    trace = prune.trace(Net(run, a=conv(3, 6), c=conv(3, 6), b=conv(6, 5)), image(2))
    assert not trace.groups


# The proof -------------------------------------------------------------------------------------------------


class Single(nn.LayerNorm):
    """Computed in single precision inside a network of any."""

    def forward(self, x):
        return F.layer_norm(
            x.to(torch.float32), self.normalized_shape, self.weight.float(), self.bias.float(), self.eps
        ).type_as(x)


class Typed(nn.LayerNorm):
    def forward(self, x):
        return super().forward(x.type(torch.float32)).type(x.dtype)


@pytest.mark.parametrize("norm", [Single, Typed])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64])
def test_a_norm_in_single_precision_is_proved_in_double(norm, dtype):
    x = torch.randn(8, 5)
    net = nn.Sequential(nn.Linear(5, 12), norm(12), nn.Linear(12, 3))
    trace = prune.trace(net, x)
    net, x = (net.to(dtype), x.to(dtype)) if norm is Single else (net, x)
    assert prune.check(net, draw(trace, 1), x).worst <= 1e-12


@pytest.mark.parametrize("how", [weight_norm, lambda m: unstructured.random_unstructured(m, "weight", 0.5)])
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_weights_that_hooks_compute_are_proved_too(how):
    net = nn.Sequential(how(conv(3, 8)), nn.ReLU(), conv(8, 5))
    net(image(2))
    proved(net)


NOISE = {
    "randn_like": torch.randn_like,
    "rand of a size": lambda y: torch.rand(y.shape).to(y),
}


@pytest.mark.parametrize("name", NOISE)
def test_noise_on_channels_that_go_is_no_difference(name):
    def run(m, x):
        y, z = m.a(x), m.c(x)
        return m.b(y + z * NOISE[name](z))

    trace = proved(Net(run, a=conv(3, 8), c=conv(3, 8), b=conv(8, 5)))
    assert sizes(trace) == {"a": 8}


class Forwards(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 2

    @staticmethod
    def backward(ctx, grad):
        raise NotImplementedError("has no gradient")


def test_a_network_that_no_gradient_goes_through_is_proved_as_far_as_it_goes():
    net = Net(lambda m, x: Forwards.apply(m.b(m.a(x).relu())), a=conv(3, 8), b=conv(8, 5))
    proof = prune.check(net, draw(prune.trace(net, image(2)), 1), image())
    assert proof.train_gradient is None
    assert "backward pass fails before a cut too (has no gradient)" in proof.unproved
    assert proof.train_forward is not None
    assert proof.worst <= 1e-10


def test_a_network_that_trains_on_more_than_an_example_is_proved_in_eval():
    def run(m, x):
        if m.training:
            raise ValueError("give targets")
        return m.b(m.a(x).relu())

    net = Net(run, a=conv(3, 8), b=conv(8, 5))
    proof = prune.check(net, draw(prune.trace(net.eval(), image(2)), 1), image())
    assert (proof.train_forward, proof.train_gradient) == (None, None)
    assert "training pass fails before a cut too (give targets)" in proof.unproved
