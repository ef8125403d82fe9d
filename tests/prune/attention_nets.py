"""Attention modules with drawn parameters, and how a substitute is held against the original."""

import copy

import torch
from torch import nn

from compress.prune.attention import SUBSTITUTES, substitute, substitute_for

E, HEADS, HEAD_DIM = 12, 4, 3


def drawn(net):
    """Float64, every parameter drawn: none starts at zero, logit scales lie on both sides of their clamp."""
    generator = torch.Generator().manual_seed(0)
    net = net.double()
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * parameter.shape[-1] ** -0.5)
            if name.endswith("logit_scale"):
                parameter.copy_(torch.linspace(1, 6, len(parameter)).reshape(parameter.shape))
    return net


def values(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def replaced(net):
    """A copy with everything substituted that can be."""
    ours = copy.deepcopy(net)
    names = [(module, substitute_for(module)) for module in ours.modules()]
    for module, name in names:
        if name is not None:
            before = dict(module.named_parameters())
            substitute(module, name)
            assert all(p is before[n] for n, p in module.named_parameters())
            assert type(module) is SUBSTITUTES[name]
            assert substitute_for(module) is None
    assert any(name for _, name in names)
    assert {n: t.shape for n, t in ours.state_dict().items()} == {n: t.shape for n, t in net.state_dict().items()}
    return ours


def close(got, expected):
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-12, equal_nan=True)


def ran(net, inputs, train, run):
    """Outputs and gradients; dropout draws from the same seed."""
    net.train(train).zero_grad()
    inputs = [x.clone().requires_grad_() for x in inputs]
    torch.manual_seed(0)
    out = run(net, *inputs)
    outs = [x for x in (out if isinstance(out, tuple) else (out,)) if x is not None]
    sum((x.nan_to_num() * values(*x.shape, seed=5)).sum() for x in outs).backward()
    gradients = {n: torch.zeros(1) if p.grad is None else p.grad for n, p in net.named_parameters()}
    return out, [x.grad for x in inputs], gradients


def call(net, *inputs):
    return net(*inputs)


def same(net, *inputs, run=call):
    """Output and each gradient of the substituted copy are the original's, in eval and in train, and without grad."""
    ours = replaced(net)
    for train in (False, True):
        close(ran(ours, inputs, train, run), ran(net, inputs, train, run))
    with torch.no_grad():
        close(run(ours.eval(), *inputs), run(net.eval(), *inputs))
    return ours


def hides(*shape, seed=7):
    """A boolean mask that hides about a third, never a row's first place."""
    mask = torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) < 0.35
    mask[..., 0] = False
    return mask


MHA = {
    "packed": {},
    "sequence first": {"batch_first": False},
    "no bias": {"bias": False},
    "other widths": {"kdim": 5, "vdim": 7},
    "other widths, no bias, sequence first": {"kdim": 5, "bias": False, "batch_first": False},
    "dropout": {"dropout": 0.3},
}
CALLS = {
    "plain": {"need_weights": False},
    "weights": {},
    "weights of each head": {"average_attn_weights": False},
    "padding": {"need_weights": False, "key_padding_mask": hides(2, 6)},
    "padding as floats": {"key_padding_mask": values(2, 6)},
    "mask": {"need_weights": False, "attn_mask": hides(5, 6)},
    "mask as floats": {"need_weights": False, "attn_mask": values(5, 6)},
    "mask of each head": {"need_weights": False, "attn_mask": hides(2 * HEADS, 5, 6)},
    "both masks": {"need_weights": False, "attn_mask": hides(5, 6), "key_padding_mask": hides(2, 6)},
    "both masks, weights": {"attn_mask": hides(2 * HEADS, 5, 6), "key_padding_mask": hides(2, 6)},
    "causal": {"need_weights": False, "attn_mask": torch.ones(5, 6).triu(1).bool(), "is_causal": True},
    "causal, padding": {
        "attn_mask": torch.ones(5, 6).triu(1).bool(),
        "is_causal": True,
        "key_padding_mask": hides(2, 6),
    },
    "a query that sees nothing": {"need_weights": False, "attn_mask": torch.eye(5, 1).bool().expand(5, 6)},
}


def attention(**settings):
    return drawn(nn.MultiheadAttention(E, HEADS, **{"batch_first": True, **settings}))


def tokens(net, length, width, seed):
    return values(2, length, width, seed=seed) if net.batch_first else values(length, 2, width, seed=seed)


def encoder(**settings):
    settings = {"dim_feedforward": 16, "dropout": 0.0, "batch_first": True, **settings}
    return drawn(nn.TransformerEncoder(nn.TransformerEncoderLayer(E, HEADS, **settings), 2))


def padding(length=6):
    """Two sequences, one of them shorter, padded at its end: what torch makes nested tensors of."""
    return torch.arange(length) >= torch.tensor([[length], [length - 2]])
