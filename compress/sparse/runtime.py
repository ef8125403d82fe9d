"""What zeros are worth in time where a program multiplies only what is not zero: compressed rows, one image at a time.

Dense runtimes multiply zeros like everything else. This is the other kind, in its simplest form: each layer is a matrix
of compressed sparse rows, a convolution one over unfolded patches. Below some density it is faster than dense; where
that lies depends on the layers and on the processor, hence it is measured.
"""

from __future__ import annotations

import copy
import time
from statistics import median

import torch
import torch.nn.functional as F
from scipy import sparse as rows
from torch import Tensor, nn

from compress.errors import ModelError
from compress.sparse.magnitude import largest
from compress.sparse.masks import Masks, bare, weights_of


class RowsLinear(nn.Module):
    """A linear layer that multiplies its nonzero weights alone; inference on a CPU."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.weight = rows.csr_array(layer.weight.detach().numpy())
        self.bias = None if layer.bias is None else layer.bias.detach()

    def forward(self, x: Tensor) -> Tensor:
        y = torch.from_numpy((self.weight @ x.reshape(-1, x.shape[-1]).numpy().T).T).reshape(*x.shape[:-1], -1)
        return y if self.bias is None else y + self.bias


class RowsConv2d(nn.Module):
    """A convolution of one group, likewise, over unfolded patches."""

    def __init__(self, layer: nn.Conv2d) -> None:
        super().__init__()
        self.weight = rows.csr_array(layer.weight.detach().flatten(1).numpy())
        self.bias = None if layer.bias is None else layer.bias.detach()
        self.layer = (layer.kernel_size, layer.dilation, layer.padding, layer.stride)

    def forward(self, x: Tensor) -> Tensor:
        kernel, dilation, padding, stride = self.layer
        sides = [
            (x.shape[2 + d] + 2 * int(padding[d]) - dilation[d] * (kernel[d] - 1) - 1) // stride[d] + 1 for d in (0, 1)
        ]
        patches = F.unfold(x, kernel, dilation, padding, stride)  # type: ignore[arg-type]
        y = torch.stack([torch.from_numpy(self.weight @ patch.numpy()) for patch in patches])
        y = y.reshape(len(x), -1, *sides)
        return y if self.bias is None else y + self.bias[:, None, None]


def by_rows(model: nn.Module) -> nn.Module:
    """Copy a network with every linear layer and plain convolution multiplying nonzero weights alone."""
    found = copy.deepcopy(bare(model)).cpu().eval()
    for path, module in list(found.named_modules()):
        new: nn.Module
        if type(module) is nn.Linear:
            new = RowsLinear(module)
        elif type(module) is nn.Conv2d and module.groups == 1 and module.padding_mode == "zeros":
            if isinstance(module.padding, str):
                continue
            new = RowsConv2d(module)
        else:
            continue
        if not path:
            return new
        parent, _, name = path.rpartition(".")
        setattr(found.get_submodule(parent), name, new)
    return found


def milliseconds(model: nn.Module, example: Tensor, repeats: int = 15) -> float:
    """Time one pass of ``example`` by nonzero weights alone: the median of some, after three to warm up."""
    network, times = by_rows(model), []
    with torch.inference_mode():
        for _ in range(repeats + 3):
            start = time.perf_counter()
            network(example)
            times.append(time.perf_counter() - start)
    return 1000 * median(times[3:])


def keep_for_milliseconds(model: nn.Module, example: Tensor, budget: float) -> tuple[int, float]:
    """The most weights, the largest of the network, with which one pass stays within ``budget``; and its time.

    The search is as fine as a fiftieth of a doubling, for times are no finer.

    Raises:
        ModelError: even with a thousandth of the weights it is slower.
    """
    total = sum(weight.numel() for weight in weights_of(model).values())

    def timed(keep: int) -> float:
        thin = copy.deepcopy(bare(model)).cpu()
        Masks(largest(thin, keep).kept).apply_(thin)
        return milliseconds(thin, example)

    low, high = max(1, total // 1000), total
    found = timed(low)
    if found > budget:
        raise ModelError(
            f"This network takes {found:.3g} ms with a thousandth of its weights, so {budget:g} ms cannot be kept; "
            "allow more, or cut channels first."
        )
    while high > 1.014 * low + 1:
        middle = round((low * high) ** 0.5)
        now = timed(middle)
        if now <= budget:
            low, found = middle, now
        else:
            high = middle
    return low, found
