"""Networks of other people's libraries, half of their channels gone: whether the cut is exact, and what stays and why.

uv run --with timm --with ultralytics python -m benchmarks.foreign_zoo --json f.jsonl --markdown docs/foreign_zoo.md

Each network has random weights and runs in a process of its own with a time limit; what the JSON lines hold already is
not run again. Libraries that are not installed are left out, and said so.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Iterable
from contextlib import redirect_stdout
from importlib import import_module, metadata, util
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

import compress
import deploy
from benchmarks.foreign_networks import LIBRARIES, WHOLE_WAY, build, in_order, names
from compress import prune
from compress.errors import NiwakiError
from compress.models import factory as factories
from compress.prune.rules import tensors

RATIO = 0.5
SECONDS = 300
EXACT = "exact"
PARITY = 1e-3
"""Largest relative error of a file's outputs against torch's that is taken for rounding."""


def examine(name: str) -> dict[str, Any]:
    """Trace, plan, apply and check one network; the row says what came of it."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    row: dict[str, Any] = {"name": name}
    try:
        model, inputs = build(name)
    except Exception as error:  # noqa: BLE001  (whatever another library raises)
        return row | {"outcome": "not built", "why": _said(error)}
    parameters = sum(p.numel() for p in model.parameters())
    row |= {"type": type(model).__name__, "parameters": parameters}
    start = time.process_time()
    try:
        trace = prune.trace(model.eval(), *inputs)
    except NiwakiError as error:
        return row | {"outcome": "no trace", "why": _said(error)}
    row |= {"trace_seconds": round(time.process_time() - start, 2), "groups": len(trace.groups)}
    row["held"] = _held(trace.protected.values())
    try:
        plan = prune.plan(trace, prune.score(trace, model, "l1"), ratio=RATIO, scope="group")
    except NiwakiError as error:
        return row | {"outcome": "nothing free", "kept": 1.0, "why": _said(error)}
    small = prune.apply(model, plan)
    row["kept"] = round(sum(p.numel() for p in small.parameters()) / parameters, 4)
    try:
        proof = prune.check(model, plan, *inputs)
    except NiwakiError as error:
        return row | {"outcome": "differs", "why": _said(error)}
    row |= {"outcome": EXACT, "error": proof.worst, "unproved": proof.unproved}
    if name in WHOLE_WAY:
        try:
            row["whole_way"] = whole_way(name)
        except Exception as error:  # noqa: BLE001  (the row says which part fails)
            row["whole_way"] = {"why": _said(error)}
    return row


class First(nn.Module):
    """A network's first tensor alone: what a detector decodes, without the raw outputs beside it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return tensors(self.model(images))[0]


def whole_way(name: str) -> dict[str, Any]:
    """Cut a network by its factory, save it, load it, export what was loaded and compare that with torch."""
    factory, arguments, side = WHOLE_WAY[name]
    torch.manual_seed(0)
    x = torch.rand(2, 3, side, side)
    # With the norms' statistics of an image: else what takes the best answers, as an RT-DETR, chooses by rounding.
    model = prune.recalibrated(factories.build(factory, arguments, 10), [x])
    small, plan = prune.shrink(model, x, ratio=RATIO, scope="group", min_kept=1, round_to=1)
    with tempfile.TemporaryDirectory() as folder:
        compress.save(small, Path(folder) / "small", example=x)
        back = compress.load(Path(folder) / "small")
        file = deploy.export(First(back), x, Path(folder) / "m.onnx", output_name="out")
        rows = deploy.parity(First(back), file, x, batches=(2,))
        size = file.stat().st_size
    worst = max(row["max_relative_error"] for row in rows)
    if worst > PARITY:
        return {"factory": factory, "why": f"saved, loaded and exported, but the file's outputs differ by {worst:.1e}"}
    return {"factory": factory, "proof": plan.asked["proof"], "onnx_bytes": size, "parity": worst}


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:240]}"


def _held(reasons: Iterable[str]) -> dict[str, int]:
    """Reasons other than the graph's ends, and how many parameter dimensions each holds, most first."""
    counts: dict[str, int] = {}
    for joined in reasons:
        for reason in joined.split("; "):
            if reason not in ("graph input", "graph output"):
                counts[reason[:100]] = counts.get(reason[:100], 0) + 1
    return dict(sorted(counts.items(), key=lambda pair: -pair[1])[:4])


