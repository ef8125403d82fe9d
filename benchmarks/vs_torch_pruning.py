"""Niwaki against Torch-Pruning: from a dense classifier to one with half of its channels, in seconds.

uv run python -m benchmarks.vs_torch_pruning --json benchmarks/vs_torch_pruning.json

Both get the same dense network, one image, one thread and the same task: halve every group by L1. What each model
costs is measured in a process of its own, in turns (A B A B ...), after one round that is not counted. No time is
reported before the cut network has run: Niwaki's also has to equal its masked network.
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
import multiprocessing
import os
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.tables import cells, markdown, table
from deploy.environment import machine_info

CLASSES = 1000
LIMIT = 1e-4  # relative difference of cut and masked in float32
SLOW, VERY_SLOW = 5.0, 20.0  # seconds of a chain from which two rounds, and one round, are enough
TOOLS = ("niwaki", "torch-pruning")
PACKAGES = ("niwaki-vision", "torch-pruning", "torch", "torchvision", "numpy")


@dataclass(frozen=True)
class Timing:
    """One tool on one model: medians in seconds, of the whole chain and of its stages."""

    seconds: float
    stages: dict[str, float]
    rounds: int
    parameters_left: float
    difference: float | None = None


@dataclass(frozen=True)
class Row:
    """One model. `why` is empty where both tools succeeded, and only then there is a ratio (above 1: Niwaki wins)."""

    model: str
    niwaki: Timing | None = None
    torch_pruning: Timing | None = None
    ratio: float | None = None
    why: str = ""


@dataclass
class Chain:
    """What one tool made of one copy of the network."""

    network: Any
    stages: dict[str, float] = field(default_factory=dict)
    plan: Any = None

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.stages[name] = time.perf_counter() - start


# In the process of one model -------------------------------------------------------------------------------


def with_niwaki(model: Any, example: Any) -> Chain:
    from compress import prune

    chain = Chain(model)
    with chain.stage("trace"):
        trace = prune.trace(model, example)
    with chain.stage("score"):
        scores = prune.score(trace, model, "l1")
    with chain.stage("plan"):
        chain.plan = prune.plan(trace, scores, ratio=0.5, scope="group")
    with chain.stage("apply"):
        chain.network = prune.apply(model, chain.plan)
    return chain


def with_torch_pruning(model: Any, example: Any) -> Chain:
    """As in its README; for a VisionTransformer with what its own script for torchvision adds."""
    import torch_pruning as tp
    from torchvision.models import VisionTransformer

    chain = Chain(model)
    vit = isinstance(model, VisionTransformer)
    with chain.stage("graph"):
        pruner = tp.pruner.BasePruner(
            model,
            example,
            importance=tp.importance.GroupMagnitudeImportance(p=1),
            pruning_ratio=0.5,
            ignored_layers=[m for m in model.modules() if _outputs(m) == CLASSES],
            round_to=model.encoder.layers[0].num_heads if vit else None,
        )
    with chain.stage("prune"):
        pruner.step()
        if vit:
            model.hidden_dim = model.conv_proj.out_channels
    return chain


CHAINS: dict[str, Callable[[Any, Any], Chain]] = {"niwaki": with_niwaki, "torch-pruning": with_torch_pruning}


def measure(name: str, tools: tuple[str, ...], repeats: int, pipe: Connection) -> None:
    """Times `tools` on one model; says through `pipe` what it begins and what came of it."""
    import torch

    sys.stdout = sys.stderr  # what a tool prints is no result
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    dense, example = _dense(name)
    first: dict[str, float] = {}
    facts: dict[str, tuple[float, float | None]] = {}
    for tool in tools:
        pipe.send(("begin", tool))
        try:
            chain = _once(tool, dense, example)
            facts[tool] = _checked(dense, chain, example)
        except Exception as error:  # noqa: BLE001  (whatever a tool raises is what there is to say of it)
            pipe.send(("failed", tool, f"{type(error).__name__}: {_first_line(error)}"))
            continue
        first[tool] = sum(chain.stages.values())
        pipe.send(("runs", tool))
    slowest = max(first.values(), default=0.0)
    rounds = repeats if slowest < SLOW else min(repeats, 1 if slowest >= VERY_SLOW else 2)
    taken: dict[str, list[dict[str, float]]] = {tool: [] for tool in first}
    for _ in range(rounds):
        for tool in first:
            pipe.send(("begin", tool))
            taken[tool].append(_once(tool, dense, example).stages)
    for tool, stages in taken.items():
        whole = statistics.median(sum(s.values()) for s in stages)
        parts = {key: statistics.median(s[key] for s in stages) for key in stages[0]}
        pipe.send(("timing", tool, Timing(whole, parts, rounds, *facts[tool])))
    pipe.send(("end", ""))


def _dense(name: str) -> tuple[Any, Any]:
    """The network with nothing in it that starts near zero, which would hide errors."""
    import torch
    from torch import nn

    from compress.models import factory

    torch.manual_seed(0)
    dense = factory.build(f"torchvision:{name}", {}, CLASSES).eval()
    with torch.no_grad():
        for parameter in dense.parameters():
            # Biases, heads and layer scales.
            if float(parameter.abs().max()) < 1e-3:
                parameter.normal_(std=0.1)
        for module in dense.modules():
            if isinstance(module, nn.BatchNorm2d):
                assert module.running_mean is not None
                assert module.running_var is not None
                module.running_mean.normal_(std=0.1)
                module.running_var.uniform_(0.5, 1.5)
    side = 299 if name == "inception_v3" else 224
    return dense, torch.randn(1, 3, side, side)


def _once(tool: str, dense: Any, example: Any) -> Chain:
    """One run of a chain on a fresh copy, which is not timed."""
    model = copy.deepcopy(dense)
    gc.collect()
    return CHAINS[tool](model, example)


def _checked(dense: Any, chain: Chain, example: Any) -> tuple[float, float | None]:
    """Runs the cut network and raises AssertionError unless it answers as it has to.

    Returns:
        The share of the parameters that is left, and how far the network is from its masked one.
    """
    import torch

    from compress.prune.reference import KeptStatistics
    from compress.prune.surgery import mask_

    difference = None
    with torch.no_grad():
        out = chain.network.eval()(example)
        assert tuple(out.shape) == (1, CLASSES), f"the output has shape {tuple(out.shape)}"
        assert bool(out.isfinite().all()), "the output is not finite"
        if chain.plan is not None:
            masked_network = mask_(copy.deepcopy(dense), chain.plan, readers=True).eval()
            # What goes under a norm over channels is compared with that norm over the kept channels.
            with KeptStatistics(masked_network, chain.plan):
                masked = masked_network(example)
            difference = float((out - masked).abs().max() / masked.abs().max())
            assert difference < LIMIT, f"cut and masked differ by {difference:.1e}"
    left = sum(p.numel() for p in chain.network.parameters()) / sum(p.numel() for p in dense.parameters())
    return left, difference


def _outputs(module: Any) -> int | None:
    from torch import nn

    if isinstance(module, nn.Conv2d):
        return module.out_channels
    return module.out_features if isinstance(module, nn.Linear) else None


# Over all models -------------------------------------------------------------------------------------------


def compare(name: str, repeats: int, timeout: float) -> Row:
    """One model in a process of its own; where Torch-Pruning hangs or dies, Niwaki is timed alone."""
    timings, whys = _watched(name, TOOLS, repeats, timeout)
    if "niwaki" not in timings and "niwaki" not in whys:
        alone, reasons = _watched(name, TOOLS[:1], repeats, timeout)
        timings, whys = timings | alone, reasons | whys
    ours, theirs = timings.get("niwaki"), timings.get("torch-pruning")
    why = "; ".join(f"{tool}: {reason}" for tool, reason in whys.items())
    return Row(name, ours, theirs, theirs.seconds / ours.seconds if ours and theirs else None, why)


def _watched(
    name: str, tools: tuple[str, ...], repeats: int, timeout: float
) -> tuple[dict[str, Timing], dict[str, str]]:
    """Timings, and what went wrong, by tool; a chain that takes more than `timeout` seconds ends the process."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=measure, args=(name, tools, repeats, there), daemon=True)
    process.start()
    there.close()
    timings: dict[str, Timing] = {}
    whys: dict[str, str] = {}
    now = tools[0]
    try:
        while True:
            # Building and checking a network takes its time too, and hangs in no tool.
            if not here.poll(timeout):
                whys[now] = f"timeout ({timeout:.0f} s)"
                break
            kind, tool, *rest = here.recv()
            now = tool or now
            if kind == "failed":
                whys[tool] = rest[0]
            elif kind == "timing":
                timings[tool] = rest[0]
            elif kind == "end":
                break
    except EOFError:
        process.join()
        whys[now] = f"its process ended with {process.exitcode}"
    finally:
        process.kill()
        process.join()
    return timings, whys


