"""What modules hold and how networks are written: buffers, bound methods, hooks, real data, layouts, tied weights."""

import copy

import pytest
import torch
import torch.nn.functional as F
from prune_nets import Net, conv, draw, image, proved, sizes
from torch import nn
from torch.nn.utils import parametrizations
from trial_nets import Middle, Viewed, examples, middle, small

from compress import prune
from compress.errors import ModelError


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


# What modules hold ----------------------------------------------------------------------------------------


class Buffers(Middle):
    def __init__(self, use):
        super().__init__(use=use)
        self.register_buffer("scale", torch.rand(16, 1, 1))
        self.register_buffer("order", torch.randperm(16))
        self.plain = torch.rand(16, 1, 1)

    def middle(self, y):
        return self.use(self, y)


def test_a_buffer_by_channel_is_cut_and_a_tensor_that_is_none_holds_its_channels():
    trace = proved(Buffers(lambda m, y: y * m.scale), examples())
    assert sizes(trace) == {"a": 16}
    assert ("scale", 0) in trace.groups[0].slots
    trace = proved(Buffers(lambda m, y: y * m.plain.to(y)), examples())
    assert trace.protected["a.weight:0"] == "meets a constant"


@pytest.mark.parametrize("pick", [lambda m, y: y[:, m.order], lambda m, y: y.index_select(1, m.order)])
def test_a_fixed_order_of_channels_holds_them(pick):
    trace = proved(Buffers(pick), examples())
    assert trace.protected["a.weight:0"] == "channels are picked by their numbers"


def test_modules_that_are_not_registered_hold_what_reaches_them():
    hidden = [conv(16, 8), conv(8, 16)]

    def run(y):
        for layer in hidden:
            y = F.relu(F.conv2d(y, layer.weight.to(y.dtype), layer.bias.to(y.dtype), padding=1))
        return y

    trace = proved(middle(run), examples())
    assert sizes(trace) == {}
    assert "a constant" in trace.protected["a.weight:0"]


def test_bound_methods_and_tables_of_modules_are_those_of_the_copy():
    class Bound(Middle):
        def __init__(self):
            super().__init__()
            self.c, self.d = conv(16, 12), conv(12, 16)
            self.first, self.table, self.mix = self.c.forward, {"d": self.d}, self.mixed

        def mixed(self, y):
            return self.table["d"](F.relu(self.first(y)))

        def middle(self, y):
            return self.mix(y)

    net = Bound()
    trace = proved(net, examples())
    assert sizes(trace) == {"a": 16, "c": 12, "d": 16}
    cut, _ = small(net, trace)
    assert cut.table["d"] is cut.d


def test_hooks_and_what_they_keep_are_copied():
    class Kept(Middle):
        def __init__(self):
            super().__init__(c=conv(16, 16), kept={})
            self.a.register_forward_hook(self.keep)

        def keep(self, module, inputs, output):
            self.kept["a"] = output

        def middle(self, y):
            return self.c(y) + self.kept["a"]

    for net in (Kept(), copy.deepcopy(Kept())):
        trace = prune.trace(net, examples())
        assert sizes(trace) == {"a": 16}
        assert prune.check(net, draw(trace, 1), examples()).worst <= 1e-10
        assert not net.kept, "the copies have their own"
    net = nn.Sequential(conv(3, 16), nn.ReLU(), conv(16, 12), nn.ReLU(), conv(12, 5))
    net[0].register_forward_hook(lambda module, inputs, output: output * 2)
    net[2].register_forward_pre_hook(lambda module, inputs: (inputs[0].neg(),))
    assert sizes(proved(copy.deepcopy(net), examples())) == {"0": 16, "2": 12}


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN, nn.LSTMCell, nn.GRUCell, nn.RNNCell])
def test_hidden_units_go_between_linear_layers(kind):
    whole = issubclass(kind, nn.RNNBase)

    def run(m, x):
        h = m.r(m.a(x))
        return m.c(F.relu(m.b(h[0] if isinstance(h, tuple) else h)))

    layer = kind(16, 12, batch_first=True) if whole else kind(16, 12)
    net = Net(run, a=nn.Linear(3, 16), r=layer, b=nn.Linear(12, 8), c=nn.Linear(8, 5))
    trace = proved(net, torch.randn(8, 6, 3) if whole else torch.randn(8, 3))
    assert sizes(trace) == {"a": 16, "r": 12, "b": 8}


# Data -----------------------------------------------------------------------------------------------------

DATA = {
    "a branch": (lambda y: F.relu(y) if y.sum() > 0 else torch.tanh(y), {"a": 16}),
    "an item": (lambda y: y * y.abs().max().item(), {}),
    "a mask": (lambda y: y[y.flatten(1).norm(dim=1) > 0], {}),
    "places": (lambda y: y[(y.flatten(1).norm(dim=1) > 0).nonzero()[:, 0]], {"a": 16}),
    "a branch and a fixed size": (lambda y: y if y.sum() > 1e9 else y.view(-1, 16, 16).view(-1, 16, 4, 4), {}),
}


@pytest.mark.parametrize("name", DATA)
def test_a_network_that_looks_at_numbers_runs_on_its_real_tensors(name):
    run, free = DATA[name]
    assert sizes(proved(middle(run), examples())) == free


