"""The networks that are timed: dense, and cut to half the MACs at widths that compress.prune chose beforehand.

A machine with a GPU may lack what compress.prune imports, so the widths lie in widths.json;
`python -m benchmarks.gpu.networks` writes it anew. Weights are random, so which channels stay does not matter: the
first ones do.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

WIDTHS = Path(__file__).with_name("widths.json")
SIZE = 224


@dataclass(frozen=True)
class Network:
    """One network to time: `architecture` is resnet50, `variant` is dense or pruned."""

    architecture: str
    variant: str
    module: nn.Module
    shape: tuple[int, ...] = (3, SIZE, SIZE)


def pair(architecture, seed=0):
    """The dense network of torchvision and the cut one, random weights, statistics of what flows through them."""
    import torchvision

    widths = json.loads(WIDTHS.read_text(encoding="utf-8"))["networks"]
    found = []
    for variant in ("dense", "pruned"):
        torch.manual_seed(seed)
        module = torchvision.models.get_model(architecture, weights=None)
        if variant == "pruned":
            narrow(module, widths[architecture])
        found.append(Network(architecture, variant, settle(module)))
    return found


def narrow(module, widths):
    """Keep the first channels of each parameter and buffer that `widths` names, and set the layers' own numbers."""
    state = dict(module.named_parameters()) | dict(module.named_buffers())
    for place, kept in widths["slots"].items():
        name, _, dim = place.rpartition(":")
        path, _, leaf = name.rpartition(".")
        tensor = state[name].detach().narrow(int(dim), 0, kept).clone()
        owner = module.get_submodule(path)
        setattr(owner, leaf, nn.Parameter(tensor) if leaf in owner._parameters else tensor)
        state[name] = getattr(owner, leaf)
    for path, numbers in widths["attributes"].items():
        for name, value in numbers.items():
            setattr(module.get_submodule(path), name, value)
    return module


@torch.no_grad()
def settle(module, size=64, images=8):
    """Evaluation mode with BatchNorm statistics of random images, so that nothing vanishes or overflows on the way."""
    norms = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
    first = next(p for p in module.parameters() if p.dim() == 4)
    module.train()(torch.randn(images, first.shape[1], size, size, generator=torch.Generator().manual_seed(0)))
    return module.eval()


def widths_of(architecture, share=0.5):
    """What compress.prune keeps of a network at this share of the MACs, widths in eights."""
    import torchvision

    from compress import prune

    torch.manual_seed(0)
    model = torchvision.models.get_model(architecture, weights=None).eval()
    trace = prune.trace(model, torch.zeros(1, 3, SIZE, SIZE))
    plan = prune.plan(trace, prune.score(trace, model, "l1"), budget=prune.Budget(macs=share), round_to=8)
    return {
        "macs": plan.costs["macs_after"] / plan.costs["macs_before"],
        "slots": {place: len(slot.kept) for place, slot in plan.slots.items()},
        "attributes": {
            path: {name: after for name, (_, after) in numbers.items()} for path, numbers in plan.attributes.items()
        },
    }


if __name__ == "__main__":
    found = {name: widths_of(name) for name in ("resnet50", "mobilenet_v2")}
    WIDTHS.write_text(json.dumps({"criterion": "l1", "round_to": 8, "networks": found}) + "\n")
