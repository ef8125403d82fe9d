"""The thin ResNets of CIFAR."""

from __future__ import annotations

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Shortcut = Literal["projection", "pad"]


class PaddedShortcut(nn.Module):
    """Every `stride`-th position, between channels of zeros: He et al.'s option A, which has no parameter.

    The numbers of zeros are kept, so that a cut can make each its own.
    """

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        before = (channels_out - channels_in) // 2
        self.stride, self.zeros = stride, (before, channels_out - channels_in - before)

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, *self.zeros))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with a shortcut, as in He et al., Deep Residual Learning, 2016."""

    def __init__(self, channels_in: int, channels_out: int, stride: int, shortcut: Shortcut) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels_out)
        self.downsample: nn.Module = nn.Identity()
        if (stride != 1 or channels_in != channels_out) and shortcut == "pad":
            self.downsample = PaddedShortcut(channels_in, channels_out, stride)
        elif stride != 1 or channels_in != channels_out:
            self.downsample = nn.Sequential(
                nn.Conv2d(channels_in, channels_out, 1, stride, bias=False), nn.BatchNorm2d(channels_out)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.downsample(x))


class CifarResNet(nn.Module):
    """The thin ResNet for 32x32 images: three stages of (depth - 2) / 6 blocks, widths w, 2w, 4w."""

    image_size = 32

    def __init__(
        self, depth: int, width: int, in_channels: int, num_classes: int, shortcut: Shortcut = "projection"
    ) -> None:
        super().__init__()
        blocks = (depth - 2) // 6
        self.conv1 = nn.Conv2d(in_channels, width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.layer1 = self._stage(blocks, width, width, 1, shortcut)
        self.layer2 = self._stage(blocks, width, 2 * width, 2, shortcut)
        self.layer3 = self._stage(blocks, 2 * width, 4 * width, 2, shortcut)
        self.fc = nn.Linear(4 * width, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    @staticmethod
    def _stage(blocks: int, channels_in: int, channels_out: int, stride: int, shortcut: Shortcut) -> nn.Sequential:
        first = BasicBlock(channels_in, channels_out, stride, shortcut)
        return nn.Sequential(first, *(BasicBlock(channels_out, channels_out, 1, shortcut) for _ in range(blocks - 1)))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))


def cifar_resnet(
    depth: int = 20, width: int = 16, in_channels: int = 3, num_classes: int = 10, shortcut: Shortcut = "projection"
) -> nn.Module:
    """Build a CIFAR-style ResNet.

    Args:
        depth: 6n + 2.
        width: channels of the first stage.
        in_channels: of the images.
        num_classes: outputs.
        shortcut: where a stage begins: a `projection` by a convolution, or `pad` with zeros as the paper does on CIFAR.

    Raises:
        ValueError: another depth, or another shortcut.
    """
    if depth < 8 or (depth - 2) % 6:
        raise ValueError(f"depth {depth} is not 6n + 2 (8, 14, 20, 32, 44, 56, ...)")
    if shortcut not in get_args(Shortcut):
        raise ValueError(f"shortcut '{shortcut}' is unknown; give {' or '.join(map(repr, get_args(Shortcut)))}")
    return CifarResNet(depth, width, in_channels, num_classes, shortcut)
