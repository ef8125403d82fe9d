"""Magnitude, surgery, surgeon, dense-sparse-dense, PAC-Net, tickets: each against what it promises."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sparse_nets import take_steps, trainer, two_layers, with_convolution
from torch import nn

from compress import sparse
from compress.errors import ArtifactError, ModelError, TrainingError
from compress.sparse.dns import operated
from compress.sparse.lobs import damped, repaired, second_moments, sensitivities


def linear(*rows):
    layer = nn.Linear(len(rows[0]), len(rows), bias=False)
    layer.weight.data = torch.tensor(rows)
    return nn.Sequential(layer)


# Magnitude -----------------------------------------------------------------------------------------------


def test_the_largest_of_the_network_stay_exactly_so_many_even_among_equals():
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 1, bias=False))
    model[0].weight.data = torch.tensor([[5.0, -4.0], [1.0, 1.0]])
    model[1].weight.data = torch.tensor([[1.0, -6.0]])
    masks = sparse.largest(model, 4)
    assert masks.kept["0.weight"].tolist() == [[True, True], [True, False]]
    assert masks.kept["1.weight"].tolist() == [[False, True]]
    assert (masks.nonzeros, masks.ratio) == (4, 1.5)
    with pytest.raises(ModelError, match="7 cannot be kept"):
        sparse.largest(model, 7)


def test_convolutions_alone_leave_the_classifier_dense():
    assert list(sparse.largest(with_convolution(), 9, "conv").kept) == ["0.weight"]


def test_each_layer_by_its_own_share_and_others_left_dense():
    masks = sparse.largest_per_layer(two_layers(), {"0.*": 0.25})
    assert masks.density() == {"0.weight": 0.25}
    with pytest.raises(ModelError, match=r"1\.5 of '0\.weight'"):
        sparse.largest_per_layer(two_layers(), 1.5)


def test_the_deviation_is_that_of_the_layers_weights():
    masks = sparse.by_deviation(linear([4.0, -4.0, 1.0, -1.0]), 1.0)  # deviation 2.9
    assert masks.kept["0.weight"].tolist() == [[True, True, False, False]]
    assert sparse.by_deviation(linear([2.0]), 1.0).nonzeros == 1  # one weight has no deviation to be below


@given(st.integers(0, 50), st.floats(0, 1))
@settings(max_examples=20, deadline=None)
def test_random_masks_have_the_density_and_follow_the_seed_alone(seed, density):
    model = two_layers()
    one, two = (sparse.at_random(model, density, seed) for _ in range(2))
    assert one.same(two)
    assert [int(m.sum()) for m in one.kept.values()] == [round(density * 48), round(density * 24)]


def test_gradual_density_falls_from_one_to_the_end_by_a_cube():
    found = [sparse.gradual_density(step, 10, 20, 0.2) for step in (0, 10, 15, 20, 99)]
    assert found == [1.0, 1.0, pytest.approx(0.2 + 0.8 * 0.125), 0.2, 0.2]


def test_two_of_four_along_the_input_channels():
    masks = sparse.two_of_four(linear([1.0, -3.0, 2.0, 0.5, 7.0, 7.0, 7.0, 7.0]))
    assert masks.kept["0.weight"].tolist() == [[False, True, True, False, True, True, False, False]]
    torch.manual_seed(0)
    kernel = nn.Sequential(nn.Conv2d(8, 3, 3))
    kept = sparse.two_of_four(kernel).kept["0.weight"]
    assert (kept.view(3, 2, 4, 3, 3).sum(2) == 2).all()


def test_what_has_no_groups_of_four_stays_dense_or_is_refused_by_name():
    assert list(sparse.two_of_four(two_layers()).kept) == ["2.weight"]  # 6 inputs, then 8
    with pytest.raises(ModelError, match=r"'0\.weight' has no input channels in groups of 4"):
        sparse.two_of_four(two_layers(), ["0.weight"])
    with pytest.raises(ModelError, match="no 2:4 pattern"):
        sparse.two_of_four(linear([1.0, 2.0]))


def test_rounds_of_cutting_never_bring_a_weight_back():
    model, log = two_layers(), []
    masks = sparse.prune_and_retrain(model, trainer(log), [0.5, 1.0, 1.2])
    assert [phase for phase, _ in log] == ["round 0", "round 1", "round 2"]
    assert not masks.broken(model)
    zeros = [start["0.weight"] == 0 for _, start in log]
    assert all((later | ~earlier).all() for earlier, later in itertools.pairwise(zeros))
    assert zeros[0].sum() < zeros[2].sum()


# Dynamic network surgery ---------------------------------------------------------------------------------


def test_surgery_cuts_splices_and_leaves_the_middle():
    weights, kept = torch.tensor([0.9, 0.91, 1.0, 1.1, 1.11]), torch.tensor([True, True, False, False, False])
    assert operated(weights, kept, 1.0).tolist() == [False, True, False, False, True]


def test_a_cut_weight_learns_behind_its_mask_and_is_spliced_back():
    """The gradient at the masked network moves the cut weight; above 1.1 t it takes part again with all it learned."""
    model = linear([1.0, 0.1])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2)
    surgery = sparse.DynamicSurgery(model, optimizer, 0.0)  # t = mean = 0.55
    assert surgery.thresholds == {"0.weight": pytest.approx(0.55)}
    assert model[0].weight.tolist() == [[1.0, 0.0]]
    seen = []
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.tensor([[0.0, 1.0]])).sum().mul(-1).backward()  # pulls the second weight up by 0.2 a step
        optimizer.step()
        seen.append(round(float(model[0].weight[0, 1].detach()), 4))
    assert seen == [0.0, 0.0, 0.7]
    masks = surgery.finish()
    assert masks.kept["0.weight"].tolist() == [[True, True]]
    assert not optimizer._optimizer_step_post_hooks


def test_after_the_stop_masks_are_what_they_are():
    model = linear([1.0, 0.1])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2)
    surgery = sparse.DynamicSurgery(model, optimizer, 0.0, stop=1)
    for _ in range(6):
        model[0].weight.grad = torch.tensor([[0.0, -1.0]])
        optimizer.step()
    assert surgery.masks.kept["0.weight"].tolist() == [[True, False]]
    assert model[0].weight.tolist() == [[1.0, 0.0]]


def test_surgery_goes_on_from_its_state_as_without():
    ends = []
    for interrupted in (False, True):
        model = two_layers()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9)
        surgery = sparse.DynamicSurgery(model, optimizer, 0.5, gamma=0.3, seed=3)
        take_steps(model, optimizer, 6)
        if interrupted:
            kept, held = surgery.state_dict(), optimizer.state_dict()
            weights = {n: t.clone() for n, t in model.state_dict().items()}
            model = two_layers(seed=5)
            optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9)
            surgery = sparse.DynamicSurgery(model, optimizer, 0.5, gamma=0.3, seed=4)
            model.load_state_dict(weights)
            optimizer.load_state_dict(held)
            surgery.load_state_dict(kept)
        take_steps(model, optimizer, 6, seed=2)
        assert not surgery.masks.broken(model)
        ends.append(torch.cat([t.flatten() for t in surgery.state_dict().values()]).double())
    assert torch.equal(*ends)
    with pytest.raises(ArtifactError, match="another network"):
        surgery.load_state_dict({"iteration": torch.tensor(1)})


# Optimal brain surgeon -----------------------------------------------------------------------------------


def problem(outputs=3, inputs=5, seed=0):
    torch.manual_seed(seed)
    rows = torch.randn(60, inputs, dtype=torch.float64) @ torch.randn(inputs, inputs, dtype=torch.float64)
    return torch.randn(outputs, inputs, dtype=torch.float64), rows, damped(rows.T @ rows / 60, 1e-9)


def test_one_deletion_changes_the_rest_by_the_surgeons_formula():
    weights, _, hessian = problem(1)
    inverse = torch.linalg.inv(hessian)
    kept = torch.tensor([[True, True, False, True, True]])
    expected = weights[0] - weights[0, 2] / inverse[2, 2] * inverse[:, 2]
    torch.testing.assert_close(repaired(weights, hessian, kept)[0], expected, rtol=1e-9, atol=1e-9)
    error = 0.5 * (expected - weights[0]) @ hessian @ (expected - weights[0])
    torch.testing.assert_close(sensitivities(weights, hessian)[0, 2], error, rtol=1e-9, atol=1e-9)


@given(st.integers(0, 200))
@settings(max_examples=25, deadline=None)
def test_many_deletions_are_a_dense_least_squares(seed):
    weights, rows, hessian = problem(2, 6, seed)
    kept = torch.rand(2, 6, generator=torch.Generator().manual_seed(seed)) > 0.4
    found = repaired(weights, hessian, kept)
    assert (found[~kept] == 0).all()
    for w, mask, row in zip(weights, kept, found, strict=True):
        solved = torch.linalg.lstsq(rows[:, mask], rows @ w).solution
        torch.testing.assert_close(row[mask], solved, rtol=1e-4, atol=1e-5)


def test_the_moments_are_those_of_each_layers_inputs_with_the_bias_as_a_one():
    model = with_convolution().double()
    images = torch.randn(8, 2, 6, 6, dtype=torch.float64)
    found = second_moments(model, {"0.weight": model[0], "4.weight": model[4]}, images.split(3))
    rows = nn.functional.unfold(images, 3).transpose(1, 2).reshape(-1, 18)
    rows = torch.cat([rows, torch.ones(len(rows), 1)], 1)
    torch.testing.assert_close(found["0.weight"], rows.T @ rows / len(rows))
    assert found["4.weight"].shape == (129, 129)
    assert found["4.weight"][-1, -1] == 1


def test_mending_beats_cutting_the_same_weights():
    model = two_layers(width=24)
    inputs = torch.randn(256, 6) @ torch.randn(6, 6)
    plain, whole = two_layers(width=24), two_layers(width=24)
    masks = sparse.prune_layers(model, [inputs], 0.5)
    assert masks.density() == {"0.weight": 0.5, "2.weight": 0.5}
    assert not masks.broken(model)
    assert (model[0].bias != whole[0].bias).any()
    masks.apply_(plain)

    def wrong(network, part):
        return float((part(network)(inputs) - part(whole)(inputs)).detach().square().mean())

    assert wrong(model, lambda m: m[0]) < 0.8 * wrong(plain, lambda m: m[0])
    assert wrong(model, lambda m: m) < wrong(plain, lambda m: m)


def test_what_the_surgeon_does_not_know_is_refused_and_can_be_left_out():
    model = nn.Sequential(nn.Conv2d(4, 4, 3, groups=4), nn.Flatten(), nn.Linear(16, 2))
    images = [torch.randn(9, 4, 4, 4)]
    with pytest.raises(ModelError, match=r"'0\.weight' is of a Conv2d"):
        sparse.prune_layers(model, images, 0.5)
    assert list(sparse.prune_layers(model, images, {"2.*": 0.5}).kept) == ["2.weight"]
    with pytest.raises(ModelError, match=r"No input reached '2\.weight'"):
        sparse.prune_layers(model, [], {"2.*": 0.5})


# Dense-sparse-dense, PAC-Net, tickets --------------------------------------------------------------------


def test_dense_sparse_dense_holds_its_masks_and_releases_from_zero():
    model, log = two_layers(), []
    masks = sparse.dense_sparse_dense(model, trainer(log), 0.25)
    assert masks.density() == {"0.weight": 0.75, "2.weight": 0.75}
    (first, _), (second, released) = log
    assert (first, second) == ("sparse", "dense")
    dropped = ~masks.kept["0.weight"]
    assert (released["0.weight"][dropped] == 0).all()
    assert (model[0].weight[dropped] != 0).any()
    with pytest.raises(TrainingError, match=r"'0\.weight'"):
        sparse.dense_sparse_dense(model, lambda m, keep, phase: trainer()(m, None, phase), 0.25)


def test_pac_net_keeps_the_source_to_the_bit_and_ends_dense():
    model, log = two_layers(), []
    source, target = trainer(log), trainer(log)
    masks = sparse.prune_allocate_calibrate(model, source, target, density=0.5, strength=0.01, head=["2.*"])
    assert [phase for phase, _ in log] == ["allocate", "calibrate"]
    assert masks.density() == {"0.weight": 0.5}
    kept = masks.kept["0.weight"]
    allocated = log[1][1]
    assert (allocated["0.weight"][~kept] == 0).all()
    assert (allocated["0.weight"][kept] != log[0][1]["0.weight"][kept]).any()  # allocation trains what stays
    assert torch.equal(model[0].weight[kept], allocated["0.weight"][kept])
    assert (model[0].weight[~kept] != 0).any()
    assert torch.equal(model[0].bias, allocated["0.bias"])
    assert (model[2].weight != allocated["2.weight"]).all()


def test_the_pull_is_the_gradient_of_the_squared_distance():
    model = linear([1.0, 2.0])
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    sparse.pull_to({"0.weight": torch.tensor([[0.0, 2.0]])}, 0.25)(model, optimizer)
    model[0].weight.grad = torch.tensor([[0.0, 0.5]])
    optimizer.step()
    assert model[0].weight.tolist() == [[0.5, 1.5]]


def test_a_ticket_is_its_birth_weights_and_loses_its_share_each_round():
    model, log = two_layers(seed=4), []
    born = {n: t.clone() for n, t in two_layers().state_dict().items()}
    masks = sparse.find_ticket(model, born, trainer(log), {"0.*": 0.5, "2.*": 0.25}, 2)
    assert [int(m.sum()) for m in masks.kept.values()] == [12, round(0.75 * 18)]
    for name, tensor in model.state_dict().items():
        expected = born[name] * masks.kept[name] if name in masks.kept else born[name]
        assert torch.equal(tensor, expected), name
    assert torch.equal(log[0][1]["0.weight"], born["0.weight"])  # the first round starts from birth too
    assert (log[1][1]["0.weight"] == 0).sum() == 24


def test_what_is_drawn_anew_obeys_the_masks_with_the_variance_of_its_survivors():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(400, 200), nn.BatchNorm1d(200), nn.Linear(200, 5))
    model[1].weight.data.fill_(3.0)
    masks = sparse.Masks({"0.weight": sparse.at_random(model, {"0.weight": 0.25, "*": 1.0}, 1).kept["0.weight"]})
    before = torch.get_rng_state()
    sparse.redraw(model, masks, 7)
    assert torch.equal(torch.get_rng_state(), before)
    drawn = model[0].weight.detach()
    assert masks.broken(model) == []
    # 100 of 400 inputs are left of each output: variance 2 / 100.
    assert float(drawn[masks.kept["0.weight"]].var()) == pytest.approx(0.02, rel=0.05)
    assert torch.equal(model[1].weight, torch.ones(200))
    assert float(model[2].weight.detach().abs().max()) <= 200**-0.5
    again = drawn.clone()
    sparse.redraw(model, masks, 7)
    assert torch.equal(model[0].weight, again)
    sparse.redraw(model, masks, 8)
    assert not torch.equal(model[0].weight, again)


def test_what_went_in_one_round_is_not_counted_in_the_next():
    model = linear([5.0, 4.0, 3.0, 2.0])
    first = sparse.fewer(model, None, 0.5)
    model[0].weight.data = torch.tensor([[1.0, 2.0, 9.0, 9.0]])  # what is masked counts as gone, whatever it holds
    assert sparse.fewer(model, first, 0.5).kept["0.weight"].tolist() == [[False, True, False, False]]
    with pytest.raises(ModelError, match=r"1\.5 of '0\.weight'"):
        sparse.fewer(model, None, 1.5)
    with pytest.raises(ModelError, match="0 rounds"):
        sparse.find_ticket(model, model.state_dict(), trainer(), 0.5, 0)


def test_two_ranks_of_surgery_draw_the_same():
    """Surgery has no ranks to ask: equal weights and an equal seed are enough."""
    found = []
    for _ in range(2):
        model = two_layers()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
        surgery = sparse.DynamicSurgery(model, optimizer, 0.2, gamma=0.5, seed=1)
        torch.rand(7)  # other draws of the process do not count
        take_steps(model, optimizer, 8)
        found.append(surgery.masks)
    assert found[0].same(found[1])