def summary(rows: list[Row]) -> dict[str, Any]:
    compared = [row for row in rows if row.ratio is not None]
    worst = min(compared, key=lambda row: row.ratio or 0.0, default=None)
    return {
        "models": len(rows),
        "compared": len(compared),
        "median_ratio": statistics.median(row.ratio or 0.0 for row in compared) if compared else None,
        "min_ratio": worst.ratio if worst else None,
        "min_ratio_model": worst.model if worst else None,
        "faster": sum((row.ratio or 0.0) > 1 for row in compared),
        "not_compared": {row.model: row.why for row in rows if row.ratio is None},
    }


def report(rows: list[Row], settings: dict[str, Any]) -> dict[str, Any]:
    return {
        "format": "niwaki-vs-torch-pruning-1",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine_info(),
        "versions": {package: metadata.version(package) for package in PACKAGES},
        "settings": settings,
        "rows": [asdict(row) for row in rows],
        "summary": summary(rows),
    }


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [""])[0][:160]


def arguments(line: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.vs_torch_pruning", description=__doc__.splitlines()[0])
    parser.add_argument("--json", nargs="?", const="-", metavar="FILE", help="write JSON to FILE, or print it")
    parser.add_argument("--markdown", action="store_true", help="print the table for docs/benchmarks.md")
    parser.add_argument("--models", help="torchvision classifiers, with commas between; all of them by default")
    parser.add_argument("--repeats", type=int, default=5, help="rounds of each chain; fewer where it takes seconds")
    parser.add_argument("--timeout", type=float, default=120.0, help="seconds that one chain may take")
    parser.add_argument("--resume", action="store_true", help="keep the rows of the JSON file, measure the others")
    parser.add_argument("--read", metavar="FILE", help="show what an earlier run wrote and measure nothing")
    return parser.parse_args(line)


def main(line: list[str] | None = None) -> int:
    asked = arguments(line)
    errors = Console(stderr=True, highlight=False)
    if asked.read:
        found = json.loads(Path(asked.read).read_text(encoding="utf-8"))
    else:
        try:
            metadata.version("torch-pruning")
        except metadata.PackageNotFoundError:
            errors.print("torch-pruning is not installed; get it with: uv sync --group benchmark.", markup=False)
            return 3
        # The processes inherit it; torch reads it when it is loaded.
        os.environ["OMP_NUM_THREADS"] = "1"
        from torchvision import models

        known = models.list_models(module=models)
        names = asked.models.split(",") if asked.models else known
        if unknown := [name for name in names if name not in known]:
            sentence = f"torchvision has no classifier '{unknown[0]}'; it has for example {', '.join(known[:3])}."
            errors.print(sentence, markup=False, soft_wrap=True)
            return 2
        if asked.resume and asked.json in (None, "-"):
            errors.print("--resume goes on with a file; name it by --json FILE.", markup=False)
            return 2
        found = _measured(names, asked, errors)
    if asked.json == "-":
        print(json.dumps(found, indent=1))
    elif asked.json:
        Path(asked.json).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    if asked.markdown:
        print(markdown(found))
    elif asked.json != "-":
        # A file has no width of its own.
        Console(highlight=False, width=None if sys.stdout.isatty() else 120).print(table(found))
    return 1 if any(row["niwaki"] is None for row in found["rows"]) else 0


def _measured(names: list[str], asked: argparse.Namespace, console: Console) -> dict[str, Any]:
    load, rows, file = os.getloadavg()[0], [], Path(asked.json or "-")
    if asked.resume and file.is_file():
        before = json.loads(file.read_text(encoding="utf-8"))
        rows = [_row(row) for row in before["rows"]]
        load = max(load, before["settings"]["load_before"])
    done = {row.model for row in rows}
    settings: dict[str, Any] = {
        "repeats": asked.repeats,
        "timeout_s": asked.timeout,
        "threads": 1,
        "batch": 1,
        "ratio": 0.5,
        "criterion": "l1",
        "difference_limit": LIMIT,
        "load_before": load,
    }
    for number, name in enumerate(names, 1):
        if name in done:
            continue
        rows.append(compare(name, asked.repeats, asked.timeout))
        head = f"[{number:>2}/{len(names)}] {name}"
        console.print(
            f"{head}  {'  '.join(cells(asdict(rows[-1]))[1:8])}  {rows[-1].why}", soft_wrap=True, markup=False
        )
        if asked.json not in (None, "-"):
            # A run that is stopped goes on from here.
            file.write_text(json.dumps(report(rows, settings), indent=1) + "\n", encoding="utf-8")
    rows.sort(key=lambda row: row.model)
    return report(rows, settings)


def _row(found: dict[str, Any]) -> Row:
    """A row from what a file says of it."""
    timings = {key: None if found[key] is None else Timing(**found[key]) for key in ("niwaki", "torch_pruning")}
    return Row(**{**found, **timings})


if __name__ == "__main__":
    sys.exit(main())
