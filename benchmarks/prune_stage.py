"""Where the time of the prune stage goes, beside the floors of memory.

`uv run python -m benchmarks.prune_stage` takes ResNet-50 in float32 from dense weights to half of its channels: trace,
score, plan, apply. The scores are held against the reference first, and the cut network against the masked one in
float64. Then the stages and the floors run in turns; medians. The kernels' share of a stage is what PyTorch's profiler
gives them. The floor is one read of all weights (a sum over as many bytes in one piece) and one copy of what stays
(into memory that is there).
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

import cpp_ext
from compress import prune
from compress.models import factory
from deploy.environment import machine_info

LIMIT = 3.0
SCORE, SLICE = "niwaki::multi_filter_norm", "niwaki::multi_channel_slice"


class Stages:
    """Milliseconds by name, of each round."""

    def __init__(self) -> None:
        self.rounds: dict[str, list[float]] = {}

    def add(self, name: str, milliseconds: float) -> None:
        self.rounds.setdefault(name, []).append(milliseconds)

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        begun = time.perf_counter()
        yield
        self.add(name, 1e3 * (time.perf_counter() - begun))

    def median(self, name: str) -> float:
        return statistics.median(self.rounds[name])


def checked(model: nn.Module, example: Tensor) -> prune.Plan:
    """The plan, after scores and cut have been held against their references."""
    trace = prune.trace(model, example)
    scores = prune.score(trace, model, "l1")
    with kernels("reference"):
        torch.testing.assert_close(scores, prune.score(trace, model, "l1"), rtol=1e-6, atol=0)
    plan = prune.plan(trace, scores, ratio=0.5, scope="group")
    prune.check(model, plan, example)
    return plan


@contextmanager
def kernels(which: str) -> Iterator[None]:
    before = os.environ.get("NIWAKI_KERNELS")
    os.environ["NIWAKI_KERNELS"] = which
    try:
        yield
    finally:
        del os.environ["NIWAKI_KERNELS"]
        if before is not None:
            os.environ["NIWAKI_KERNELS"] = before


def floors(model: nn.Module, plan: prune.Plan) -> dict[str, Callable[[], object]]:
    small = [p.detach() for p in prune.apply(model, plan).parameters()]
    there = [torch.empty_like(p) for p in small]
    flat = torch.ones(sum(p.numel() for p in model.parameters()))
    return {"read": flat.sum, "copy": lambda: [to.copy_(p) for to, p in zip(there, small, strict=True)]}


def one_round(stages: Stages, model: nn.Module, example: Tensor, floor: dict[str, Callable[[], object]]) -> None:
    for name, call in floor.items():
        with stages.timed(name):
            call()
    with stages.timed("trace"):
        trace = prune.trace(model, example)
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        with stages.timed("score"):
            scores = prune.score(trace, model, "l1")
        with stages.timed("plan"):
            plan = prune.plan(trace, scores, ratio=0.5, scope="group")
        with stages.timed("apply"):
            prune.apply(model, plan)
    kernel = {event.key: event.self_cpu_time_total / 1e3 for event in seen.key_averages()}
    stages.add("score kernel", kernel[SCORE])
    stages.add("slice kernel", kernel[SLICE])


def lines(stages: Stages, name: str, threads: int) -> list[str]:
    m = stages.median
    floor = m("read") + m("copy")
    kernel = m("score kernel") + m("slice kernel")
    calls = m("score") + m("apply")
    return [
        f"{name}, float32, half of each group by L1, {threads} thread(s), {cpp_ext.instruction_set()}, "
        f"{machine_info()['cpu']}, torch {torch.__version__}, {datetime.now(UTC):%Y-%m-%d}",
        f"  trace         {m('trace'):8.2f} ms",
        f"  score         {m('score'):8.2f} ms, of it the kernel {m('score kernel'):.2f}; the floor, one read "
        f"{m('read'):.2f}",
        f"  plan          {m('plan'):8.2f} ms",
        f"  apply         {m('apply'):8.2f} ms, of it the kernel {m('slice kernel'):.2f}; the floor, one copy "
        f"{m('copy'):.2f}",
        f"  both kernels  {kernel:8.2f} ms, {kernel / floor:.2f} times the floor of {floor:.2f} ms (aim: {LIMIT:g})",
        f"  both calls    {calls:8.2f} ms, {calls / floor:.2f} times the floor",
    ]


def main(line: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.prune_stage", description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="resnet50", help="a torchvision classifier")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    asked = parser.parse_args(line)
    torch.set_num_threads(asked.threads)
    torch.manual_seed(0)
    model = factory.build(f"torchvision:{asked.model}", {}, 1000).eval()
    plan = checked(model, torch.randn(1, 3, 64, 64))
    example = torch.randn(1, 3, 224, 224)
    floor = floors(model, plan)
    one_round(Stages(), model, example, floor)
    stages = Stages()
    for _ in range(asked.rounds):
        one_round(stages, model, example, floor)
    print("\n".join(lines(stages, asked.model, asked.threads)))
    kernel = stages.median("score kernel") + stages.median("slice kernel")
    return 0 if kernel < LIMIT * (stages.median("read") + stages.median("copy")) else 1


if __name__ == "__main__":
    sys.exit(main())
