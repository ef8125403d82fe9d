"""A pass is told of torch's own layers what torch would have told it."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from compress import prune
from compress.prune import leaves, passes


class Every(nn.Module):
    """Each kind of layer, in place and not, with odd arguments too."""

    def __init__(self) -> None:
        super().__init__()
        acts = [kind(inplace=b) for kind in (nn.ReLU, nn.ReLU6, nn.SiLU, nn.Hardswish) for b in (False, True)]
        self.blocks = nn.ModuleList(nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), a) for a in acts)
        self.stem, self.head = nn.Conv2d(3, 8, 3, 2, 1), nn.Linear(8, 3)
        self.depthwise = nn.Conv2d(8, 8, 3, padding="same", groups=8)
        self.mirrored = nn.Conv2d(8, 8, (3, 1), padding=(1, 0), padding_mode="reflect", bias=False)
        self.bare = nn.BatchNorm2d(8, affine=False, track_running_stats=False)
        self.plain = nn.BatchNorm2d(8, momentum=None)
        self.gate, self.row = nn.Hardsigmoid(inplace=True), nn.Conv1d(8, 8, 3, padding=1)
        self.rows = nn.BatchNorm1d(8)
        self.pool, self.pools = nn.AdaptiveAvgPool2d(1), nn.AdaptiveAvgPool2d((2, 2))
        self.out = nn.modules.linear.NonDynamicallyQuantizableLinear(8, 8)
        self.norm, self.wide, self.bare_wide = nn.LayerNorm(8), nn.Linear(8, 8), nn.Linear(8, 8, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(input=x)
        for block in self.blocks:
            x = x + block(x)
        x = self.plain(self.bare(self.mirrored(self.depthwise(x))))
        x = x * self.gate(x.mean((2, 3), keepdim=True)) + self.pool(x) + self.pool(x.mT) + self.pools(x).mean()
        x = self.rows(self.row(x.flatten(2)))
        tokens = self.norm(x.mT.contiguous())
        tokens = self.bare_wide(tokens) + self.wide(tokens) + self.wide(x.mT) + self.wide(tokens[:, None])[:, 0]
        return self.head(self.out(tokens).mean(1))


class Negated(TorchFunctionMode):
    """The network's own idea of a convolution."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        return -out if func is torch.conv2d else out


class Odd(nn.Module):
    """Layers that are copied, mapped over a batch, replaced or called under the network's own mode in a pass."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.copied, self.mapped = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 6, 1), nn.Conv2d(6, 6, 1)
        self.under, self.patched, self.head = nn.Conv2d(6, 6, 1), nn.ReLU(), nn.Conv2d(6, 2, 1)
        vars(self.patched)["forward"] = torch.tanh

    def forward(self, x: Tensor) -> Tensor:
        x = copy.deepcopy(self.copied)(self.conv(x))
        x = torch.vmap(self.mapped)(x)
        with Negated():
            x = self.under(x)
        return self.head(self.patched(x))


def calls(monkeypatch: pytest.MonkeyPatch, model: nn.Module, told: bool) -> list[Any]:
    """What the passes of a trace record of each call."""
    found: list[Any] = []

    def observed(tracer: Any, old: Any = passes.Passes.observe) -> Any:
        seen = old(tracer)
        found.extend((c.name, c.sources, c.shapes, c.numbers, c.bounds) for calls in seen.passes for c in calls)
        return seen

    with monkeypatch.context() as patch:
        patch.setattr(passes.Passes, "observe", observed)
        if not told:
            patch.setattr(leaves, "LEAVES", {})
        prune.trace(model.eval(), torch.randn(2, 3, 8, 8))
    return found


@pytest.mark.parametrize("kind", [Every, Odd])
def test_a_pass_is_told_what_torch_would_have_told_it(monkeypatch: pytest.MonkeyPatch, kind: type[nn.Module]) -> None:
    model = kind()
    assert calls(monkeypatch, model, told=True) == calls(monkeypatch, model, told=False)


def test_layers_tell_a_pass_without_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def told(mode: Any, func: Any, *args: Any, old: Any = leaves._told) -> Any:
        asked.append(str(func))
        return old(mode, func, *args)

    monkeypatch.setattr(leaves, "_told", told)
    prune.trace(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 2, 1)).eval(),
                torch.randn(1, 3, 8, 8))  # fmt: skip
    # One pass and two trials.
    assert asked.count("aten.convolution.default") == 6
    assert asked.count("aten.native_batch_norm.default") == asked.count("aten.relu.default") == 3


@pytest.mark.parametrize("kind", [nn.Linear, nn.modules.linear.NonDynamicallyQuantizableLinear])
def test_pooling_to_a_pixel_and_linear_layers_need_no_torch(
    monkeypatch: pytest.MonkeyPatch, kind: type[nn.Linear]
) -> None:
    seen: list[str] = []

    def dispatched(mode: Any, func: Any, *args: Any, old: Any = passes.LabelDispatch.__torch_dispatch__) -> Any:
        seen.append(str(func))
        return old(mode, func, *args)

    monkeypatch.setattr(passes.LabelDispatch, "__torch_dispatch__", dispatched)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), kind(8, 6), nn.ReLU(), kind(6, 2))
    trace = prune.trace(net.eval(), torch.randn(1, 3, 8, 8))
    assert sum(len(group.units) for group in trace.groups) == 14
    assert set(seen) == {"aten.view.default"}
