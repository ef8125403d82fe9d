"""Blocks of random networks on tokens [N, L, C], and the block that makes tokens of an image and an image of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from prune_nets import Net
from random_block import B, Build, Shape, pick
from torch import nn

HEADS = 2


def tokens(s: Shape, b: B, build: Build) -> tuple[nn.Module, Shape]:
    """Inner blocks on tokens; 8 or 12 channels wide where these have heads."""
    c, h, w = s
    wide = pick((8, 12, 8, 16), b.b)
    kind = pick(("linear", "conv", "residual", "embedded", "windows"), b.a)
    if kind == "windows" and (h % 2 or w % 2):
        kind = "linear"
    body, _ = chain((wide, 2, 2) if kind == "windows" else (wide, h, w), b.inner)
    layers: dict[str, Any] = {"into": nn.Linear(c, wide), "body": body, "back": nn.Linear(wide, c)}
    if kind == "embedded":
        layers["place"] = nn.Parameter(torch.randn(1, h * w, wide))
    if kind == "conv":
        layers["into"] = nn.Conv2d(c, wide, 1)

    def run(m: Any, x: torch.Tensor) -> torch.Tensor:
        if kind == "conv":
            y = m.body(m.into(x).flatten(2).transpose(1, 2))
            return m.back(y).transpose(1, 2).reshape(x.shape[0], -1, h, w)
        if kind == "windows":
            y = m.into(x.permute(0, 2, 3, 1))
            n, _, _, e = y.shape
            y = y.view(n, h // 2, 2, w // 2, 2, e).permute(0, 1, 3, 2, 4, 5).reshape(-1, 4, e)
            y = m.body(y).view(n, h // 2, w // 2, 2, 2, -1).permute(0, 1, 3, 2, 4, 5).reshape(n, h, w, -1)
            return m.back(y).permute(0, 3, 1, 2)
        y = m.into(x.flatten(2).transpose(1, 2))
        if kind == "embedded":
            y = y + m.place
        y = m.back(m.body(y)).transpose(1, 2).unflatten(2, (h, w))
        return x + y if kind == "residual" else y

    return Net(run, **layers), s


def chain(s: Shape, blocks: Sequence[B]) -> tuple[nn.Module, Shape]:
    made = [TOKENS[block.kind](s, block, chain)[0] for block in blocks]
    return nn.Sequential(*made), s


def attention(s: Shape, b: B, build: Build) -> tuple[nn.Module, Shape]:
    """Attentions of the user's own, with a head count that they keep or a head width that the code fixes."""
    c, h, w = s
    kind = pick(("packed", "apart", "softmax", "chunks", "causal", "biased", "fixed", "queries", "grouped", "pooled",
                 "linear", "scaled"), b.a)  # fmt: skip
    d = c // HEADS
    layers: dict[str, Any] = {"heads": HEADS, "proj": nn.Linear(c, c)}
    if kind in ("packed", "chunks", "causal", "biased", "fixed", "scaled"):
        layers["qkv"] = nn.Linear(c, 3 * c, bias=b.b % 2 == 0)
    else:
        layers |= {"q": nn.Linear(c, c), "k": nn.Linear(c, c), "v": nn.Linear(c, c)}
    if kind == "biased":
        layers["bias"] = nn.Parameter(torch.randn(HEADS, h * w, h * w))
    if kind == "queries":
        layers["learned"] = nn.Parameter(torch.randn(1, h * w, c))
    if kind == "grouped":
        layers |= {"k": nn.Linear(c, d), "v": nn.Linear(c, d)}
    if kind == "scaled":
        layers["scale"] = d**-0.5

    def split(m: Any, y: torch.Tensor) -> torch.Tensor:
        return y.view(*y.shape[:2], m.heads, -1).transpose(1, 2)

    def projected(m: Any, x: torch.Tensor) -> Sequence[torch.Tensor]:
        n, length, _ = x.shape
        if kind == "fixed":
            return m.qkv(x).view(n, length, 3, HEADS, d).permute(2, 0, 3, 1, 4)
        if kind == "chunks":
            return [split(m, y) for y in m.qkv(x).chunk(3, -1)]
        if kind in ("packed", "causal", "biased", "scaled"):
            return m.qkv(x).reshape(n, length, 3, m.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        if kind == "grouped":
            wide = [y.unsqueeze(2).transpose(1, 2).expand(-1, m.heads, -1, -1) for y in (m.k(x), m.v(x))]
            return [split(m, m.q(x)), *wide]
        asked = m.learned.expand(n, -1, -1) if kind == "queries" else x
        return [split(m, m.q(asked)), split(m, m.k(x)), split(m, m.v(x))]

    def run(m: Any, x: torch.Tensor) -> torch.Tensor:
        q, k, v = projected(m, x)
        if kind in ("softmax", "scaled"):
            scores = q @ k.transpose(-2, -1) * (m.scale if kind == "scaled" else q.shape[-1] ** -0.5)
            y = scores.softmax(-1) @ v
        elif kind == "linear":
            y = F.elu(q) @ (F.elu(k).transpose(-2, -1) @ v) / x.shape[1]
        elif kind == "pooled":
            y = torch.einsum("nhld,nhsd->nhls", q * 0.4, k[:, :, ::2]).softmax(-1) @ v[:, :, ::2]
        else:
            mask = m.bias[:, : x.shape[1], : x.shape[1]] if kind == "biased" else None
            y = F.scaled_dot_product_attention(q, k, v, mask, is_causal=kind == "causal")
        return m.proj(y.transpose(1, 2).flatten(2))

    return Net(run, **layers), s


def multihead(s: Shape, b: B, build: Build) -> tuple[nn.Module, Shape]:
    """torch's own."""
    c = s[0]
    kind = pick(("weights", "alone", "layer", "norm first", "sequence first", "other widths"), b.a)
    if kind in ("layer", "norm first"):
        own = nn.TransformerEncoderLayer(
            c, HEADS, 10, activation=pick(("relu", "gelu"), b.b), batch_first=True, norm_first=kind != "layer"
        )
        return own, s
    if kind == "other widths":
        other = nn.MultiheadAttention(c, HEADS, kdim=6, vdim=6, batch_first=True)
        return Net(lambda m, x: x + m.a(x, m.b(x), m.b(x))[0], a=other, b=nn.Linear(c, 6)), s
    first = kind == "sequence first"
    own = nn.MultiheadAttention(c, HEADS, bias=b.b % 3 != 1, batch_first=not first)
    way = (lambda x: x.transpose(0, 1)) if first else (lambda x: x)
    return Net(lambda m, x: way(m.a(way(x), way(x), way(x), need_weights=kind == "weights")[0]), a=own), s


def mlp(s: Shape, b: B, build: Build) -> tuple[nn.Module, Shape]:
    c, wide = s[0], pick((12, 6, 16), b.b)
    kind = pick(("gelu", "swiglu", "glu", "geglu", "dropout", "mixer"), b.a)
    if kind == "mixer":
        length = s[1] * s[2]
        own = nn.Sequential(nn.Linear(length, wide), nn.GELU(), nn.Linear(wide, length))
        return Net(lambda m, x: x + m.a(x.transpose(1, 2)).transpose(1, 2), a=own), s
    if kind == "swiglu":
        layers = {"a": nn.Linear(c, wide), "g": nn.Linear(c, wide, bias=False), "b": nn.Linear(wide, c)}
        return Net(lambda m, x: m.b(F.silu(m.g(x)) * m.a(x)), **layers), s
    if kind in ("glu", "geglu"):

        def gated(m: Any, x: torch.Tensor) -> torch.Tensor:
            y = m.a(x)
            left, right = y.chunk(2, -1)
            return m.b(F.glu(y) if kind == "glu" else left * F.gelu(right))

        return Net(gated, a=nn.Linear(c, 2 * wide), b=nn.Linear(wide, c)), s
    drop = [nn.Dropout(0.3)] if kind == "dropout" else []
    return nn.Sequential(nn.Linear(c, wide), nn.GELU(), *drop, nn.Linear(wide, c)), s


def norm(s: Shape, b: B, build: Build) -> tuple[nn.Module, Shape]:
    c = s[0]
    own = pick((nn.LayerNorm, nn.RMSNorm, nn.BatchNorm1d), b.a)(c)
    if isinstance(own, nn.BatchNorm1d):
        return Net(lambda m, x: m.a(x.transpose(1, 2)).transpose(1, 2), a=own), s
    return own, s


def residual(s: Shape, b: B, build: Build) -> tuple[nn.Module, Shape]:
    """Norm before, norm after, or none; a scale a channel or none."""
    layers: dict[str, Any] = {"body": build(s, b.inner)[0]}
    kind = pick(("before", "plain", "after", "scaled"), b.a)
    if kind in ("before", "after"):
        layers["norm"] = pick((nn.LayerNorm, nn.RMSNorm), b.b)(s[0])
    if kind == "scaled":
        layers["scale"] = nn.Parameter(torch.randn(s[0]))

    def run(m: Any, x: torch.Tensor) -> torch.Tensor:
        if kind == "before":
            return x + m.body(m.norm(x))
        if kind == "after":
            return m.norm(x + m.body(x))
        return x + (m.body(x) * m.scale if kind == "scaled" else m.body(x))

    return Net(run, **layers), s


def first(s: Shape, b: B, build: Build) -> tuple[nn.Module, Shape]:
    """A learned token in front, which what is inside sees and which then goes."""

    def run(m: Any, x: torch.Tensor) -> torch.Tensor:
        y = m.body(torch.cat([m.token.expand(x.shape[0], -1, -1), x], 1))
        return y[:, 1:] + (y[:, :1] if b.a % 2 else 0)

    body, _ = build((s[0], s[1] * s[2] + 1, 1), b.inner)
    return Net(run, token=nn.Parameter(torch.randn(1, 1, s[0])), body=body), s


def recurrent(s: Shape, b: B, build: Build) -> tuple[nn.Module, Shape]:
    c = s[0]
    own = pick((nn.LSTM, nn.GRU), b.a)(c, c, batch_first=True)
    return Net(lambda m, x: x + m.a(x)[0], a=own), s


TOKENS: dict[str, Callable[[Shape, B, Build], tuple[nn.Module, Shape]]] = {
    f.__name__: f for f in (mlp, norm, residual, attention, multihead, first, recurrent)
}
