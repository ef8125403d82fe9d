"""Transformers: whole heads or dims of each go, the model's width goes under its norms, sizes in the code follow."""

import pytest
import torch
import torch.nn.functional as F
from prune_nets import draw
from torch import nn
from torchvision import models
from torchvision.models import swin_transformer as swin

from compress import prune

pytestmark = pytest.mark.heavy

# name -> (network, side); small ones of each family, whose image and width may have one size
FAMILIES = {
    "vit": (lambda: models.VisionTransformer(32, 8, 2, 4, 32, 64, num_classes=7), 32),
    "swin": (lambda: swin.SwinTransformer([4, 4], 24, [2, 2], [3, 6], [4, 4], num_classes=7), 32),
    "swin v2": (
        lambda: swin.SwinTransformer(
            [4, 4], 24, [2, 2], [3, 6], [4, 4], num_classes=7, block=swin.SwinTransformerBlockV2,
            downsample_layer=swin.PatchMergingV2,
        ),
        32,
    ),
    "maxvit": (lambda: models.MaxVit((64, 64), 16, 2, [16, 32], [1, 1], 8, 0.1, num_classes=7), 64),
}  # fmt: skip


def proved(net, x, draws=2, **settings):
    trace = prune.trace(net, x[:1], **settings)
    for seed in range(draws):
        prune.check(net, draw(trace, seed), x)
    return trace


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("heads", ["whole", "dims"])
def test_a_transformer_loses_channels_and_nothing_else(name, heads):
    torch.manual_seed(0)
    make, side = FAMILIES[name]
    net = make().eval()
    trace = proved(net, torch.randn(4, 3, side, side), heads=heads)
    half = prune.apply(net, prune.plan(trace, prune.score(trace, net), ratio=0.5, scope="group"))
    kept = sum(p.numel() for p in half.parameters()) / sum(p.numel() for p in net.parameters())
    assert kept <= 0.4, "the heads, the inner and the model's width go"
    assert not trace.preserving.all(), "what is under a layer norm is said to be"


def test_whole_heads_are_units_of_an_attention_and_dims_are_the_same_in_each():
    net, x = FAMILIES["vit"][0]().eval(), torch.randn(1, 3, 32, 32)
    name = "encoder.layers.encoder_layer_0.self_attention"
    for heads, units in (("whole", 4), ("dims", 8)):
        trace = prune.trace(net, x, heads=heads)
        assert next(len(g.units) for g in trace.groups if g.name == name) == units
        assert trace.substitutions[name] == "MultiheadAttention"


def test_a_size_of_the_code_that_is_the_models_width_follows_and_the_images_size_does_not():
    net, x = FAMILIES["vit"][0]().eval(), torch.randn(1, 3, 32, 32)
    trace = prune.trace(net, x)
    plan = prune.plan(trace, prune.score(trace, net), ratio=0.5, scope="group")
    assert plan.attributes[""] == {"hidden_dim": (32, 16)}
    assert prune.apply(net, plan).image_size == net.image_size == 32


class Own(nn.Module):
    """Attention as users write it: heads counted by an attribute, the inner width free."""

    def __init__(self, fused):
        super().__init__()
        self.heads, self.width, self.fused = 4, 6, fused
        self.embed = nn.Linear(5, 20)
        self.norm = nn.LayerNorm(20)
        self.qkv, self.out, self.head = nn.Linear(20, 72), nn.Linear(24, 20), nn.Linear(20, 3)

    def forward(self, x):
        x = self.embed(x)
        n, t, _ = x.shape
        q, k, v = self.qkv(self.norm(x)).view(n, t, 3, self.heads, self.width).permute(2, 0, 3, 1, 4)
        if self.fused:
            y = F.scaled_dot_product_attention(q, k, v)
        else:
            y = torch.einsum("nhts,nhsd->nhtd", (torch.einsum("nhtd,nhsd->nhts", q, k) * 0.3).softmax(-1), v)
        return self.head((x + self.out(y.transpose(1, 2).flatten(2))).mean(1))


@pytest.mark.parametrize("fused", [True, False])
def test_heads_that_an_attribute_counts_go_whole(fused):
    torch.manual_seed(0)
    trace = proved(Own(fused), torch.randn(8, 7, 5))
    assert next(len(g.units) for g in trace.groups if g.name == "qkv") == 4
    assert [(a.module, a.name, a.value) for a in trace.attributes if a.name == "heads"] == [("", "heads", 4)]


def test_attention_that_reshapes_to_the_models_width_keeps_its_heads():
    class Fixed(Own):
        def forward(self, x):
            x = self.embed(x)
            n, t, c = x.shape
            q, k, v = self.qkv(x).view(n, t, 3, 4, c // 4).permute(2, 0, 3, 1, 4)
            return self.head(self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, t, c)).mean(1))

    torch.manual_seed(0)
    net = Fixed(True)
    net.qkv, net.out = nn.Linear(20, 60), nn.Linear(20, 20)
    trace = proved(net, torch.randn(8, 7, 5))
    assert trace.protected["qkv.weight:0"].startswith("fixed size")


def test_group_norms_lose_whole_groups_and_rms_norms_any_channel():
    def run(x, convolutions, norms):
        for convolution, norm in zip(convolutions, norms, strict=True):
            x = (
                norm(convolution(x).movedim(1, -1)).movedim(-1, 1)
                if isinstance(norm, nn.RMSNorm)
                else norm(convolution(x))
            )
        return x

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.convolutions = nn.ModuleList([nn.Conv2d(3, 12, 3), nn.Conv2d(12, 10, 1), nn.Conv2d(10, 8, 1)])
            self.norms = nn.ModuleList([nn.GroupNorm(4, 12), nn.RMSNorm(10), nn.GroupNorm(1, 8)])
            self.last = nn.Conv2d(8, 4, 1)

        def forward(self, x):
            return self.last(run(x, self.convolutions, self.norms))

    torch.manual_seed(0)
    net = Net()
    trace = proved(net, torch.randn(8, 3, 6, 6), draws=4)
    assert {g.name: len(g.units) for g in trace.groups} == {
        "convolutions.0": 4, "convolutions.1": 10, "convolutions.2": 8
    }  # fmt: skip
    preserving = [trace.preserving[g.units].all() for g in trace.groups]
    assert preserving == [True, False, False]
