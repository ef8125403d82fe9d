"""The pruned architectures of "Rethinking the Value of Network Pruning", from the rules that it names them by."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True)
class Pruned:
    """A ResNet of the paper: in each block the first convolution loses a share of its filters, the smallest in L1.

    Attributes:
        depth: of the ResNet.
        skip: convolutions that stay whole, the stem being 1; the first of a block has an even number.
        shares: what goes, by stage.
        parameters: published.
        less: share of the MACs that goes, published.
        macs: published, in millions; None where only the share is given.
    """

    depth: int
    skip: tuple[int, ...]
    shares: tuple[float, float, float]
    parameters: int
    less: float
    macs: float | None = None

    def widths(self, width: int = 16) -> dict[str, int]:
        """Group -> filters that stay."""
        blocks = (self.depth - 2) // 6
        found = {}
        for stage, share in enumerate(self.shares):
            for block in range(blocks):
                number = 2 * (stage * blocks + block) + 2
                whole = width * 2**stage
                kept = whole if number in self.skip else int(whole * (1 - share))
                found[f"layer{stage + 1}.{block}.conv1"] = kept
        return found


RETHINKING = {
    "R56-A": Pruned(56, (16, 20, 38, 54), (0.1, 0.1, 0.1), 773_336, 0.104, 112.44),
    "R56-B": Pruned(56, (16, 18, 20, 34, 38, 54), (0.6, 0.3, 0.1), 735_712, 0.276, 90.91),
    "R110-A": Pruned(110, (36,), (0.5, 0.0, 0.0), 1_688_522, 0.159),
    "R110-B": Pruned(110, (36, 38, 74), (0.5, 0.4, 0.3), 1_168_424, 0.387),
}
VGG16 = (64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512)
VGG16_A = (32, 64, 128, 128, 256, 256, 256, 256, 256, 256, 256, 256, 256)
_POOLED = (1, 3, 6, 9)
"""Convolutions of VGG-16 that a pooling follows; the last is averaged over."""


def vgg16(widths: tuple[int, ...] = VGG16, classes: int = 10) -> nn.Module:
    """VGG-16 for 32x32 images as the paper has it: norms, no biases, one hidden layer of 512 with a norm."""
    layers: list[nn.Module] = []
    channels = 3
    for place, width in enumerate(widths):
        layers += [nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
        if place in _POOLED:
            layers.append(nn.MaxPool2d(2))
        channels = width
    head = [nn.AvgPool2d(2), nn.Flatten(), nn.Linear(channels, 512), nn.BatchNorm1d(512), nn.ReLU()]
    return nn.Sequential(*layers, *head, nn.Linear(512, classes))
