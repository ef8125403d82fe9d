"""The two LeNets of MNIST that papers on sparse networks measure."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class LeNet300(nn.Module):
    """LeNet-300-100 of LeCun et al., 1998: 784-300-100-classes, 266,200 weights for ten classes."""

    image_size = 28

    def __init__(self, in_channels: int, num_classes: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(28 * 28 * in_channels, 300)
        self.fc2 = nn.Linear(300, 100)
        self.fc3 = nn.Linear(100, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Class logits [B, classes] of images [B, C, 28, 28]."""
        x = F.relu(self.fc1(torch.flatten(x, 1)))
        return self.fc3(F.relu(self.fc2(x)))


class LeNet5(nn.Module):
    """LeNet-5 as Caffe has it and as the papers prune it: 20 and 50 maps, 500 units, 430,500 weights."""

    image_size = 28

    def __init__(self, in_channels: int, num_classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 20, 5)
        self.conv2 = nn.Conv2d(20, 50, 5)
        self.fc1 = nn.Linear(50 * 4 * 4, 500)
        self.fc2 = nn.Linear(500, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Class logits [B, classes] of images [B, C, 28, 28]."""
        x = F.max_pool2d(self.conv1(x), 2)
        x = F.max_pool2d(self.conv2(x), 2)
        return self.fc2(F.relu(self.fc1(torch.flatten(x, 1))))


def lenet300(in_channels: int = 1, num_classes: int = 10) -> nn.Module:
    """LeNet-300-100 for images of 28 x 28."""
    return LeNet300(in_channels, num_classes)


def lenet5(in_channels: int = 1, num_classes: int = 10) -> nn.Module:
    """LeNet-5 for images of 28 x 28."""
    return LeNet5(in_channels, num_classes)
