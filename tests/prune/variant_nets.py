"""Small networks of patterns that other people's code is made of, each written in several ways."""

import torch
import torch.nn.functional as F
from torch import nn


class Attention(nn.Module):
    """Heads from an attribute, widths from the input, packed and apart."""

    def __init__(self, width, heads, how):
        super().__init__()
        self.num_heads, self.how, self.scale = heads, how, (width // heads) ** -0.5
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x):
        batch, length, width = x.shape
        heads = self.num_heads
        if self.how == "packed":
            parts = self.qkv(x).reshape(batch, length, 3, heads, width // heads).permute(2, 0, 3, 1, 4)
        elif self.how == "open":
            parts = self.qkv(x).reshape(batch, length, 3, heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        else:
            inner = width // heads if self.how == "chunk" else -1
            parts = (t.view(batch, length, heads, inner).transpose(1, 2) for t in self.qkv(x).chunk(3, -1))
        q, k, v = parts
        y = (((q @ k.transpose(-2, -1)) * self.scale).softmax(-1) @ v).transpose(1, 2)
        return self.proj(y.flatten(2) if self.how == "open" else y.reshape(batch, length, width))


class ChannelAttention(nn.Module):
    """Attention between the channels of a head: XCiT, DaViT, EdgeNeXt."""

    def __init__(self, width, heads, how):
        super().__init__()
        self.heads, self.how = heads, how
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.sharpness = nn.Parameter(torch.ones(heads, 1, 1))

    def forward(self, x):
        batch, length, width = x.shape
        parts = self.qkv(x).reshape(batch, length, 3, self.heads, width // self.heads)
        if self.how == "rows":
            q, k, v = parts.permute(2, 0, 3, 4, 1).unbind(0)
            y = (F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1) * self.sharpness).softmax(-1) @ v
            return self.proj(y.permute(0, 3, 1, 2).reshape(batch, length, width))
        q, k, v = parts.permute(2, 0, 3, 1, 4).unbind(0)
        y = ((q * length**-0.5).transpose(-1, -2) @ k).softmax(-1) @ v.transpose(-1, -2)
        return self.proj(y.transpose(-1, -2).transpose(1, 2).reshape(batch, length, width))


class Settings:
    """Sizes in an object of the user's."""

    def __init__(self, heads, width):
        self.heads, self.width = heads, width


class TwoSizes(nn.Module):
    """A number of heads and an inner width, in a settings object or in a list."""

    def __init__(self, width, heads, how):
        super().__init__()
        self.how, self.config, self.sizes, self.head_dim = how, Settings(heads, width), [heads, width], width // heads
        self.q, self.k, self.v, self.o = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x):
        batch, length, _ = x.shape
        heads, width = (self.config.heads, self.config.width) if self.how == "object" else self.sizes
        parts = (m(x).view(batch, length, heads, self.head_dim).permute(0, 2, 1, 3) for m in (self.q, self.k, self.v))
        y = F.scaled_dot_product_attention(*parts)
        return self.o(y.permute(0, 2, 1, 3).contiguous().view((batch, length, width)))


class Blur(nn.Module):
    """A depthwise convolution with one constant kernel, repeated or expanded over the channels."""

    def __init__(self, channels, how):
        super().__init__()
        self.channels, self.how = channels, how
        row = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
        kernel = (row[:, None] * row)[None, None]
        kernel = kernel.repeat(channels, 1, 1, 1) if how == "repeated" else kernel
        self.register_buffer("kernel", kernel, persistent=how == "saved")

    def forward(self, x):
        channels = x.shape[1] if self.how in ("shape", "saved") else self.channels
        kernel = self.kernel if self.how == "repeated" else self.kernel.expand(channels, -1, -1, -1)
        return F.conv2d(F.pad(x, (1, 2, 1, 2), "reflect"), kernel, stride=2, groups=channels)


class Beside(nn.Module):
    """Channels beside others that nothing makes: coordinates, zeros, the input."""

    def __init__(self, how):
        super().__init__()
        self.how = how
        self.a, self.b, self.c = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(18, 8, 1), nn.Conv2d(8, 2, 1)
        self.register_buffer("grid", torch.randn(1, 2, 8, 8))

    def forward(self, x):
        y = self.a(x).relu()
        batch, _, height, width = y.shape
        if self.how == "linspace":
            line = torch.linspace(-1, 1, height, dtype=y.dtype)
            more = torch.stack(torch.meshgrid(line, line, indexing="ij"))[None].expand(batch, -1, -1, -1)
        else:
            more = {
                "buffer": self.grid.expand(batch, -1, -1, -1),
                "zeros": y.new_zeros(batch, 2, height, width),
                "zeros_like": torch.zeros_like(x[:, :2]),
                "input": x[:, :2],
            }[self.how]
        return self.c(self.b(torch.cat([more, y] if self.how == "linspace" else [y, more], 1)).relu())


class Padded(nn.Module):
    """A shortcut without parameters: zeros on both sides, or at the end, by a number that the module keeps."""

    def __init__(self, before, after, how):
        super().__init__()
        self.how, self.extra, self.sides = how, after - before, ((after - before) // 2, (after - before) // 2)
        self.conv = nn.Conv2d(before, after, 3, stride=2, padding=1)

    def forward(self, x):
        sides = self.sides if self.how == "tuple" else (0, self.extra)
        return self.conv(x) + F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, *sides))


