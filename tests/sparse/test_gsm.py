"""Global sparse momentum: the update by hand, state, ranks, and what it is for."""

import itertools
import socket
from pathlib import Path

import processes
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning.fabric import Fabric
from safetensors.torch import load_file
from sparse_nets import batch, take_steps, two_layers, with_convolution
from torch import nn

from compress import sparse
from compress.errors import ModelError, TrainingError
from compress.sparse.gsm import gsm_reference

pytestmark = pytest.mark.heavy

CHILD = Path(__file__).with_name("gsm_child.py")


@pytest.mark.parametrize(("lr", "momentum", "steps"), [(0.01, 0.9, 2000), (0.002, 0.98, 8000), (0.03, 0.0, 500)])
def test_what_learns_nothing_shrinks_by_what_was_asked_whatever_rate_and_length(lr, momentum, steps):
    weights = nn.Parameter(torch.tensor([[1.0, 3.0]], dtype=torch.float64))
    decay = sparse.weight_decay_for(5.0, lr * steps, momentum)
    optimizer = sparse.GSM([weights], lr=lr, keep=1, momentum=momentum, weight_decay=decay)
    for _ in range(steps):
        weights.grad = torch.tensor([[0.0, 1e-9]], dtype=torch.float64)  # only the second learns
        optimizer.step()
    # By a part s within the memory of the momentum, 1 / (1 - beta) steps, a weight shrinks s faster than that.
    assert weights[0, 0].log().item() == pytest.approx(-5.0, rel=0.03)


def test_five_weights_by_hand():
    """lr 0.1, momentum 0.5, decay 0.01, Q = 2: T = 2, 0.9, 0.2, 0, 3, so the first and the last learn.

    First step:  Z = 0.01 W + B g = 1.02, -0.03, 0.001, 0.004, -0.99;      W = 2 - 0.102, -3 + 0.003, ...
    Second step, T = 1.898, 2.997, 0.1, 0, 0.1099..., so the first and the second:
                 Z = 0.5 Z + 0.01 W + B g.
    """
    matrix = nn.Parameter(torch.tensor([[2.0, -3.0, 0.1, 0.4, 1.0]], dtype=torch.float64))
    bias = nn.Parameter(torch.tensor([1.0], dtype=torch.float64))
    optimizer = sparse.GSM([matrix, bias], lr=0.1, keep=2, momentum=0.5, weight_decay=0.01)

    matrix.grad = torch.tensor([[1.0, 0.3, 2.0, 0.0, -3.0]], dtype=torch.float64)
    bias.grad = torch.tensor([0.5], dtype=torch.float64)
    optimizer.step()
    torch.testing.assert_close(
        matrix.detach(),
        torch.tensor([[2 - 0.102, -3 + 0.003, 0.1 - 0.0001, 0.4 - 0.0004, 1 + 0.299]], dtype=torch.float64),
        rtol=0,
        atol=1e-12,
    )
    assert bias.item() == pytest.approx(0.95, abs=1e-12)  # learns, and does not decay
    assert sparse.active(optimizer)[0].tolist() == [[True, False, False, False, True]]

    matrix.grad = torch.tensor([[1.0, -1.0, 1.0, 0.0, 0.1]], dtype=torch.float64)
    bias.grad = torch.tensor([0.0], dtype=torch.float64)
    optimizer.step()
    z = [
        0.5 * 1.02 + 0.01 * 1.898 + 1,
        0.5 * -0.03 + 0.01 * -2.997 - 1,
        0.5 * 0.001 + 0.01 * 0.0999,
        0.5 * 0.004 + 0.01 * 0.3996,
        0.5 * -2.99 + 0.01 * 1.299,
    ]
    w = [1.898, -2.997, 0.0999, 0.3996, 1.299]
    expected = torch.tensor([[a - 0.1 * b for a, b in zip(w, z, strict=True)]], dtype=torch.float64)
    torch.testing.assert_close(matrix.detach(), expected, rtol=0, atol=1e-12)
    assert bias.item() == pytest.approx(0.95 - 0.1 * 0.25, abs=1e-12)  # momentum alone


