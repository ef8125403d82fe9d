"""Masks: frozen data that survives files and steps."""

import copy
import json
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning.fabric import Fabric
from safetensors.torch import load_file, save_file
from sparse_nets import batch, take_steps, two_layers, with_convolution
from torch import nn

from compress import sparse
from compress.errors import ArtifactError, ModelError
from compress.sparse.masks import bare

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01),
    "adam": lambda p: torch.optim.AdamW(p, lr=0.01),
    "gsm": lambda p: sparse.GSM(p, lr=0.1, keep=30, momentum=0.9),
}


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_what_is_masked_stays_zero_with_its_momentum_and_the_rest_learns(kind):
    model = two_layers()
    optimizer = OPTIMIZERS[kind](model.parameters())
    take_steps(model, optimizer)  # a momentum from before
    masks = sparse.largest(model, 20)
    before = model[0].weight.detach().clone()
    handle = masks.hold(model, optimizer)
    take_steps(model, optimizer)
    assert not masks.broken(model)
    kept = masks.kept["0.weight"]
    assert (model[0].weight[kept] != before[kept]).any()
    for state in optimizer.state[model[0].weight].values():
        if state.shape == kept.shape:
            assert (state[~kept] == 0).all()
            assert (state[kept] != 0).any()
    handle.remove()
    take_steps(model, optimizer)
    assert masks.broken(model) == ["0.weight", "2.weight"]


def test_frozen_weights_stay_to_the_bit_and_the_others_learn():
    model = two_layers()
    masks = sparse.largest(model, 20)
    optimizer = OPTIMIZERS["adam"](model.parameters())
    before = model[0].weight.detach().clone()
    masks.freeze(model, optimizer)
    take_steps(model, optimizer)
    kept = masks.kept["0.weight"]
    assert torch.equal(model[0].weight[kept], before[kept])
    assert (model[0].weight[~kept] != before[~kept]).all()


def test_the_state_dict_of_a_held_network_has_no_trace_of_masks():
    model = two_layers()
    names = list(model.state_dict())
    sparse.largest(model, 20).hold(model, OPTIMIZERS["sgd"](model.parameters()))
    assert list(model.state_dict()) == names


def test_network_optimizer_and_masks_go_on_from_files_as_without(tmp_path):
    def begun():
        model = two_layers()
        return model, OPTIMIZERS["sgd"](model.parameters())

    model, optimizer = begun()
    masks = sparse.largest(model, 20)
    masks.hold(model, optimizer)
    take_steps(model, optimizer)
    masks.save(tmp_path / "masks.safetensors")
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    state = copy.deepcopy(optimizer.state_dict())  # it holds the live tensors
    take_steps(model, optimizer, seed=2)

    other, resumed = begun()
    other.load_state_dict(load_file(tmp_path / "model.safetensors"))
    resumed.load_state_dict(state)
    loaded = sparse.Masks.load(tmp_path / "masks.safetensors")
    assert loaded.same(masks)
    loaded.hold(other, resumed)
    take_steps(other, resumed, seed=2)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name


@given(st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=3), min_size=1, max_size=3), st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_masks_of_any_shape_survive_a_file(tmp_path_factory, shapes, seed):
    generator = torch.Generator().manual_seed(seed)
    masks = sparse.Masks({f"p{k}": torch.rand(s, generator=generator) > 0.5 for k, s in enumerate(shapes)})
    path = tmp_path_factory.mktemp("masks") / "m.safetensors"
    masks.save(path)
    again = sparse.Masks.load(path)
    assert again.same(masks)
    assert again.nonzeros == sum(int(m.sum()) for m in masks.kept.values())


@pytest.mark.parametrize(
    ("tensors", "about", "said"),
    [
        ({"w": [255]}, None, "does not say niwaki-masks-1"),
        ({"w": [255]}, {"v": [2, 4]}, "names other parameters"),
        ({"w": [255]}, {"w": [2, 5]}, "does not hold the 10 bits"),
        ({"w": [255]}, {"w": [1 << 40]}, "does not hold the 1099511627776 bits"),
        ({"w": [255]}, {"w": [7]}, "bits after its end"),
        ({"w": [255]}, {"w": [-1, -8]}, "not a list of sizes"),
    ],
)
def test_a_file_that_is_damaged_is_refused_whole(tmp_path, tensors, about, said):
    header = {} if about is None else {"niwaki": json.dumps({"format": "niwaki-masks-1", "shapes": about})}
    path = tmp_path / "m.safetensors"
    save_file({n: torch.tensor(v, dtype=torch.uint8) for n, v in tensors.items()}, path, header)
    with pytest.raises(ArtifactError, match=said):
        sparse.Masks.load(path)
    path.write_bytes(b"\x80\x04}")
    with pytest.raises(ArtifactError, match="not a file of masks"):
        sparse.Masks.load(path)


def test_masks_are_copied_in_and_cannot_be_replaced():
    own = torch.ones(2, 2, dtype=torch.bool)
    masks = sparse.Masks({"w": own})
    own.zero_()
    assert masks.nonzeros == 4
    with pytest.raises(TypeError):
        masks.kept["w"] = own
    with pytest.raises(ModelError, match=r"torch\.float32"):
        sparse.Masks({"w": torch.ones(2)})


