"""Attention whose inner width (heads x head width) is independent of the model's width.

torch's and torchvision's attention modules tie the two together, so neither heads, nor dims within heads, nor the
residual width can be cut alone. ``substitute`` turns such a module, in place, into one of the classes here: same
parameters under the same names, same function. A cut then slices parameters and patches plain attributes.

Shapes: B sequences of L tokens (S keys), H heads of d dims each, inner = H*d, model width E (C in images).
"""

from __future__ import annotations

import math
import sys
from typing import ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compress.errors import PlanError


class Substitute(nn.Module):
    """The base of the classes here: ``substitute`` turns an existing module into one, none is constructed."""

    replaces: ClassVar[tuple[str, str]]
    """The module that holds the class it replaces, and that class's name."""
    head_dim: int
    scale: float
    """The factor of the scores; a cut leaves it as it was."""

    @staticmethod
    def fits(module: nn.Module) -> bool:
        """Whether a module of the class in ``replaces`` uses nothing that the substitute lacks."""
        return True

    def adopt(self) -> None:
        """Set the attributes that the module did not have before."""
        raise NotImplementedError


class MultiheadAttention(Substitute, nn.MultiheadAttention):
    """``nn.MultiheadAttention`` with an inner width of its own.

    Patched by surgery: ``num_heads``, ``head_dim``; ``embed_dim``, ``kdim``, ``vdim``.
    """

    replaces = ("torch.nn", "MultiheadAttention")

    @staticmethod
    def fits(module: nn.Module) -> bool:
        return module.bias_k is None and module.bias_v is None and not module.add_zero_attn

    def adopt(self) -> None:
        self.scale = self.head_dim**-0.5
        # nn.TransformerEncoderLayer then calls forward() instead of handing the parameters to a fused kernel that
        # takes embed_dim for the inner width. The parameters tell which form the projection has.
        self._qkv_same_embed_dim = False

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """[B, L, E], [B, S, kdim], [B, S, vdim] (B second unless ``batch_first``; or no B) -> [B, L, E], weights.

        Masks as in torch: ``key_padding_mask`` [B, S], ``attn_mask`` [L, S] or [B*H, L, S]: True hides, floats are
        added.
        The weights are [B, L, S], or [B, H, L, S] if not averaged, or None if not needed.
        """
        if query.is_nested:
            if query is not key or key is not value or key_padding_mask is not None or attn_mask is not None:
                raise ValueError("Nested tensors go through self-attention without masks only; pad them instead.")
            return self._nested(query, need_weights, average_attn_weights)
        if is_causal and attn_mask is None:
            raise ValueError("is_causal is a hint about attn_mask, which is None; give the causal mask too.")
        batched = query.dim() == 3
        batch_dim = 0 if self.batch_first or not batched else 1
        q, k, v = self._project(query, key, value, batch_dim)
        dropout = self.dropout if self.training else 0.0
        weights: Tensor | None = None
        if is_causal and key_padding_mask is None and not need_weights:
            x = F.scaled_dot_product_attention(q, k, v, None, dropout, is_causal=True, scale=self.scale)
        else:
            mask = _merged(attn_mask, key_padding_mask, q, k)
            if need_weights:
                scores = (q * self.scale) @ k.transpose(-2, -1)
                weights = F.dropout((scores if mask is None else scores + mask).softmax(-1), dropout)
                x = weights @ v
            else:
                x = F.scaled_dot_product_attention(q, k, v, mask, dropout, scale=self.scale)
        x = self.out_proj(_joined(x, batch_dim))
        if weights is not None and average_attn_weights:
            weights = weights.mean(1)
        if not batched:
            x, weights = x.squeeze(0), None if weights is None else weights.squeeze(0)
        return x, weights

    def _project(self, query: Tensor, key: Tensor, value: Tensor, batch_dim: int) -> tuple[Tensor, ...]:
        """Queries [B, H, L, d], keys and values [B, H, S, d]."""
        same = query is key and key is value
        if query.dim() == 2:
            query, key, value = query.unsqueeze(0), key.unsqueeze(0), value.unsqueeze(0)
        if self.in_proj_weight is not None and same:
            packed = F.linear(query, self.in_proj_weight, self.in_proj_bias)
            return _heads_of_packed(packed.transpose(0, batch_dim), self.num_heads, self.head_dim)
        if self.in_proj_weight is not None:
            weights = self.in_proj_weight.chunk(3)
        else:
            weights = (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
        biases = (None, None, None) if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
        projected = []
        for tokens, weight, bias in zip((query, key, value), weights, biases, strict=True):
            x = F.linear(tokens, weight, bias).transpose(0, batch_dim)
            projected.append(x.reshape(x.shape[0], x.shape[1], self.num_heads, self.head_dim).transpose(1, 2))
        return tuple(projected)

    def _nested(self, x: Tensor, need_weights: bool, average: bool) -> tuple[Tensor, Tensor | None]:
        """Attend within sequences of several lengths, which nn.TransformerEncoder makes of padded ones in inference."""
        lengths = [len(row) for row in x.unbind()]
        padded = x.to_padded_tensor(0.0)
        ends = torch.tensor(lengths, device=padded.device).unsqueeze(1)
        absent = torch.arange(padded.shape[1], device=padded.device) >= ends
        out, weights = self.forward(padded, padded, padded, absent, need_weights, average_attn_weights=average)
        return torch.nested.as_nested_tensor([row[:n] for row, n in zip(out, lengths, strict=True)]), weights


class WindowAttention(Substitute):
    """torchvision's ``ShiftedWindowAttention`` (Swin) with an inner width of its own.

    Patched by surgery: ``num_heads``, ``head_dim``.
    """

    replaces = ("torchvision.models.swin_transformer", "ShiftedWindowAttention")
    qkv: nn.Linear
    proj: nn.Linear
    relative_position_bias_table: Tensor
    relative_position_index: Tensor
    window_size: list[int]
    shift_size: list[int]
    num_heads: int
    attention_dropout: float
    dropout: float

    def adopt(self) -> None:
        # Taken from the layer as built, even if its weight is cut.
        self.head_dim = self.qkv.out_features // 3 // self.num_heads
        self.scale = self.head_dim**-0.5

    def forward(self, x: Tensor) -> Tensor:
        """[B, height, width, C] -> [B, height, width, C], attention within windows of ``window_size``."""
        batch, height, width, channels = x.shape
        rows, columns = self.window_size
        x = F.pad(x, (0, 0, 0, -width % columns, 0, -height % rows))
        down, across = x.shape[1] // rows, x.shape[2] // columns  # windows
        # A single window has nothing to share with its neighbours.
        shift = [0 if n == 1 else s for n, s in zip((down, across), self.shift_size, strict=True)]
        if any(shift):
            x = x.roll((-shift[0], -shift[1]), (1, 2))
        x = x.reshape(batch, down, rows, across, columns, channels).permute(0, 1, 3, 2, 4, 5)
        q, k, v = self._project(x.reshape(batch * down * across, rows * columns, channels))
        bias = self._position_bias().unsqueeze(0)
        if any(shift):
            bias = bias + self._wrapped(down, across, shift, q).unsqueeze(1)
            bias = bias.expand(batch, *bias.shape).flatten(0, 1)
        dropout = self.attention_dropout if self.training else 0.0
        x = F.scaled_dot_product_attention(q, k, v, bias, dropout, scale=self.scale)
        x = F.dropout(self.proj(_joined(x)), self.dropout, self.training)
        x = x.reshape(batch, down, across, rows, columns, x.shape[-1]).permute(0, 1, 3, 2, 4, 5)
        x = x.reshape(batch, down * rows, across * columns, x.shape[-1])
        if any(shift):
            x = x.roll((shift[0], shift[1]), (1, 2))
        return x[:, :height, :width].contiguous()

    def _project(self, x: Tensor) -> tuple[Tensor, ...]:
        """Queries, keys and values, [windows, H, tokens, d] each."""
        return _heads_of_packed(self.qkv(x), self.num_heads, self.head_dim)

    def _position_bias(self) -> Tensor:
        """[H, tokens, tokens], added to the scores."""
        return _by_position(self.relative_position_bias_table, self.relative_position_index)

    def _wrapped(self, down: int, across: int, shift: list[int], like: Tensor) -> Tensor:
        """[windows of one image, tokens, tokens]: -100 between tokens that only the roll made neighbours."""
        (rows, columns), device = self.window_size, like.device
        low = torch.arange(down * rows, device=device) >= down * rows - shift[0]
        right = torch.arange(across * columns, device=device) >= across * columns - shift[1]
        region = low.unsqueeze(1) * 2 + right
        region = region.reshape(down, rows, across, columns).permute(0, 2, 1, 3).reshape(-1, rows * columns)
        apart = region.unsqueeze(1) != region.unsqueeze(2)
        return torch.zeros_like(apart, dtype=like.dtype).masked_fill(apart, -100.0)


class WindowAttentionV2(WindowAttention):
    """torchvision's ``ShiftedWindowAttentionV2``: cosine attention, positions through a small MLP, keys without bias.

    Patched by surgery: ``num_heads``, ``head_dim``. ``scale`` is 1: each head has its own in ``logit_scale``.
    """

    replaces = ("torchvision.models.swin_transformer", "ShiftedWindowAttentionV2")
    cpb_mlp: nn.Sequential
    relative_coords_table: Tensor
    logit_scale: Tensor

    def adopt(self) -> None:
        super().adopt()
        self.scale = 1.0

    def _project(self, x: Tensor) -> tuple[Tensor, ...]:
        packed = F.linear(x, self.qkv.weight)
        if self.qkv.bias is not None:
            q_bias, k_bias, v_bias = self.qkv.bias.chunk(3)
            # Times 0 and not left out: the keys' rows of the bias have to be cut with those of the weight.
            packed = packed + torch.cat([q_bias, k_bias * 0, v_bias])
        q, k, v = _heads_of_packed(packed, self.num_heads, self.head_dim)
        sharpness = self.logit_scale.clamp(max=math.log(100.0)).exp()  # [H, 1, 1]
        return F.normalize(q, dim=-1) * sharpness, F.normalize(k, dim=-1), v

    def _position_bias(self) -> Tensor:
        table = self.cpb_mlp(self.relative_coords_table).flatten(0, -2)  # [distances, H]
        return 16 * _by_position(table, self.relative_position_index).sigmoid()


class RelativeAttention(Substitute):
    """torchvision's ``RelativePositionalMultiHeadAttention`` (MaxViT) with an inner width of its own.

    Patched by surgery: ``n_heads``, ``head_dim``. ``scale`` is the dense model's width ** -0.5.
    """

    replaces = ("torchvision.models.maxvit", "RelativePositionalMultiHeadAttention")
    to_qkv: nn.Linear
    merge: nn.Linear
    relative_position_bias_table: Tensor
    relative_position_index: Tensor
    n_heads: int
    scale_factor: float

    def adopt(self) -> None:
        self.scale = self.scale_factor

    def forward(self, x: Tensor) -> Tensor:
        """[B, groups, tokens, C] -> [B, groups, tokens, C], attention within each group."""
        batch, groups, tokens, channels = x.shape
        packed = self.to_qkv(x.reshape(batch * groups, tokens, channels))
        q, k, v = _heads_of_packed(packed, self.n_heads, self.head_dim)
        bias = _by_position(self.relative_position_bias_table, self.relative_position_index).unsqueeze(0)
        x = self.merge(_joined(F.scaled_dot_product_attention(q, k, v, bias, scale=self.scale)))
        return x.reshape(batch, groups, tokens, x.shape[-1])


SUBSTITUTES: dict[str, type[Substitute]] = {
    own.__name__: own for own in (MultiheadAttention, WindowAttention, WindowAttentionV2, RelativeAttention)
}
"""Name -> class: what a plan may name."""


_REPLACED = frozenset(own.replaces[1] for own in SUBSTITUTES.values())


def substitute_for(module: nn.Module) -> str | None:
    """The name of the substitute for ``module``; None where there is none, or it is one already."""
    if type(module).__name__ not in _REPLACED:
        return None
    return next((name for name, own in SUBSTITUTES.items() if _replaces(own, module)), None)


def substitute(module: nn.Module, name: str) -> None:
    """Turn ``module`` into the substitute ``name``, in place: its parameters, hooks and attributes stay.

    Raises:
        PlanError: there is no such substitute, or it is not one for this module.
    """
    own = SUBSTITUTES.get(name)
    if own is None:
        raise PlanError(f"No substitute is called '{name}'; there are {', '.join(sorted(SUBSTITUTES))}.")
    if not _replaces(own, module):
        raise PlanError(
            f"'{name}' takes the place of a {'.'.join(own.replaces)} that needs no extra keys, the network has a "
            f"{type(module).__module__}.{type(module).__name__} there; make the plan again from this network."
        )
    module.__class__ = own
    cast(Substitute, module).adopt()


def _replaces(own: type[Substitute], module: nn.Module) -> bool:
    home, name = own.replaces
    # If that home was never imported, ``module`` cannot come from it.
    return type(module) is getattr(sys.modules.get(home), name, None) and own.fits(module)


def _heads_of_packed(packed: Tensor, heads: int, head_dim: int) -> tuple[Tensor, ...]:
    """[B, L, 3*inner] -> queries, keys and values, [B, H, L, d] each."""
    batch, length, _ = packed.shape
    return packed.reshape(batch, length, 3, heads, head_dim).permute(2, 0, 3, 1, 4).unbind(0)


def _joined(x: Tensor, batch_dim: int = 0) -> Tensor:
    """[B, H, L, d] -> [B, L, inner], or [L, B, inner]."""
    x = x.permute(0, 2, 1, 3) if batch_dim == 0 else x.permute(2, 0, 1, 3)
    # An explicit copy: torch.export would record a view where the kernel at hand happens to return this layout.
    return x.clone(memory_format=torch.contiguous_format).flatten(2)


def _merged(attn_mask: Tensor | None, key_padding_mask: Tensor | None, q: Tensor, k: Tensor) -> Tensor | None:
    """Merge both masks into one that is added to the scores and broadcasts to [B, H, L, S]."""
    masks = []
    if attn_mask is not None:
        shape = (*q.shape[:3], k.shape[2])
        masks.append(_added(attn_mask.reshape(shape) if attn_mask.dim() == 3 else attn_mask[None, None], q))
    if key_padding_mask is not None:
        masks.append(_added(key_padding_mask.reshape(q.shape[0], 1, 1, k.shape[2]), q))
    return sum(masks[1:], masks[0]) if masks else None


def _added(mask: Tensor, like: Tensor) -> Tensor:
    """Turn a mask into what is added: True, which hides a key, becomes minus infinity."""
    if mask.is_floating_point():
        return mask
    return torch.zeros_like(mask, dtype=like.dtype).masked_fill(mask, -math.inf)


def _by_position(table: Tensor, index: Tensor) -> Tensor:
    """[distances, H] and the distance between any two of n tokens -> [H, n, n]."""
    tokens = math.isqrt(index.numel())
    return table.t().index_select(1, index.flatten()).unflatten(1, (tokens, tokens))
