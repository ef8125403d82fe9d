"""Small networks and a way to train them, for tests of sparse training."""

import torch
import torch.nn.functional as F
from torch import nn


def two_layers(seed=0, width=8):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, width), nn.ReLU(), nn.Linear(width, 3))


def with_convolution(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(2, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, 3))


def batch(seed=1, count=32):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 6, generator=generator), torch.randint(3, (count,), generator=generator)


def take_steps(model, optimizer, count=5, seed=1):
    inputs, labels = batch(seed)
    for _ in range(count):
        optimizer.zero_grad()
        F.cross_entropy(model(inputs), labels).backward()
        optimizer.step()


def trainer(log=None, lr=0.1, count=5):
    """What procedures take as `train`; `log` collects the phases and how the network came into each."""

    def train(model, keep, phase):
        if log is not None:
            log.append((phase, {n: p.detach().clone() for n, p in model.named_parameters()}))
        optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9, weight_decay=0.01)
        handle = keep(model, optimizer) if keep is not None else None
        take_steps(model, optimizer, count)
        if handle is not None:
            handle.remove()

    return train