def test_masks_of_another_network_are_refused():
    masks = sparse.largest(two_layers(), 20)
    with pytest.raises(ModelError, match=r"no parameter '0\.weight'"):
        masks.apply_(nn.Sequential(nn.ReLU(), nn.Linear(6, 8)))
    with pytest.raises(ModelError, match=r"\(8, 6\), the parameter \(9, 6\)"):
        masks.apply_(two_layers(width=9))


def test_biases_and_norms_are_never_masked_and_shared_weights_count_once():
    assert list(sparse.weights_of(with_convolution())) == ["0.weight", "4.weight"]
    assert list(sparse.weights_of(with_convolution(), "conv")) == ["0.weight"]
    tied = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    tied[1].weight = tied[0].weight
    assert list(sparse.weights_of(tied)) == ["0.weight"]
    with pytest.raises(ModelError, match="no weight of conv layers"):
        sparse.weights_of(two_layers(), "conv")


@pytest.mark.parametrize("wrap", [Fabric(accelerator="cpu").setup, partial(torch.compile, backend="eager")])
def test_the_network_inside_a_wrapped_one_is_found(wrap):
    model = two_layers()
    wrapped = wrap(model)
    assert wrapped is not model
    assert bare(wrapped) is model
    sparse.largest(model, 5).apply_(wrapped)
    assert sum(int((p != 0).sum()) for p in sparse.weights_of(model).values()) == 5


# Files of sparse networks --------------------------------------------------------------------------------


@given(st.integers(0, 400), st.integers(0, 700), st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_gaps_lead_back_to_the_places(ones, zeros, seed):
    from compress.sparse.storage import gaps, places

    order = torch.randperm(ones + zeros, generator=torch.Generator().manual_seed(seed))
    kept = (order < ones).numpy()
    assert (places(gaps(kept), len(kept)) == kept).all()
    assert len(gaps(kept)) <= ones + len(kept) // 255


@pytest.mark.parametrize("keep", [0, 1, 40, 300, 1240])
def test_a_sparse_file_gives_back_every_tensor_and_the_size_that_was_foretold(tmp_path, keep):
    model = with_convolution()
    total = sum(w.numel() for w in sparse.weights_of(model).values())
    masks = sparse.largest(model, min(keep, total))
    masks.apply_(model)
    size = sparse.save_sparse(model, tmp_path / "s.safetensors", masks)
    assert size == sparse.sparse_bytes(model, masks) == (tmp_path / "s.safetensors").stat().st_size
    state = sparse.load_sparse(tmp_path / "s.safetensors")
    assert set(state) == set(model.state_dict())
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


@given(st.integers(1700, 6000), st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_what_a_budget_of_bytes_keeps_fits_wherever_it_is(budget, seed):
    model = with_convolution()
    keep = sparse.keep_for_bytes(model, budget)
    total = sum(w.numel() for w in sparse.weights_of(model).values())
    assert 0 < keep <= total
    masks = sparse.at_random(model, keep / total, seed)
    masks.apply_(model)
    assert masks.nonzeros <= keep + 1
    assert sparse.sparse_bytes(model, masks) <= budget


def test_a_budget_below_the_dense_part_and_a_network_that_breaks_its_masks_are_refused(tmp_path):
    model = with_convolution()
    with pytest.raises(ModelError, match="100 bytes do not hold"):
        sparse.keep_for_bytes(model, 100)
    with pytest.raises(ModelError, match=r"call masks\.apply_"):
        sparse.save_sparse(model, tmp_path / "s.safetensors", sparse.largest(model, 5))
    assert not (tmp_path / "s.safetensors").exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t | {"0.weight:values": t["0.weight:values"][:-1]}, "values for"),
        (lambda t: {n: v for n, v in t.items() if not n.startswith("0.weight:v")}, "0.weight:values"),
        (lambda t: t | {"2.weight:more": torch.zeros(1)}, "does not name"),
        (lambda t: t | {"0.weight:gaps": torch.full((9,), 200, dtype=torch.uint8)}, "beyond the tensor"),
    ],
)
def test_a_damaged_sparse_file_is_refused(tmp_path, change, said):
    from safetensors import safe_open

    model = two_layers(width=60)
    masks = sparse.largest(model, 9)
    masks.apply_(model)
    path = tmp_path / "s.safetensors"
    sparse.save_sparse(model, path, masks)
    with safe_open(path, "pt") as file:
        about = file.metadata()
    save_file(change(load_file(path)), path, about)
    with pytest.raises(ArtifactError, match=said):
        sparse.load_sparse(path)


def test_held_masks_do_not_disturb_what_is_not_masked():
    """Biases go the same way with masks that keep everything as with none."""
    ends = []
    for masked in (False, True):
        model = two_layers()
        optimizer = OPTIMIZERS["sgd"](model.parameters())
        if masked:
            sparse.largest(model, 72).hold(model, optimizer)
        take_steps(model, optimizer)
        ends.append(model(batch()[0]).detach())
    assert torch.equal(*ends)