@given(st.integers(1, 60), st.integers(0, 1000), st.floats(0, 0.99), st.floats(0, 0.1))
@settings(max_examples=40, deadline=None)
def test_steps_are_those_of_a_sort(keep, seed, momentum, decay):
    generator = torch.Generator().manual_seed(seed)
    shapes = ((5, 6), (2, 3, 1, 5))
    weights = [torch.randn(s, generator=generator, dtype=torch.float32) for s in shapes]
    parameters = [nn.Parameter(w.clone()) for w in weights]
    optimizer = sparse.GSM(parameters, lr=0.05, keep=keep, momentum=momentum, weight_decay=decay)
    buffers = [torch.zeros_like(w) for w in weights]
    for _ in range(3):
        gradients = [torch.randn(s, generator=generator) for s in shapes]
        for p, g in zip(parameters, gradients, strict=True):
            p.grad = g.clone()
        weights, buffers = gsm_reference(
            [p.detach() for p in parameters], gradients, buffers, keep, (0.05, momentum, decay)
        )
        optimizer.step()
        assert sum(int(mask.sum()) for mask in sparse.active(optimizer)) == keep
        for p, w in zip(parameters, weights, strict=True):
            torch.testing.assert_close(p.detach(), w, rtol=1e-5, atol=1e-6)


def test_weights_of_all_layers_and_groups_compete():
    """All of the first layer's products are above the second's: with Q = 4 only the first learns."""
    first, second = nn.Parameter(torch.full((2, 2), 10.0)), nn.Parameter(torch.full((2, 2), 1.0))
    optimizer = sparse.GSM([{"params": [first]}, {"params": [second], "lr": 1.0}], lr=0.1, keep=4, weight_decay=0.0)
    first.grad, second.grad = torch.ones(2, 2), torch.full((2, 2), 5.0)
    optimizer.step()
    assert (first != 10).all()
    assert (second == 1).all()


def test_a_passive_weight_shrinks_by_the_rate_that_momentum_and_decay_give():
    weight = nn.Parameter(torch.tensor([[1.0, 1.0]], dtype=torch.float64))
    optimizer = sparse.GSM([weight], lr=1e-3, keep=1, momentum=0.9, weight_decay=0.1)
    for _ in range(400):
        weight.grad = torch.tensor([[0.0, 1e-9]], dtype=torch.float64)
        optimizer.step()
    # alpha eta / (1 - beta) = 1e-3 a step, once momentum has gathered.
    assert weight[0, 0].item() == pytest.approx((1 - 1e-3) ** 390, rel=0.01)


def test_training_goes_on_from_a_state_dict_as_without():
    ends = []
    for interrupted in (False, True):
        model = two_layers()
        optimizer = sparse.GSM(model.named_parameters(), lr=0.1, keep=12, momentum=0.9)
        take_steps(model, optimizer)
        if interrupted:
            state, fresh = optimizer.state_dict(), two_layers(seed=9)
            fresh.load_state_dict(model.state_dict())
            model, optimizer = fresh, sparse.GSM(fresh.named_parameters(), lr=9.0, keep=3, momentum=0.1)
            optimizer.load_state_dict(state)
            assert optimizer.keep == 12
        take_steps(model, optimizer, seed=2)
        ends.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert torch.equal(*ends)