def run(name: str, seconds: int) -> dict[str, Any]:
    """Examine a network in a process of its own, which begins with what this one has imported."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_examine_for, args=(name, sender))
    child.start()
    sender.close()
    try:
        if not receiver.poll(seconds):
            return {"name": name, "outcome": "too slow", "why": f"more than {seconds} s"}
        return dict(receiver.recv())
    except EOFError:
        child.join()
        return {"name": name, "outcome": "crashed", "why": f"exit code {child.exitcode}"}
    finally:
        child.kill()
        child.join()


def _examine_for(name: str, sender: Connection) -> None:
    warnings.simplefilter("ignore")
    with redirect_stdout(sys.stderr):  # libraries print what they build
        try:
            row = examine(name)
        except Exception as error:  # noqa: BLE001  (a fault of ours, which the table has to show)
            row = {"name": name, "outcome": "crashed", "why": _said(error)}
    sender.send(row)


def page(rows: list[dict[str, Any]]) -> str:
    """The rows as Markdown."""
    built = [row for row in rows if row["outcome"] != "not built"]
    exact = [row for row in built if row["outcome"] == EXACT]
    versions = ", ".join(f"{name} {metadata.version(package)}" for name, package in _installed())
    lines = [
        "# Networks of other libraries",
        "",
        "<!-- Generated by `python -m benchmarks.foreign_zoo --markdown docs/foreign_zoo.md`; do not edit. -->",
        "",
        "Half of the channels of each free group go; weights are random. **exact**: the cut network equals the masked "
        "one in float64, outputs in eval and train mode and gradients; **kept**: share of all parameters.",
        "",
        f"{len(built)} of the {len(list(names()))} networks of `benchmarks/foreign_networks.py` ({versions}): "
        f"**{len(exact)} exact**, "
        f"{sum(row['outcome'] == 'differs' for row in built)} that differ, "
        f"{sum(row['outcome'] == 'nothing free' for row in built)} with nothing free, "
        f"{sum(row['outcome'] in ('no trace', 'crashed', 'too slow') for row in built)} without a trace. "
        f"Median kept {median(row['kept'] for row in exact):.1%}, "
        f"median seconds of a trace {median(row['trace_seconds'] for row in exact):.2f}."
        if exact
        else "Nothing was exact.",
    ]
    whole = [row for row in built if "whole_way" in row]
    lines += (
        ["", "## The whole way", "", "Cut, saved without pickle, loaded, exported, compared with torch:", ""]
        if whole
        else []
    )
    for row in whole:
        done = row["whole_way"]
        said = done.get("why") or f"parity {done['parity']:.0e}, {done['onnx_bytes'] / 1e6:.1f} MB"
        lines.append(f"- `{done.get('factory', row['name'])}`: {said}")
    for library in LIBRARIES:
        own = [row for row in built if row["name"].partition(":")[0] == library]
        if not own:
            continue
        lines += ["", f"## {library}", "", "| network | parameters | outcome | error | kept | trace | held by |"]
        lines += ["| --- | ---: | --- | ---: | ---: | ---: | --- |", *map(_line, own)]
    return "\n".join(lines) + "\n"


def _line(row: dict[str, Any]) -> str:
    error = f"{row['error']:.0e}" if "error" in row else ""
    kept = f"{row['kept']:.1%}" if "kept" in row else ""
    seconds = f"{row['trace_seconds']:.2f} s" if "trace_seconds" in row else ""
    held = row.get("why") or "; ".join(f"{reason} ({count})" for reason, count in row.get("held", {}).items())
    cells = (
        row["name"].partition(":")[2], f"{row.get('parameters', 0) / 1e6:.1f} M", row["outcome"], error, kept, seconds,
        held.replace("|", "/")[:200],
    )  # fmt: skip
    return f"| {' | '.join(cells)} |"


def _installed() -> list[tuple[str, str]]:
    return [(name, package) for name, package in LIBRARIES.items() if util.find_spec(name) is not None]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, default=Path("foreign.jsonl"))
    parser.add_argument("--markdown", type=Path)
    parser.add_argument("--only", default="", help="part of the names")
    parser.add_argument("--seconds", type=int, default=SECONDS, help="for each network")
    given = parser.parse_args()
    os.environ |= {"HF_HUB_OFFLINE": "1", "YOLO_OFFLINE": "1"}
    missing = [name for name in LIBRARIES if util.find_spec(name) is None]
    if missing:
        print(f"not installed, left out: {', '.join(missing)}", file=sys.stderr)
    rows = [json.loads(line) for line in given.json.read_text().splitlines()] if given.json.is_file() else []
    known = {row["name"] for row in rows}
    todo = [n for n in names() if n not in known and given.only in n and n.partition(":")[0] not in missing]
    for library in dict.fromkeys(name.partition(":")[0] for name in todo):
        import_module(library)  # once, not in each process
    for name in in_order(todo):
        rows.append(run(name, given.seconds))
        with given.json.open("a") as file:
            file.write(json.dumps(rows[-1]) + "\n")
        print(f"{name}: {rows[-1]['outcome']} {rows[-1].get('kept', '')}", file=sys.stderr)
    if given.markdown:
        given.markdown.write_text(page(rows))


if __name__ == "__main__":
    main()