class Norm(nn.Module):
    """A norm over channels by hand."""

    def __init__(self, channels, how):
        super().__init__()
        self.how, self.weight, self.bias = how, nn.Parameter(torch.randn(channels)), nn.Parameter(torch.randn(channels))

    def forward(self, x):
        weight, bias = self.weight.view(1, -1, 1, 1), self.bias.view(1, -1, 1, 1)
        if self.how in ("permuted", "float32"):
            y = x.float() if self.how == "float32" else x
            y = F.layer_norm(y.permute(0, 2, 3, 1), (x.shape[1],), self.weight.to(y.dtype), self.bias.to(y.dtype))
            return y.permute(0, 3, 1, 2).to(x.dtype)
        if self.how == "grn":
            size = x.norm(p=2, dim=(2, 3), keepdim=True)
            return x + bias + weight * x * (size / (size.mean(1, keepdim=True) + 1e-6))
        mean = x.mean(1, keepdim=True)
        return {
            "var": lambda: (x - mean) * torch.rsqrt(x.var(1, keepdim=True, unbiased=False) + 1e-6) * weight + bias,
            "std": lambda: weight * (x - mean) / (x.std(1, keepdim=True) + 1e-6) + bias,
            "var_mean": lambda: (x - mean) / (torch.var_mean(x, 1, keepdim=True)[0] + 1e-6).sqrt() * weight + bias,
            "rms": lambda: x * torch.rsqrt(x.square().mean(1, keepdim=True) + 1e-6) * weight,
            "length": lambda: F.normalize(x, dim=1) * weight,
        }[self.how]()


class Partial(nn.Module):
    """A shortcut into the first channels of a wider output."""

    def __init__(self, before, after, how):
        super().__init__()
        self.first, self.how, self.conv = before, how, nn.Conv2d(before, after, 3, padding=1)

    def forward(self, x):
        y = self.conv(x)
        if self.how == "in_place":
            y = y.clone()
            y[:, : self.first] += x
            return y
        if self.how == "shape":
            return torch.cat([y[:, : x.shape[1]] + x, y[:, x.shape[1] :]], 1)
        if self.how == "narrow":
            return torch.cat([y.narrow(1, 0, self.first) + x, y[:, self.first :]], 1)
        head, rest = y.split([self.first, y.shape[1] - self.first], 1)
        return torch.cat([head + x, rest], 1)


class Noisy(nn.Module):
    """Draws of the size of channels."""

    def __init__(self, how):
        super().__init__()
        self.how, self.mean, self.spread, self.last = how, nn.Conv2d(3, 8, 1), nn.Conv2d(3, 8, 1), nn.Conv2d(8, 3, 1)

    def forward(self, x):
        mean, spread = self.mean(x), self.spread(x)
        drawn = {
            "randn": lambda: torch.randn(spread.shape, dtype=spread.dtype),
            "rand_like": lambda: torch.rand_like(spread),
            "normal_": lambda: torch.empty_like(spread).normal_(),
        }[self.how]()
        return self.last(mean + spread * drawn)


class Standardised(nn.Conv2d):
    """A convolution whose kernels are standardised before each use."""

    how = "batch_norm"

    def forward(self, x):
        w = self.weight
        if self.how == "batch_norm":
            flat = w.reshape(1, self.out_channels, -1)
            w = F.batch_norm(flat, None, None, training=True, momentum=0.0, eps=1e-6).reshape_as(w)
        elif self.how == "by_hand":
            spread = w.var((1, 2, 3), keepdim=True, unbiased=False)
            w = (w - w.mean((1, 2, 3), keepdim=True)) / (spread + 1e-5).sqrt()
        else:
            flat = w.flatten(1)
            w = ((flat - flat.mean(1, keepdim=True)) / (flat.std(1, keepdim=True) + 1e-5)).view_as(w)
        return F.conv2d(x, w, self.bias)


