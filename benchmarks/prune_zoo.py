"""Every network of torchvision, half of its channels gone: what stays, what must stay, and why.

uv run python -m benchmarks.prune_zoo --json zoo.json --markdown docs/zoo.md

Networks have buffers but no weights: a trace needs none, so the largest ones take no memory either. What goes is the
first half of each free group; which half makes no difference to any figure here. That a cut equals its mask is not
this table's business but that of `pytest -m zoo`.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

CLASSES = {"classification": 1000, "segmentation": 21, "detection": 91}
PACKAGES = ("niwaki-vision", "torch", "torchvision")
RATIO = 0.5
LIMITS = {"convolutional": 0.35, "transformer": 0.6}
"""The largest share of its body's parameters that a network may keep at `RATIO`."""

HEAD = (
    "model", "parameters", "body kept", "MACs kept", "units", "free groups", "protected", "substituted",
    "own reference", "trace",
)  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One network.

    Args:
        model: its name in torchvision.
        task: classification, segmentation or detection.
        parameters: how many the dense network has.
        body_kept: share of the parameters that stays, the layers that give the outputs not counted on either side.
        macs_kept: share of the multiply-accumulates that stays, of the whole network.
        units: sets of channels that live or die together.
        groups: free groups.
        protected: reason -> number of parameter dimensions with channels that must stay for it.
        substitutions: attention modules that others take the place of.
        not_preserving: share of the free units whose removal is proved against statistics over kept channels.
        trace_seconds: of one trace.
        why: empty, or why there are no figures.
    """

    model: str
    task: str
    parameters: int = 0
    body_kept: float = 1.0
    macs_kept: float = 1.0
    units: int = 0
    groups: int = 0
    protected: Mapping[str, int] | None = None
    substitutions: int = 0
    not_preserving: float = 0.0
    trace_seconds: float = 0.0
    why: str = ""


# Networks --------------------------------------------------------------------------------------------------


def settings(name: str) -> dict[str, Any]:
    """Arguments that give a network all the heads it may have."""
    if name in ("googlenet", "inception_v3"):
        return {"aux_logits": True}
    return {"aux_loss": True} if name.startswith(("fcn", "deeplabv3")) else {}


def kind(name: str) -> str:
    return "transformer" if name.startswith(("vit", "swin", "maxvit")) else "convolutional"


@contextmanager
def unfilled() -> Iterator[None]:
    """Networks built inside have parameters on the meta device, and every buffer as its constructor made it."""
    from torch import nn
    from torch.nn.modules.module import register_module_parameter_registration_hook

    def empty(module: nn.Module, name: str, value: nn.Parameter | None) -> nn.Parameter | None:
        return None if value is None else nn.Parameter(value.detach().to("meta"), value.requires_grad)

    handle = register_module_parameter_registration_hook(empty)
    try:
        yield
    finally:
        handle.remove()


def unmade(name: str, classes: int, **more: Any) -> Any:
    """A network of torchvision in eval mode whose parameters are on the meta device."""
    from compress.models import factory, torchvision
    from compress.models.meta import on_meta

    # Some detectors run a pass while they are made, which takes parameters and buffers on one device.
    with on_meta() if torchvision.names()[name] == "detection" else unfilled():
        return factory.build(f"torchvision:{name}", settings(name) | more, classes).eval()


def outputs(trace: Any) -> set[str]:
    """The parameters of the layers that give the outputs: those in which a channel that is made is a graph output."""
    made = {f"{name}:{dim}": name for (name, dim), role in trace.roles.items() if role == "producer"}
    return {made[slot] for slot, reason in trace.protected.items() if slot in made and "graph output" in reason}


def body_kept(trace: Any, dense: Any, cut: Any) -> float:
    """Share of the parameters that is left in `cut`, without the layers that give the outputs."""
    left = outputs(trace)
    before = sum(p.numel() for name, p in dense.named_parameters() if name not in left)
    return sum(p.numel() for name, p in cut.named_parameters() if name not in left) / before


def measure(name: str) -> Row:
    import torch

    from compress import prune
    from compress.models import torchvision
    from compress.models.detection import example_input, raw_heads

    task = torchvision.names()[name]
    model = unmade(name, CLASSES[task])
    # Two images: in training a BatchNorm on a map of one pixel takes no single one.
    example = example_input(model, 299 if name == "inception_v3" else None, batch=2)
    start = time.perf_counter()
    trace = prune.trace(model, example, forward=raw_heads(model))
    seconds = time.perf_counter() - start
    plan = prune.plan(trace, torch.zeros(trace.units), ratio=RATIO, scope="group")
    free = ~trace.protected_units
    return Row(
        model=name,
        task=task,
        parameters=sum(p.numel() for p in model.parameters()),
        body_kept=body_kept(trace, model, prune.apply(model, plan)),
        macs_kept=plan.costs["macs_after"] / plan.costs["macs_before"],
        units=trace.units,
        groups=len(trace.groups),
        protected=dict(Counter(trace.protected.values()).most_common()),
        substitutions=len(plan.substitutions),
        not_preserving=float((~trace.preserving)[free].mean()) if free.any() else 0.0,
        trace_seconds=seconds,
    )


def tried(name: str) -> Row:
    """`measure`, or a row that says what went wrong."""
    from compress.models import torchvision

    try:
        return measure(name)
    except Exception as error:  # noqa: BLE001  (whatever goes wrong is what there is to say of this network)
        said = (str(error).strip().splitlines() or [""])[0][:160]
        return Row(name, torchvision.names()[name], why=f"{type(error).__name__}: {said}")


def report(rows: list[Row]) -> dict[str, Any]:
    from deploy.environment import machine_info

    return {
        "format": "niwaki-zoo-1",
        "date": datetime.now(UTC).date().isoformat(),
        "machine": machine_info(),
        "versions": {package: metadata.version(package) for package in PACKAGES},
        "settings": {"ratio": RATIO, "scope": "group", "classes": CLASSES},
        "rows": [asdict(row) for row in rows],
    }


# The page --------------------------------------------------------------------------------------------------

PAGE = """\
# Every network of torchvision

