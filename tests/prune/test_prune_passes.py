"""How many cuts a trace tries: its time is theirs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from compress import prune
from compress.prune import blaming


class Talking(nn.Module):
    """Attention whose heads are mixed: a cut of its input fails where only what stays arrives."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.mix = nn.Linear(width, 3 * width), nn.Linear(heads, heads)

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        scores = (q @ k.transpose(-2, -1)).softmax(-1)
        scores = self.mix(scores.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return (scores @ v).transpose(1, 2).reshape(b, n, c)


class Tower(nn.Module):
    """Blocks of attention and an MLP, each with a group of its own."""

    def __init__(self, depth: int = 8, width: int = 16) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(5, width), nn.Linear(width, 3)
        self.attention = nn.ModuleList(Talking(width, 4) for _ in range(depth))
        self.mlp = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 20), nn.GELU(), nn.Linear(20, width)) for _ in range(depth)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for attention, mlp in zip(self.attention, self.mlp, strict=True):
            x = x + attention(x)
            x = x + mlp(x)
        return self.head(x.mean(1))


class Noted(nn.Module):
    """A network that keeps a width which its pass does not read."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 12, 3), nn.Conv2d(12, 4, 1)
        self.hidden_channels = 12

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.conv(x).relu())


@pytest.fixture
def cuts(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    made: list[int] = []
    plain = blaming.Trials.tried

    def counted(self: blaming.Trials, grouping: blaming.Grouping, kept: object, hasty: bool = False) -> object:
        made.append(len(grouping.trace.groups))
        return plain(self, grouping, kept, hasty)  # type: ignore[arg-type]

    monkeypatch.setattr(blaming.Trials, "tried", counted)
    return made


def test_what_a_failing_call_was_given_is_asked_first(cuts: list[int]) -> None:
    network, x = Tower().double().eval(), torch.randn(2, 6, 5, dtype=torch.float64)
    trace = prune.trace(network, x)
    assert sum(g.name.startswith("mlp") for g in trace.groups) == 8
    assert len(cuts) < 30
    plan = prune.plan(trace, prune.score(trace, network, "l1"), ratio=0.5, scope="group")
    assert prune.check(network, plan, x).worst < 1e-9


def test_an_unread_width_takes_no_cuts_of_its_own(cuts: list[int]) -> None:
    network, x = Noted().eval(), torch.randn(2, 3, 8, 8)
    trace = prune.trace(network, x)
    assert any(a.name == "hidden_channels" for a in trace.attributes)
    assert len(cuts) == 2


class Step(nn.Module):
    """A width that only a comparison reads, beside a size of heads that is as large by chance."""

    def __init__(self, hidden, out, head):
        super().__init__()
        self.hidden_size, self.hidden_size_out, self.head_dim = hidden, out, head
        self.proj, self.q, self.o = nn.Linear(hidden, out), nn.Linear(hidden, 2 * head), nn.Linear(2 * head, out)

    def forward(self, x):
        kept = self.proj(x) if self.hidden_size != self.hidden_size_out else x
        return kept + self.o(self.q(x).reshape(len(x), 2, self.head_dim).softmax(2).flatten(1))


def test_a_number_that_is_something_else_does_not_keep_others_from_being_followed():
    """Half of 16 is the old 8: with the stale width the cut network would take the branch without a projection."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 8), Step(8, 16, 8), nn.ReLU(), nn.Linear(16, 4)).eval()
    x = torch.randn(2, 3)
    trace = prune.trace(net, x)
    plan = prune.plan(trace, prune.score(trace, net, "l1"), ratio=0.5, scope="group")
    assert prune.apply(net, plan)[1].hidden_size == 4
    prune.check(net, plan, x)