class Branches(nn.Module):
    """A softmax over branches, channel by channel."""

    def __init__(self, channels, count, how):
        super().__init__()
        self.how, self.count = how, count
        self.branches = nn.ModuleList(nn.Conv2d(3, channels, 3) for _ in range(count))
        self.reduce, self.choose = nn.Conv2d(channels, 8, 1), nn.Conv2d(8, count * channels, 1)
        self.each = nn.ModuleList(nn.Conv2d(8, channels, 1) for _ in range(count))
        self.last = nn.Linear(channels, 5)

    def forward(self, x):
        ys = [branch(x) for branch in self.branches]
        z, batch = self.reduce(sum(ys).mean((2, 3), keepdim=True)).relu(), x.shape[0]
        if self.how == "view":
            shares = self.choose(z).view(batch, self.count, -1, 1, 1).softmax(1).unbind(1)
        elif self.how == "list":
            shares = torch.stack([layer(z) for layer in self.each], 0).softmax(0).unbind(0)
        else:
            shares = F.log_softmax(self.choose(z).reshape(batch, self.count, ys[0].shape[1], 1, 1), 1).exp().unbind(1)
        return self.last(sum(share * y for share, y in zip(shares, ys, strict=True)).mean((2, 3)))


class Split(nn.Module):
    """Runs of channels by sizes that the module keeps."""

    def __init__(self, sizes, how):
        super().__init__()
        self.how, self.sizes = how, list(sizes)
        self.first, self.rest, self.named = sizes[0], sum(sizes[1:]), {"a": sizes[0], "b": sum(sizes[1:])}
        self.convs = nn.ModuleList(nn.Conv2d(c, c, 3, padding=1, groups=c) for c in sizes)

    def forward(self, x):
        if self.how == "list":
            return torch.cat([conv(run) for conv, run in zip(self.convs, x.split(self.sizes, 1), strict=True)], 1)
        if self.how == "in_place":
            x = x.clone()
            x[:, : self.first] = self.convs[0](x[:, : self.first])
            return x
        a, b = {
            "slice": lambda: (x[:, : self.first], x[:, self.first :]),
            "from_behind": lambda: (x[:, : -self.rest], x[:, -self.rest :]),
            "rest": lambda: torch.split(x, [self.first, x.shape[1] - self.first], 1),
            "dictionary": lambda: torch.split(x, [self.named["a"], self.named["b"]], 1),
            "tensor_split": lambda: torch.tensor_split(x, [self.first], 1),
        }[self.how]()
        return torch.cat([self.convs[0](a), b], 1)


class Unequal(nn.Module):
    """Queries and keys of a few channels beside values of many, from one projection."""

    def __init__(self, few, many, how):
        super().__init__()
        self.few, self.many, self.how = few, many, how
        self.project, self.last = nn.Conv2d(8, 2 * few + many, 1), nn.Conv2d(many, 5, 1)

    def forward(self, x):
        q, k, v = self.project(x).split([self.few, self.few, self.many], 1)
        if self.how == "sum":
            return self.last((q * k).sum(1, keepdim=True) * v)
        shares = (q.flatten(2).transpose(1, 2) @ k.flatten(2)).softmax(-1)
        return self.last((v.flatten(2) @ shares.transpose(1, 2)).reshape(x.shape[0], self.many, *x.shape[2:]))


class Shifted(nn.Module):
    """An activation that makes a constant of zero: StarReLU, HGNet's learned shift, a sigmoid."""

    def __init__(self, how):
        super().__init__()
        self.how, self.scale, self.shift = how, nn.Parameter(torch.ones(1)), nn.Parameter(torch.full((1,), 0.3))

    def forward(self, x):
        if self.how == "star":
            return self.scale * x.relu() ** 2 + self.shift
        return x.relu() * self.scale + self.shift if self.how == "affine" else x.sigmoid()


def image(*layers):
    return nn.Sequential(*layers), torch.randn(2, 3, 12, 12)


def tokens(width, *layers):
    return nn.Sequential(nn.Linear(12, width), *layers, nn.Linear(width, 5)), torch.randn(2, 6, 12)


def grouped(count):
    """Group norms of as many groups, of which a trial may leave one."""
    layers = [nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.GroupNorm(count, 16), nn.ReLU()) for _ in range(9)]
    return image(nn.Conv2d(3, 16, 3), *layers, nn.Conv2d(16, 4, 1))


