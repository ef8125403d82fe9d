"""Niwaki and Torch-Pruning at the same MACs, before and after the same short fine-tuning, on CIFAR-10.

Torch-Pruning loses count at a shortcut that pads with zeros. For its sake such a shortcut is a layer of its own that
multiplies with a constant selection, as a 1x1 convolution of zeros and ones does; its outputs are asserted to be the
padded one's, it is no parameter, is not trained, counts no MACs and has no say in any score.
"""

from __future__ import annotations

import copy
import hashlib
import json
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.criteria import cifar
from benchmarks.criteria.cells import read_lines
from benchmarks.criteria.subjects import answers_right
from benchmarks.criteria.tables import over_seeds
from benchmarks.criteria.vit import shifted
from compress import prune
from compress.models.cifar_resnet import PaddedShortcut
from deploy.environment import machine_info

RESULTS = Path(__file__).parent / "rivals.jsonl"

METHODS = ("niwaki", "niwaki l1", "tp l1 global", "tp l1 local", "tp taylor global", "tp taylor local")
"""Niwaki as it is by default, its cut by L1 with nothing solved, and Torch-Pruning's group criteria."""

SPEEDUP = 2.1
IMAGES, TUNED, BATCH, RATE, MOMENTUM, DECAY = 256, 4000, 64, 0.01, 0.9, 5e-4
"""Images to calibrate on, images of the one epoch that follows, and how it steps."""

BISECTIONS = 12