<!-- Generated by `python -m benchmarks.prune_zoo --markdown docs/zoo.md`; do not edit. -->

Half of the channels of each free group go (`prune.plan(trace, scores, ratio=0.5, scope="group")`). {count} networks,
{versions}, {date}.

- **parameters**: of the dense network, with {classes}.
  GoogLeNet, Inception, FCN and DeepLab have their auxiliary heads.
- **body kept**: share of the parameters that stays. The body is everything but the output layers, whose
  own output channels are classes, box coordinates and the like and cannot go: for a classifier its last layer (and the
  last one of each auxiliary head), for a segmenter the last convolution of each head, for a detector the last
  convolution or linear layer of each of its heads. A weight whose inputs and outputs are both
  halved keeps a quarter; a depthwise weight, a bias or a norm keeps half.
- **MACs kept**: share of the multiply-accumulates of the whole network, the output layers included.
- **units**: sets of channels that stay or go together. **free groups**: sets of units in the same parameter dimensions.
- **protected**: parameter dimensions with channels that must stay, by reason.
- **substituted**: attention modules replaced by one with an inner width of its own.
- **own reference**: share of the free units that lie under a norm over channels, which after a cut averages over fewer.
  They are proved against a masked network whose norms count only the kept channels.
- **trace**: seconds of one trace on one machine ({cpu}).

`uv run pytest -m zoo` proves that each cut equals its mask, forward and backward in float64, and that it trains;
`niwaki inspect torchvision:NAME` tells more about one network. No convolutional network may keep more than
{convolutional:.0%} of its body and no transformer more than {transformer:.0%}: {exceptions}.
ShuffleNets keep the most: their chained halves and shuffles tie channels of a stage that would only go all together.
"""


def exceeding(rows: list[dict[str, Any]]) -> list[str]:
    """Networks that keep more of their body than `LIMITS` allow."""
    return [row["model"] for row in rows if not row["why"] and row["body_kept"] > LIMITS[kind(row["model"])]]


def cells(row: dict[str, Any]) -> list[str]:
    if row["why"]:
        return [row["model"], *["–"] * 5, row["why"].replace("|", "/"), *["–"] * 3]
    return [
        row["model"],
        f"{row['parameters'] / 1e6:.1f} M",
        f"{100 * row['body_kept']:.1f}%",
        f"{100 * row['macs_kept']:.1f}%",
        f"{row['units']}",
        f"{row['groups']}",
        ", ".join(f"{_short(reason)} ({number})" for reason, number in sorted(row["protected"].items())),
        str(row["substitutions"] or "–"),
        f"{100 * row['not_preserving']:.1f}%" if row["not_preserving"] else "–",
        f"{row['trace_seconds']:.2f} s",
    ]


def markdown(found: dict[str, Any]) -> str:
    rows = sorted(found["rows"], key=lambda row: row["model"])
    above = exceeding(rows)
    text = PAGE.format(
        count=len(rows),
        versions=", ".join(f"{package} {version}" for package, version in found["versions"].items()),
        date=found["date"],
        classes=", ".join(f"{number} classes for {task}" for task, number in found["settings"]["classes"].items()),
        cpu=found["machine"]["cpu"],
        exceptions=f"{', '.join(above)} does not hold to it" if above else "all hold to it",
        **LIMITS,
    )
    rule = "| --- |" + " ---: |" * 5 + " --- |" + " ---: |" * 3
    for task in CLASSES:
        table = ["| " + " | ".join(cells(row)) + " |" for row in rows if row["task"] == task]
        if table:
            text += "\n".join([f"\n## {task.capitalize()}\n", "| " + " | ".join(HEAD) + " |", rule, *table, ""])
    return text


def _short(reason: str) -> str:
    return reason.removeprefix("graph ").removeprefix("meets ").replace("|", "/")


def arguments(line: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.prune_zoo", description=__doc__.splitlines()[0])
    parser.add_argument("--json", nargs="?", const="-", metavar="FILE", help="write JSON to FILE, or print it")
    parser.add_argument("--markdown", nargs="?", const="-", metavar="FILE", help="write the page to FILE, or print it")
    parser.add_argument("--models", help="networks of torchvision, with commas between; all of them by default")
    return parser.parse_args(line)


def main(line: list[str] | None = None) -> int:
    asked = arguments(line)
    from compress.models import torchvision

    known = sorted(torchvision.names())
    names = sorted(asked.models.split(",")) if asked.models else known
    if unknown := [name for name in names if name not in known]:
        print(f"torchvision has no network '{unknown[0]}'; it has for example {', '.join(known[:3])}.", file=sys.stderr)
        return 2
    measure("squeezenet1_1")  # what is slow only once is no network's fault
    rows = []
    for number, name in enumerate(names, 1):
        rows.append(tried(name))
        print(f"[{number:>{len(str(len(names)))}}/{len(names)}]  {'  '.join(cells(asdict(rows[-1])))}", file=sys.stderr)
    found = report(rows)
    for target, text in ((asked.json, json.dumps(found, indent=1) + "\n"), (asked.markdown, markdown(found))):
        if target == "-":
            print(text, end="")
        elif target:
            Path(target).write_text(text, encoding="utf-8")
    return 1 if any(row.why for row in rows) or exceeding(found["rows"]) else 0


if __name__ == "__main__":
    sys.exit(main())
