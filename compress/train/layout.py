"""Where the channels-last layout must not be used."""

from __future__ import annotations

import torch
from torch import nn


def spoiled_by_channels_last(model: nn.Module, device: torch.device) -> bool:
    """Whether this CPU computes wrong gradients of one of the network's convolutions in channels-last.

    Observed with torch 2.15 on a CPU with AVX2 and without AVX-512: the gradient of a 1x1 weight with a stride and
    fewer than eight input channels is wrong, differs from call to call, and memory beside it is overwritten. The
    contiguous layout is exact. Other CPUs are untested, so all CPUs take the contiguous layout for such networks.
    """
    return device.type == "cpu" and any(
        isinstance(module, nn.Conv2d)
        and set(module.kernel_size) == {1}
        and max(module.stride) > 1
        and module.in_channels // module.groups < 8
        for module in model.modules()
    )