def test_a_size_that_a_module_keeps_is_followed_on_real_tensors():
    class Real(Viewed):
        def middle(self, y):
            return y if y.sum() > 1e9 else super().middle(y)

    trace = proved(Real(channels=16), examples())
    assert sizes(trace) == {"a": 16}
    assert "channels" in [a.name for a in trace.attributes]


def test_a_network_without_storage_is_traced_unless_its_numbers_are_asked_for():
    net = nn.Sequential(conv(3, 16), nn.BatchNorm2d(16), nn.ReLU(), conv(16, 5)).to("meta")
    trace = prune.trace(net, examples())
    assert sizes(trace) == sizes(prune.trace(net, examples().to("meta"))) == {"0": 16}
    cut = prune.apply(net, draw(trace, 1))
    assert cut[0].weight.is_meta
    assert len(cut[0].weight) == cut[3].weight.shape[1] < 16
    with pytest.raises(ModelError, match="fails on inputs"):
        prune.trace(middle(lambda y: y if y.sum() > 0 else -y).to("meta"), examples())


LAYOUTS = {
    "permuted": lambda: torch.randn(8, 4, 4, 3).permute(0, 3, 1, 2),
    "every second": lambda: image(batch=8, side=8)[:, :, ::2, ::2],
    "expanded": lambda: torch.randn(8, 3, 1, 1).expand(8, 3, 4, 4),
    "channels last": lambda: examples().contiguous(memory_format=torch.channels_last),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_layout_of_the_input_says_nothing_about_channels(name):
    net = nn.Sequential(conv(3, 16), nn.ReLU(), nn.Flatten(), nn.Linear(256, 5))
    assert sizes(proved(net, LAYOUTS[name]())) == {"0": 16}
    net = nn.Sequential(conv(3, 16), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5))
    assert sizes(proved(net.to(memory_format=torch.channels_last), LAYOUTS[name]())) == {"0": 16}


# Parameters -----------------------------------------------------------------------------------------------


def test_weights_that_are_tied_transposed_are_cut_as_one():
    def run(m, x):
        z = F.relu(m.down(F.relu(m.up(x))))
        return m.c(F.linear(F.relu(F.linear(z, m.down.weight.t())), m.up.weight.t()))

    net = Net(run, up=nn.Linear(6, 16), down=nn.Linear(16, 8), c=nn.Linear(6, 5))
    assert sizes(proved(net, torch.randn(8, 6))) == {"up": 16, "down": 8}


def test_a_frozen_trunk_is_cut_and_stays_frozen():
    trunk = nn.Sequential(conv(3, 16), nn.BatchNorm2d(16), nn.ReLU()).requires_grad_(False)
    net = Net(lambda m, x: m.c(F.relu(m.b(m.trunk(x)))), trunk=trunk, b=conv(16, 12), c=conv(12, 5))
    trace = proved(net, examples())
    assert sizes(trace) == {"trunk.0": 16, "b": 12}
    assert not any(p.requires_grad for p in small(net, trace)[0].trunk.parameters())

    def without_gradients(m, x):
        with torch.no_grad():
            y = m.trunk(x)
        return m.c(F.relu(m.b(y)))

    net = Net(without_gradients, trunk=trunk, b=conv(16, 12), c=conv(12, 5))
    assert sizes(proved(net, examples())) == {"trunk.0": 16, "b": 12}


def test_a_weight_norm_lets_rows_and_columns_go():
    net = nn.Sequential(conv(3, 16), nn.ReLU(), parametrizations.weight_norm(conv(16, 12)), nn.ReLU(), conv(12, 5))
    trace = proved(net, examples())
    assert sizes(trace) == {"0": 16, "2.parametrizations.weight": 12}
    assert not trace.preserving[trace.slots["0.weight", 0]].any(), "the norm counts the columns that are left"


def test_a_spectral_norm_is_protected():
    layer = parametrizations.spectral_norm(conv(16, 12))
    net = nn.Sequential(conv(3, 16), nn.ReLU(), layer, nn.ReLU(), conv(12, 8), nn.ReLU(), conv(8, 5))
    trace = proved(net, examples())
    assert sizes(trace) == {"4": 8}
    assert any("dot" in name for name in trace.unknown_ops)


def test_bare_parameters_are_layers_too():
    shapes = {"w": (3, 16), "b": (16,), "v": (16, 12), "o": (12, 5)}
    net = Net(
        lambda m, x: torch.tanh(F.relu(x @ m.w + m.b) @ m.v) @ m.o,
        **{name: nn.Parameter(torch.randn(*shape)) for name, shape in shapes.items()},
    )
    trace = proved(net, torch.randn(8, 3))
    assert sizes(trace) == {"w": 16, "v": 12}
    own = {"w": nn.Parameter(torch.randn(16, 27)), "b": conv(16, 5)}
    kernel = Net(lambda m, x: m.b(F.conv2d(x, m.w.view(-1, 3, 3, 3))), **own)
    assert sizes(proved(kernel, examples())) == {"w": 16}
    fixed = Net(lambda m, x: m.b(F.conv2d(x, m.w.view(16, 3, 3, 3))), **own)
    assert "fixed size" in proved(fixed, examples()).protected["w:0"]


def test_a_parameter_that_divides_is_cut_but_not_masked():
    net = middle(lambda m, y: y / m.g, g=nn.Parameter(torch.rand(16, 1, 1) + 1))
    trace = proved(net, examples())
    assert sizes(trace) == {"a": 16}
    assert trace.roles["g", 0] == "statistic"