@dataclass(frozen=True)
class Bout:
    """One network made by one method.

    Args:
        depth: of the ResNet.
        method: one of `METHODS`.
        seed: of the calibration images, and of the order and shifts of the fine-tuning.
        speedup: the dense network's MACs over what stays at most.
    """

    depth: int
    method: str
    seed: int = 0
    speedup: float = SPEEDUP

    @property
    def key(self) -> str:
        """What tells it from all others."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:12]


def run(bouts: Sequence[Bout], file: Path, say: Callable[[str], None]) -> None:
    """Run those that the file has no line of, and append a line for each."""
    known = {line["key"] for line in read_lines(file)}
    for bout in bouts:
        if bout.key in known:
            continue
        line = {**asdict(bout), "key": bout.key, **_about(), **_measured(bout)}
        with file.open("a", encoding="utf-8") as out:
            out.write(json.dumps(line) + "\n")
        before, after = (100 * line[name] / line["judged"] for name in ("untrained", "tuned"))
        say(f"resnet{bout.depth} {bout.method} seed {bout.seed}: {before:.1f} %, tuned {after:.1f} %")


def _about() -> dict[str, Any]:
    return {
        "done": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpu": machine_info()["cpu"],
        "torch": torch.__version__,
    }


def _measured(bout: Bout) -> dict[str, Any]:
    started = time.process_time()
    dense, judged = cifar.network(bout.depth), cifar.test()
    own = cifar.calibration(IMAGES, bout.seed)
    limit = macs(dense) / bout.speedup
    if bout.method.startswith("tp"):
        _, score, scope = bout.method.split()
        network = torch_pruned(dense, own, limit, taylor=score == "taylor", everywhere=scope == "global")
    else:
        network = _niwaki(dense, own, 1 / bout.speedup, plain=bout.method.endswith("l1"), seed=bout.seed)
    made = time.process_time()
    share = macs(network) / macs(dense)
    assert share <= 1 / bout.speedup + 1e-9, f"{bout.method} is at {share:.4f} of the MACs"
    untrained = _right(network, judged)
    widths = [m.out_channels for m in network.modules() if isinstance(m, nn.Conv2d)]
    tuning = time.process_time()
    tune(network, bout.seed)
    tuned = time.process_time()
    return {
        "judged": len(judged.labels),
        "dense": _right(dense, judged),
        "untrained": untrained,
        "tuned": _right(network, judged),
        "share": share,
        "widths": widths,
        "make_seconds": round(made - started, 1),
        "tune_seconds": round(tuned - tuning, 1),
    }


def _right(network: nn.Module, judged: cifar.Images) -> int:
    return int(answers_right(network, zip(judged.images.split(250), judged.labels.split(250), strict=True)).sum())


def _niwaki(dense: nn.Module, own: cifar.Images, share: float, *, plain: bool, seed: int) -> nn.Module:
    images = list(own.images.split(64))
    trace = prune.trace(dense, images[0][:2])
    scores = prune.score(trace, dense, "l1") if plain else prune.score(trace, dense, "kfac", data=images, seed=seed)
    plan = prune.plan(trace, scores, budget=prune.Budget(macs=share), max_ratio=0.95)
    cut = prune.apply(dense, plan)
    prune.check(dense, plan, images[0][:4])
    return cut if plain else prune.reconstruct(dense, cut, plan, images, seed=seed)[0]


class Selected(nn.Module):
    """A padded shortcut as a product with constants: `selection` [out, in, 1, 1] holds a one for each channel."""

    selection: Tensor

    def __init__(self, padded: PaddedShortcut, channels: int) -> None:
        super().__init__()
        before, after = padded.zeros
        self.stride = padded.stride
        self.register_buffer("selection", F.pad(torch.eye(channels), (0, 0, before, after))[:, :, None, None])

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.selection, stride=self.stride)


def with_selections(dense: nn.Module, example: Tensor) -> nn.Module:
    """Copy a ResNet with each padded shortcut as a `Selected`; its outputs are the same."""
    network = copy.deepcopy(dense).eval()
    for block in list(network.modules()):
        if isinstance(getattr(block, "downsample", None), PaddedShortcut):
            block.downsample = Selected(block.downsample, block.conv1.in_channels)
    with torch.no_grad():
        assert torch.equal(network(example), dense(example)), "a selection gives something else than its padding"
    return network


def torch_pruned(dense: nn.Module, own: cifar.Images, limit: float, *, taylor: bool, everywhere: bool) -> nn.Module:
    """Cut by Torch-Pruning to the most MACs within `limit`: one cut, its ratio found by bisection.

    Args:
        dense: the network, which is not changed.
        own: calibration images with labels, whose loss the Taylor criterion takes its gradients from.
        limit: MACs.
        taylor: its group Taylor criterion, otherwise group L1.
        everywhere: ranked globally, otherwise one ratio for every group.
    """
    example = own.images[:2]
    start = with_selections(dense, example)
    if taylor:
        # One backward pass over all images, as its README has it.
        F.cross_entropy(start(own.images), own.labels).backward()
    low, high, best = 0.0, 1.0, None
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        network = _torch_pruned(start, example, middle, taylor=taylor, everywhere=everywhere)
        if macs(network) <= limit:
            high, best = middle, network
        else:
            low = middle
    assert best is not None, "no ratio meets the limit"
    best.zero_grad()
    with torch.no_grad():
        assert bool(best(example).isfinite().all())
    return best


def _torch_pruned(start: nn.Module, example: Tensor, ratio: float, *, taylor: bool, everywhere: bool) -> nn.Module:
    import torch_pruning as tp

    network = copy.deepcopy(start)
    for own, theirs in zip(network.parameters(), start.parameters(), strict=True):
        own.grad = theirs.grad
    pruner = tp.pruner.BasePruner(
        network,
        example,
        importance=tp.importance.GroupTaylorImportance() if taylor else tp.importance.GroupMagnitudeImportance(p=1),
        global_pruning=everywhere,
        pruning_ratio=ratio,
        max_pruning_ratio=0.95,
        ignored_layers=[network.fc],
        customized_pruners={Selected: _selected_pruner()},
    )
    pruner.step()
    return network


@cache
def _selected_pruner() -> Any:
    """Tell Torch-Pruning how a `Selected` loses channels."""
    import torch_pruning as tp

    class SelectedPruner(tp.function.BasePruningFunc):  # type: ignore[misc]
        TARGET_MODULES = Selected

        def prune_out_channels(self, layer: Selected, idxs: Sequence[int]) -> Selected:
            layer.selection = _without(layer.selection, idxs, 0)
            return layer

        def prune_in_channels(self, layer: Selected, idxs: Sequence[int]) -> Selected:
            layer.selection = _without(layer.selection, idxs, 1)
            return layer

        def get_out_channels(self, layer: Selected) -> int:
            return layer.selection.shape[0]

        def get_in_channels(self, layer: Selected) -> int:
            return layer.selection.shape[1]

    return SelectedPruner()


def _without(selection: Tensor, idxs: Sequence[int], dim: int) -> Tensor:
    gone = set(idxs)
    return selection.index_select(dim, torch.tensor([k for k in range(selection.shape[dim]) if k not in gone]))


def macs(network: nn.Module) -> float:
    """MACs of the convolutions and linear layers for one image of CIFAR."""
    total = 0.0

    def add(module: nn.Module, args: tuple[Tensor], out: Tensor) -> None:
        nonlocal total
        assert isinstance(module, nn.Conv2d | nn.Linear)
        total += module.weight.numel() * out[0, 0].numel()

    layers = [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    hooks = [layer.register_forward_hook(add) for layer in layers]
    training = network.training
    with torch.no_grad():
        network.eval()(torch.zeros(1, 3, 32, 32))
    network.train(training)
    for hook in hooks:
        hook.remove()
    return total


def tune(network: nn.Module, seed: int) -> None:
    """Train on `TUNED` images with their labels, once each: SGD, the rate falling along a cosine to nothing."""
    own = cifar.training(0, TUNED // 1000)
    # In this layout a step takes a fifth less time.
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    images = own.images.contiguous(memory_format=torch.channels_last)
    random = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.SGD(network.parameters(), lr=RATE, momentum=MOMENTUM, weight_decay=DECAY, nesterov=True)
    chunks = torch.randperm(len(own.labels), generator=random).split(BATCH)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, len(chunks))
    network.train()
    for chosen in chunks:
        loss = F.cross_entropy(network(shifted(images[chosen], random)), own.labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    network.eval()


def table(lines: Iterable[dict[str, Any]]) -> str:
    """Return one table for each network, in Markdown."""
    own, parts = list(lines), []
    for depth, speedup in dict.fromkeys((line["depth"], line["speedup"]) for line in own):
        same = [line for line in own if (line["depth"], line["speedup"]) == (depth, speedup)]
        rows = []
        for method in dict.fromkeys(line["method"] for line in same):
            mine = [line for line in same if line["method"] == method]
            shown = [over_seeds([100 * line[k] / line["judged"] for line in mine]) for k in ("untrained", "tuned")]
            share = sum(line["share"] for line in mine) / len(mine)
            rows.append(f"| {method} | {100 * share:.1f} % | {shown[0]} | {shown[1]} | {len(mine)} |")
        dense = 100 * same[0]["dense"] / same[0]["judged"]
        title = f"**resnet{depth} at {speedup:g}x fewer MACs**, {same[0]['judged']} test images, dense {dense:.1f} %:"
        head = "| method | MACs | untrained | fine-tuned | seeds |\n| --- | ---: | ---: | ---: | ---: |"
        parts.append("\n".join([title, "", head, *rows]))
    return "\n\n".join(parts)