def test_it_runs_under_fabric_with_a_closure():
    model = two_layers()
    fabric = Fabric(accelerator="cpu", devices=1)
    network, optimizer = fabric.setup(model, sparse.GSM(model.named_parameters(), lr=0.1, keep=12, momentum=0.9))
    inputs, labels = batch()

    def closure():
        optimizer.zero_grad()
        loss = F.cross_entropy(network(inputs), labels)
        fabric.backward(loss)
        return loss

    plain = two_layers()
    beside = sparse.GSM(plain.parameters(), lr=0.1, keep=12, momentum=0.9)
    losses = [float(optimizer.step(closure).detach()) for _ in range(5)]
    take_steps(plain, beside, 5)
    assert losses[-1] < losses[0]
    assert torch.equal(model[0].weight, plain[0].weight)
    assert sum(int(mask.sum()) for mask in sparse.active(optimizer.optimizer)) == 12


def test_a_gradient_in_another_layout_counts_all_the_same():
    ends = []
    for layout in (torch.contiguous_format, torch.channels_last):
        weight = nn.Parameter(torch.arange(1.0, 37.0).view(2, 2, 3, 3))
        weight.grad = torch.arange(36.0, 0.0, -1.0).view(2, 2, 3, 3).to(memory_format=layout)
        sparse.GSM([weight], lr=0.1, keep=7).step()
        ends.append(weight.detach())
    assert torch.equal(*ends)


def test_parameters_without_a_gradient_are_left_alone():
    model = two_layers()
    before = model[2].weight.detach().clone()
    optimizer = sparse.GSM(model.parameters(), lr=0.1, keep=70, weight_decay=0.5)
    model[0](batch()[0]).square().mean().backward()
    optimizer.step()
    assert torch.equal(model[2].weight, before)


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"keep": 0}, ModelError, "keep 0 of the network's 72 weights"),
        ({"keep": 73}, ModelError, "keep 73 of the network's 72 weights"),
        ({"momentum": 1.0}, ValueError, r"momentum=1\.0"),
        ({"lr": -1}, ValueError, "lr=-1"),
        ({"weight_decay": float("nan")}, ValueError, "weight_decay=nan"),
    ],
)
def test_numbers_out_of_range_are_refused(change, error, said):
    with pytest.raises(error, match=said):
        sparse.GSM(two_layers().parameters(), **{"lr": 0.1, "keep": 12} | change)


def test_a_sparse_gradient_is_refused():
    table = nn.Embedding(4, 3, sparse=True)
    optimizer = sparse.GSM(table.parameters(), lr=0.1, keep=2)
    table(torch.tensor([1])).sum().backward()
    with pytest.raises(TrainingError, match="dense gradients"):
        optimizer.step()


def test_norms_and_biases_are_not_thinned():
    model = with_convolution()
    optimizer = sparse.GSM(model.named_parameters(), lr=0.1, keep=1, weight_decay=0.1)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    model(torch.randn(4, 2, 6, 6)).square().mean().backward()
    optimizer.step()
    assert (model[1].weight != before["1.weight"]).any()
    assert sum(int(mask.sum()) for mask in sparse.active(optimizer)) == 1


def test_training_leaves_q_weights_that_the_cut_does_not_hurt():
    """The cut of a network that learned to live on Q weights costs next to nothing; of another, the network."""
    ends = {}
    for kind in ("gsm", "sgd"):
        model = two_layers(width=24)
        optimizer = (
            sparse.GSM(model.named_parameters(), lr=0.05, keep=30, momentum=0.98, weight_decay=5e-3)
            if kind == "gsm"
            else torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.98, weight_decay=5e-3)
        )
        take_steps(model, optimizer, 800)
        ready = sparse.readiness(sparse.weights_of(model).values(), 30)
        inputs, labels = batch()
        with torch.no_grad():
            before = float(F.cross_entropy(model(inputs), labels))
            sparse.largest(model, 30).apply_(model)
            ends[kind] = (float(F.cross_entropy(model(inputs), labels)) - before, ready)
    assert ends["gsm"][0] < 0.1 < 0.4 < ends["sgd"][0]
    assert ends["gsm"][1].energy < 0.02 < 0.2 < ends["sgd"][1].energy
    assert ends["gsm"][1].survivors < 100 < ends["sgd"][1].survivors


# What is told of it --------------------------------------------------------------------------------------


