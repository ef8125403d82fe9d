"""What a plan changes besides tensors: modules, the sizes they hold, names that share a tensor."""

import copy
from typing import Any

import pytest
import torch
from prune_nets import Net, by_hand
from state_nets import (
    A,
    network,
    plan_of,
)
from torch import nn
from torch.optim.swa_utils import AveragedModel

from compress.errors import PlanError
from compress.prune.architecture import architecture_hash
from compress.prune.attributes import kept_numbers
from compress.prune.probe import clone
from compress.prune.proof import check
from compress.prune.surgery import apply, validate


@pytest.fixture
def net():
    return network()


@pytest.fixture
def plan(net):
    return plan_of(net)


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


def test_a_list_of_thousands_holds_no_sizes() -> None:
    module: Any = nn.Identity()
    module.sizes, module.positions = [8, 16], list(range(2000))
    assert list(kept_numbers(module)) == [("sizes.0", 8), ("sizes.1", 16)]


def test_a_copy_keeps_shared_lists_and_numbers_shared() -> None:
    model: Any = nn.Sequential(nn.BatchNorm1d(2), nn.Identity())
    model[0].sizes = model[1].sizes = [8, 16]
    model[1].register_buffer("same", model[0].num_batches_tracked)
    model[1].register_buffer("view", model[0].num_batches_tracked.view(()))
    copied: Any = clone(model, {})
    copied[0].sizes[0] = 4
    copied[0].num_batches_tracked += 3
    assert copied[1].sizes == [4, 16]
    assert (int(copied[1].same), int(copied[1].view)) == (3, 3)
    assert (model[0].sizes, int(model[0].num_batches_tracked)) == ([8, 16], 0)
