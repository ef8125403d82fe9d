"""Substituted attention cut by hand: fewer heads, fewer dims of each, another width of the model."""

import copy

import pytest
import torch
from attention_nets import (
    CALLS,
    HEAD_DIM,
    HEADS,
    E,
    attention,
    close,
    drawn,
    encoder,
    padding,
    ran,
    replaced,
    values,
)
from torch import nn
from torchvision.models.maxvit import RelativePositionalMultiHeadAttention
from torchvision.models.swin_transformer import (
    ShiftedWindowAttention,
    ShiftedWindowAttentionV2,
)

from compress.prune.attention import MultiheadAttention

KEPT_HEADS = torch.tensor([0, 2, 3])
KEPT_DIMS = torch.tensor([0, 2])
KEPT_WIDTH = torch.tensor([0, 1, 4, 5, 8, 9, 11])
ALL_HEADS, ALL_DIMS, ALL_WIDTH = torch.arange(HEADS), torch.arange(HEAD_DIM), torch.arange(E)


def separate():
    """torch has weights of their own for q, k and v only where widths differ: here they happen to be equal."""
    net = attention(kdim=E + 1, vdim=E + 1)
    net.k_proj_weight.data = net.k_proj_weight.data[:, :E].clone()
    net.v_proj_weight.data = net.v_proj_weight.data[:, :E].clone()
    net.kdim = net.vdim = E
    return net


CASES = {
    "packed": (attention, (2, 5, E), "in_proj", "out_proj"),
    "separate": (separate, (2, 5, E), "in_proj", "out_proj"),
    "window": (lambda: drawn(ShiftedWindowAttention(E, [4, 4], [2, 2], HEADS)), (2, 7, 9, E), "qkv", "proj"),
    "window v2": (lambda: drawn(ShiftedWindowAttentionV2(E, [4, 4], [2, 2], HEADS)), (2, 7, 9, E), "qkv", "proj"),
    "relative": (
        lambda: drawn(RelativePositionalMultiHeadAttention(E, HEAD_DIM, 16)),
        (2, 3, 16, E),
        "to_qkv",
        "merge",
    ),
}


def inner(heads, dims, parts=1):
    """Where the kept dims of the kept heads lie in `parts` stacked projections."""
    places = torch.arange(parts * HEADS * HEAD_DIM).reshape(parts, HEADS, HEAD_DIM)
    return places[:, heads][:, :, dims].flatten()


def slots(case, heads, dims, width):
    """Parameter -> dimension -> what is kept of it, and which of these are the rows of q, k and v."""
    _, _, into, out = case
    packed, one = inner(heads, dims, 3), inner(heads, dims)
    dot = "_" if into == "in_proj" else "."
    return {
        f"{into}{dot}weight": {0: packed, 1: width},
        f"{into}{dot}bias": {0: packed},
        **{f"{p}_proj_weight": {0: one, 1: width} for p in "qkv"},
        f"{out}.weight": {0: width, 1: one},
        f"{out}.bias": {0: width},
        "relative_position_bias_table": {1: heads},
        "logit_scale": {0: heads},
        "cpb_mlp.2.weight": {0: heads},
    }


def cut(net, case, heads=ALL_HEADS, dims=ALL_DIMS, width=ALL_WIDTH):
    """The substituted copy with sliced parameters and patched numbers."""
    small = replaced(net)
    tables = slots(case, heads, dims, width)
    for name, parameter in list(small.named_parameters()):
        for dim, kept in tables.get(name, {}).items():
            parameter.data = parameter.data.index_select(dim, kept)
    setattr(small, "n_heads" if hasattr(small, "n_heads") else "num_heads", len(heads))
    small.head_dim = len(dims)
    if isinstance(small, MultiheadAttention):
        small.embed_dim = small.kdim = small.vdim = len(width)
    return small


def zeroed(net, case, heads=ALL_HEADS, dims=ALL_DIMS):
    """The original with zeros in the rows of q, k and v that `cut` drops."""
    masked = copy.deepcopy(net)
    projections = (case[2], "q_proj", "k_proj", "v_proj")
    tables = slots(case, heads, dims, ALL_WIDTH)
    with torch.no_grad():
        for name, parameter in masked.named_parameters():
            if name.startswith(projections):
                gone = torch.ones(len(parameter), dtype=torch.bool)
                gone[tables[name][0]] = False
                parameter[gone] = 0
    return masked


def attend(net, x):
    return net(x, x, x, need_weights=False)[0] if isinstance(net, nn.MultiheadAttention) else net(x)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
@pytest.mark.parametrize("kept", [{"heads": KEPT_HEADS}, {"dims": KEPT_DIMS}, {"heads": KEPT_HEADS, "dims": KEPT_DIMS}])
def test_cutting_heads_or_dims_is_zeroing_them(case, kept):
    net, x = case[0](), values(*case[1])
    small, masked = cut(net, case, **kept), zeroed(net, case, **kept)
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in net.parameters())
    for train in (False, True):
        out, (gradient,), own = ran(small, [x], train, attend)
        expected, (wanted,), theirs = ran(masked, [x], train, attend)
        close(out, expected)
        close(gradient, wanted)
        tables = slots(case, kept.get("heads", ALL_HEADS), kept.get("dims", ALL_DIMS), ALL_WIDTH)
        for name, got in own.items():
            for dim, index in tables.get(name, {}).items():
                theirs[name] = theirs[name].index_select(dim, index)
            close(got, theirs[name])
    with torch.no_grad():
        close(attend(small.eval(), x), attend(masked.eval(), x))
        assert not torch.allclose(attend(small, x), attend(net.eval(), x))


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_the_model_s_width_is_free_of_the_heads(case):
    net, x = case[0](), values(*case[1])
    small = cut(net, case, width=KEPT_WIDTH)
    silent = torch.zeros_like(x)
    silent[..., KEPT_WIDTH] = x[..., KEPT_WIDTH]
    close(attend(small, x[..., KEPT_WIDTH]), attend(net, silent)[..., KEPT_WIDTH])
    both = cut(net, case, heads=KEPT_HEADS[:1], width=KEPT_WIDTH)
    expected = attend(zeroed(net, case, heads=KEPT_HEADS[:1]), silent)[..., KEPT_WIDTH]
    close(attend(both, x[..., KEPT_WIDTH]), expected)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_a_cut_encoder_is_right_where_torch_would_take_its_fast_path():
    net, x = encoder().eval(), values(2, 6, E)
    small, masked = copy.deepcopy(net), copy.deepcopy(net)
    for i, layer in enumerate(net.layers):
        small.layers[i].self_attn = cut(layer.self_attn, CASES["packed"], heads=KEPT_HEADS)
        masked.layers[i].self_attn = zeroed(layer.self_attn, CASES["packed"], heads=KEPT_HEADS)
    for options in ({}, {"src_key_padding_mask": padding()}):
        close(small(x, **options), masked(x, **options))
        with torch.no_grad():
            close(small.eval()(x, **options), masked.eval()(x, **options))


@pytest.mark.parametrize("name", ["weights", "weights of each head", "causal", "both masks, weights"])
def test_the_scale_of_the_scores_is_the_dense_network_s(name):
    net, q, memory = attention(), values(2, 5, E), values(2, 6, E, seed=2)
    small, masked = cut(net, CASES["packed"], dims=KEPT_DIMS), zeroed(net, CASES["packed"], dims=KEPT_DIMS)
    assert small.scale == HEAD_DIM**-0.5
    close(small(q, memory, memory, **CALLS[name]), masked(q, memory, memory, **CALLS[name]))