def standardised(how):
    kind = type("Own", (Standardised,), {"how": how})
    return image(kind(3, 16, 3), nn.ReLU(), kind(16, 12, 3), nn.ReLU(), nn.Conv2d(12, 4, 1))


def between(make, before=32):
    return image(nn.Conv2d(3, before, 3), make(), nn.ReLU(), nn.Conv2d(before, 4, 1))


VARIANTS = {
    **{
        f"attention, {how}, {width} by {heads}": (0.3, lambda how=how, width=width, heads=heads: tokens(
            width, Attention(width, heads, how), nn.LayerNorm(width), Attention(width, heads, how)))
        for how in ("packed", "open", "chunk", "each")
        for width, heads in ((32, 4), (48, 3))
    },
    **{
        f"channel attention, {how}": (0.3, lambda how=how: tokens(
            32, ChannelAttention(32, 4, how), nn.LayerNorm(32), ChannelAttention(32, 4, how)))
        for how in ("rows", "columns")
    },
    **{
        f"two sizes in {how}, {heads} heads": (0.3, lambda how=how, heads=heads: tokens(
            24, TwoSizes(24, heads, how), nn.LayerNorm(24), TwoSizes(24, heads, how)))
        for how in ("object", "list")
        for heads in (4, 6)
    },
    **{
        f"blur, {how}": (0.35, lambda how=how: image(
            nn.Conv2d(3, 12, 3), nn.ReLU(), Blur(12, how), nn.Conv2d(12, 20, 3), Blur(20, how), nn.Conv2d(20, 4, 1)))
        for how in ("repeated", "attribute", "shape", "saved")
    },
    **{
        f"beside, {how}": (0.5, lambda how=how: (Beside(how), torch.randn(2, 3, 8, 8)))
        for how in ("linspace", "buffer", "zeros", "zeros_like", "input")
    },
    **{
        f"padded, {how}": (0.3, lambda how=how: image(
            nn.Conv2d(3, 8, 3), Padded(8, 16, how), nn.ReLU(), Padded(16, 24, how), nn.Conv2d(24, 4, 1)))
        for how in ("tuple", "end")
    },
    **{
        f"norm, {how}": (0.5, lambda how=how: image(
            nn.Conv2d(3, 16, 3), Norm(16, how), nn.ReLU(), nn.Conv2d(16, 12, 1), Norm(12, how), nn.Conv2d(12, 4, 1)))
        for how in ("permuted", "float32", "grn", "var", "std", "var_mean", "rms", "length")
    },
    **{
        f"partial, {how}": (0.3, lambda how=how: image(
            nn.Conv2d(3, 16, 3), Partial(16, 22, how), nn.ReLU(), Partial(22, 30, how), nn.Conv2d(30, 4, 1)))
        for how in ("in_place", "shape", "narrow", "split")
    },
    **{f"noise, {how}": (0.6, lambda how=how: (Noisy(how), torch.randn(2, 3, 6, 6)))
       for how in ("randn", "rand_like", "normal_")},
    **{f"standardised, {how}": (0.35, lambda how=how: standardised(how)) for how in ("batch_norm", "by_hand", "flat")},
    **{
        f"branches, {how}, {count}": (0.6, lambda how=how, count=count: (
            Branches(12, count, how), torch.randn(2, 3, 8, 8)))
        for how in ("view", "list", "log")
        for count in (2, 3)
    },
    **{f"group norms, {count}": (0.35, lambda count=count: grouped(count)) for count in (4, 8)},
    **{
        f"split, {how}, {len(sizes)}": (0.8, lambda how=how, sizes=sizes: between(lambda: Split(sizes, how)))
        for how in ("list", "in_place", "slice", "from_behind", "rest", "dictionary", "tensor_split")
        for sizes in ((8, 24), (6, 10, 16))
    },
    **{
        f"unequal, {how}, {few} and {many}": (0.4, lambda how=how, few=few, many=many: image(
            nn.Conv2d(3, 8, 1), Unequal(few, many, how)))
        for how in ("sum", "attention")
        for few, many in ((4, 68), (16, 24), (3, 9))
    },
    **{
        f"shifted, {how}": (0.35, lambda how=how: image(
            nn.Conv2d(3, 16, 3), Shifted(how), nn.Conv2d(16, 12, 3), Shifted(how), nn.Conv2d(12, 4, 1)))
        for how in ("star", "affine", "sigmoid")
    },
}  # fmt: skip
"""Name -> the largest share of its parameters that half of the channels may leave, and what makes it with an input."""