def test_readiness_by_hand():
    ready = sparse.readiness([torch.tensor([3.0, -2.0]), torch.tensor([[0.5], [0.01]])], 2)
    assert (ready.survivors, ready.gap) == (3, 0.25)
    assert ready.energy == pytest.approx((0.25 + 0.0001) / (9 + 4 + 0.25 + 0.0001))
    with pytest.raises(ModelError, match="5 cannot be kept"):
        sparse.readiness([torch.ones(4)], 5)


def test_reactivation_is_the_share_of_passive_weights_that_came_back():
    seen = sparse.Reactivation()
    for active in ([1, 0, 0, 0], [0, 1, 0, 0], [0, 1, 0, 0], [1, 1, 1, 1]):
        seen.look([torch.tensor(active, dtype=torch.bool)])
        resumed = sparse.Reactivation()
        resumed.load_state_dict(seen.state_dict())
        seen = resumed
    assert seen.shares == [1 / 3, 0.0, 1.0]


def test_the_approximation_is_exact_where_the_loss_is_linear_and_wrong_by_half_where_it_is_square():
    model = nn.Linear(2, 1, bias=False).double()
    model.weight.data = torch.tensor([[3.0, 2.0]], dtype=torch.float64)
    masks = sparse.Masks({"weight": torch.tensor([[True, False]])})
    linear = sparse.approximation(model, masks, lambda m: m.weight.sum())["weight"]
    assert (linear.predicted, linear.actual, linear.relative) == (-2.0, -2.0, 0.0)
    square = sparse.approximation(model, masks, lambda m: m.weight.square().sum())["weight"]
    assert (square.predicted, square.actual, square.relative) == (-8.0, -4.0, 1.0)
    assert model.weight.tolist() == [[3.0, 2.0]]


def test_layers_are_told_by_what_they_lose():
    masks = sparse.Masks({"a": torch.tensor([True, False]), "b": torch.tensor([False, False])})
    assert list(sparse.layers_dropped(masks).items()) == [("b", 1.0), ("a", 0.5)]


# Ranks ---------------------------------------------------------------------------------------------------


def test_two_ranks_find_the_same_masks_and_end_with_the_same_weights(tmp_path):
    """Also where gradients travel as float16."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = str(found.getsockname()[1])
    where = processes.ENVIRONMENT | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2"}
    children = [
        processes.started(tmp_path / "out", script=CHILD, cwd=tmp_path, env=where | {"RANK": str(rank)})
        for rank in range(2)
    ]
    for child in map(processes.finished, children):
        assert child.returncode == 0, child.stderr[-2000:]
    for kind in ("plain", "compressed"):
        first, second = (load_file(tmp_path / f"out.{kind}.{rank}.safetensors") for rank in range(2))
        for name, tensor in first.items():
            assert torch.equal(tensor, second[name]), (kind, name)
        active = [first[f"active.{step}.0"] for step in range(6)]
        assert any(not torch.equal(one, two) for one, two in itertools.pairwise(active))  # the choice moved


def test_layers_alone_is_what_the_loss_rises_by_for_each():
    net = nn.Sequential(nn.Linear(4, 1, bias=False), nn.Linear(1, 1, bias=False))
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[4.0, -3.0, 2.0, 1.0]]))
        net[1].weight.fill_(2.0)
    # At one half 4 and -3 stay of the first layer: 2 * (4 - 3) for 2 * (4 - 3 + 2 + 1); the single weight always stays.
    found = sparse.layers_alone(net, 0.5, lambda model: -model(torch.ones(1, 4)).sum())
    assert found == {"0.weight": pytest.approx(6.0), "1.weight": 0.0}
    assert net[0].weight.tolist() == [[4.0, -3.0, 2.0, 1.0]]
    with pytest.raises(ModelError, match="A density of 0 is impossible"):
        sparse.layers_alone(net, 0.0, lambda model: model(torch.ones(1, 4)).sum())
