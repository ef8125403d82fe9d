"""Compare ways to choose channels at one measured latency: a uniform ratio, `l1` by MACs, and the latency itself.

The latency itself is met twice: with the scores of `l1`, so that only the allocation differs from the others', and with
those of `kfac`, the default.

    python -m benchmarks.latency_methods FOLDER plan resnet56 --share 0.5     # on an idle machine: it times
    python -m benchmarks.latency_methods FOLDER train resnet56 --steps 100    # anywhere

A subject is `resnet20`, `resnet56` or the folder of a classifier's run. The first command looks for the uniform ratio
whose network takes a share of the dense one's time on ONNX Runtime in fp32, one thread: in steps of eight channels it
has few networks to offer. What it takes is asked of the others: the share of the MACs (`l1`, global, `round_to: 8`) is
searched for, the latency is met by its own loop, and at last all are timed in turns. The second command measures
each on the test as it was cut, solved again on 256 training images, and then trained for so many steps with the same
batches. FOLDER/SUBJECT.json is written after each part, and what it holds is not done again.
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
from pathlib import Path

import torch
from torch.nn import functional as F

from benchmarks.criteria.subjects import answers_right, subject
from benchmarks.latency_targets import writer
from compress import prune
from compress.files import write_text
from compress.prune import Budget, Plan
from compress.prune.allocation import Limits
from compress.run.additive import AdditiveModel
from compress.run.filling import Shipping, filled
from compress.run.fitting import LatencyFit, Target
from compress.run.probes import placed_layers
from deploy.latency.profile import How, Job, time_files

METHODS = ("uniform", "l1 by MACs", "latency by l1", "latency")
IMAGES = 256
TRIES, NEAR = 5, 0.015
HOW = How(rounds=20, min_seconds=1.0, agree=0.03)


class Clock:
    """Times cuts of a network beside the network itself, which is written once."""

    def __init__(self, model, example, folder):
        self.model, self.folder, self.write = model, folder, writer(example, [], "fp32")
        self.dense = self.write(model, folder / "dense.onnx")

    def shares(self, plans):
        """The share of the dense network's time that each plan's network takes, all in turns, and the dense timing."""
        paths = [self.write(prune.apply(self.model, plan), self.folder / f"{n}.onnx") for n, plan in enumerate(plans)]
        dense, *cuts = time_files([Job(path=str(path)) for path in (self.dense, *paths)], HOW)
        return [cut.ms / dense.ms for cut in cuts], dense


def by_latency(trace, scores, model, example, share, cache):
    """The plan that a budget of latency finds."""
    say = lambda done, total, text: print(f"  {text}", flush=True)  # noqa: E731
    shipping = Shipping(writer(example, [], "fp32"), cache=cache)
    layers = placed_layers(model, example)
    entries, _ = filled(layers, trace, shipping, say)
    sums = AdditiveModel(layers, entries, trace)
    fit = LatencyFit(model, model, sums, scores.numpy(), shipping, Limits(1, 8), say)
    return fit.fit(Budget(latency=share), Target(share)).plan


def as_slow(make, clock, share, tried, save):
    """Bisect what `make` takes until its network takes `share` of the dense one's time; the nearest plan.

    `tried` holds what was timed before, by what `make` took, and is saved after each network.
    """
    low, high, best, known = 0.05, 0.98, None, []
    for _ in range(TRIES):
        plan = make(middle := (low + high) / 2)
        found = tried.get(f"{middle:.5f}")
        if found is None:
            found = next((own for slots, own in known if slots == plan.slots), None)
        if found is None:
            (found,), _ = clock.shares([plan])
        tried[f"{middle:.5f}"] = found
        known.append((plan.slots, found))
        save()
        print(f"  {middle:.3f}: {found:.3f}", flush=True)
        if best is None or abs(found - share) < abs(best[0] - share):
            best = (found, plan)
        if abs(found / share - 1) <= NEAR:
            break
        low, high = (middle, high) if found < share else (low, middle)
    return best[1]


def planned(own, share, cache, done, save, folder):
    """A plan by each method, and what each was timed at once all are there; saved after each."""
    example = own.calibration(8, 0)[0][0][:2]
    model = own.network
    trace = prune.trace(model, example)
    scores = prune.score(trace, model, "l1")
    images = [images for images, _ in own.calibration(IMAGES, 0)]
    made = done.setdefault("methods", {})
    clock = Clock(model, example, folder)
    ways = {
        "uniform": lambda stays: prune.plan(trace, scores, ratio=1 - stays, scope="group", round_to=8, min_kept=8),
        "l1 by MACs": lambda stays: prune.plan(
            trace, scores, budget=Budget(macs=stays), scope="global", round_to=8, min_kept=8
        ),
    }
    for name in METHODS:
        if name in made:
            continue
        print(name, flush=True)
        asked = done.get("asked", share)
        if name.startswith("latency"):
            kept = scores if name.endswith("l1") else prune.score(trace, model, "kfac", data=images, seed=0)
            plan = by_latency(trace, kept, model, example, asked, cache)
        else:
            tried = done.setdefault("tried", {}).setdefault(name, {})
            plan = as_slow(ways[name], clock, asked, tried, save)
        if name == "uniform":
            (done["asked"],), _ = clock.shares([plan])
        costs = plan.costs
        made[name] = {"macs_share": costs["macs_after"] / costs["macs_before"], "plan": json.loads(plan.to_json())}
        save()
    if any("share" not in line for line in made.values()):
        shares, dense = clock.shares([Plan.from_json(json.dumps(made[name]["plan"])) for name in METHODS])
        for name, found in zip(METHODS, shares, strict=True):
            made[name]["share"] = found
        done |= {"dense_ms": dense.ms, "load": list(dense.load)}
        save()


def trained(network, own, steps, rate):
    """Train with the subject's own images: every method sees the same batches in the same order."""
    torch.manual_seed(0)
    batches = [batch for batch in own.calibration(4096, 0) if len(batch[0]) > 1]
    optimizer = torch.optim.AdamW(network.parameters(), rate, weight_decay=0.01)
    plan = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
    network.train()
    for images, labels in itertools.islice(itertools.cycle(batches), steps):
        optimizer.zero_grad()
        F.cross_entropy(network(images), labels).backward()
        optimizer.step()
        plan.step()
    return network.eval()


def accuracy(network, own):
    """Share of the test that is right."""
    return float(answers_right(network, own.judged("test")).float().mean())


def main():
    """Do the part that was asked for, as far as it is not done."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("folder", type=Path)
    options.add_argument("part", choices=("plan", "train"))
    options.add_argument("subject")
    options.add_argument("--share", type=float, default=0.5)
    options.add_argument("--steps", type=int, default=100)
    options.add_argument("--rate", type=float, default=0.002)
    asked = options.parse_args()
    own = subject(asked.subject)
    asked.folder.mkdir(parents=True, exist_ok=True)
    path = asked.folder / f"{own.name}.json"
    done = json.loads(path.read_text()) if path.is_file() else {}

    def save():
        write_text(path, json.dumps(done, indent=1) + "\n")

    if asked.part == "plan":
        with tempfile.TemporaryDirectory() as folder:
            planned(own, asked.share, asked.folder / "latency-table.json", done, save, Path(folder))
        return
    steps, rate = done.setdefault("steps", asked.steps), done.setdefault("rate", asked.rate)
    if "dense" not in done:
        done["dense"] = accuracy(own.network, own)
        save()
    images = [images for images, _ in own.calibration(IMAGES, 0)]
    for name in METHODS:
        line = done["methods"][name]
        if "trained" not in line:
            plan = Plan.from_json(json.dumps(line["plan"]))
            cut = prune.apply(own.network, plan)
            solved, _ = prune.reconstruct(own.network, cut, plan, images, seed=0)
            line |= {"cut": accuracy(cut, own), "solved": accuracy(solved, own)}
            line["trained"] = accuracy(trained(solved, own, steps, rate), own)
            save()
        print(name, *(line[key] for key in ("share", "macs_share", "cut", "solved", "trained")), flush=True)


if __name__ == "__main__":
    main()
