"""Fifteen networks, dense and cut to odd widths, through every file and runtime: works, or a one-line reason.

uv run python -m benchmarks.engines_table --out docs/engines_table.json --markdown docs/engines_table.md

A row is a process of its own with a time limit, so that whatever ends it (a crash in a library, too little memory) is
that row's reason. What the JSON holds already is not run again: take it out to have it measured anew. With
``--minutes`` no row begins after so long, and the next call goes on with what is left.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks.engines_rows import CUTS, NETWORKS, STAGES

PACKAGES = ("niwaki-vision", "torch", "torchvision", "onnx", "onnxruntime", "nncf", "openvino", "tensorrt-rtx-cu13")
HEAD = (
    "network", "pixels", "widths", "export", "ONNX Runtime", "OpenVINO", "fp16", "int8, ONNX Runtime",
    "int8, OpenVINO", "ship on ONNX Runtime", "RTX sm86", "RTX sm120",
)  # fmt: skip


def run_row(
    name: str, cut: str, stages: Sequence[str], *, limit: float, side: int | None = None, control: float = 0
) -> dict[str, Any]:
    """One row in a process of its own; what it did not reach has the reason for it."""
    with tempfile.TemporaryDirectory() as folder:
        found = Path(folder) / "row.jsonl"
        command = [
            sys.executable,
            "-m",
            "benchmarks.engines_rows",
            name,
            cut,
            str(found),
            *stages,
            f"--control={control}",
        ]
        command += [] if side is None else [f"--side={side}"]
        try:
            done = subprocess.run(command, timeout=limit, capture_output=True, text=True, check=False)
            end = f"the process ended with {done.returncode}: {(done.stderr.strip().splitlines() or [''])[-1][:160]}"
        except subprocess.TimeoutExpired:
            end = f"not done within {limit:.0f} s"
        lines = found.read_text().splitlines() if found.is_file() else []
    row: dict[str, Any] = {"network": name, "cut": cut}
    for line in lines:
        row |= json.loads(line)
    if not row.get("export", {"works": True})["works"]:
        end = "no export"
    return row | {stage: {"works": False, "why": end} for stage in stages if stage not in row}


def markdown(found: Mapping[str, Any]) -> str:
    """The table of docs/engines_table.md."""
    machine, versions = found["machine"], found["versions"]
    packages = ", ".join(f"{name} {version}" for name, version in versions.items() if version)
    lines = [
        "# Fifteen networks on four runtimes",
        "",
        f"Written by `python -m benchmarks.engines_table` on {found['date']}: {machine['cpu']}, one thread, batch 1. "
        f"{packages}.",
        "",
        "Weights are random except in rows that say otherwise; BatchNorm statistics are those of the calibration",
        "images. Cut: three tenths of each free group's channels are gone, widths not rounded. Errors are the largest",
        "difference from torch over the largest output, at batches 1, 2 and 5 of real images; dB are signal-to-noise",
        "ratios against torch; for Faster R-CNN both refer to its raw outputs at fixed regions. Times are int8's",
        "divided by fp32's, in turns on the same runtime. RTX engines are built from the fp32 file for that",
        "generation, without a GPU.",
        "",
        "| " + " | ".join(HEAD) + " |",
        "| " + " | ".join(["---"] * len(HEAD)) + " |",
    ]
    return "\n".join([*lines, *("| " + " | ".join(cells(row)) + " |" for row in found["rows"])]) + "\n"


def cells(row: Mapping[str, Any]) -> list[str]:
    """One row of the table."""

    def cell(stage: str, *parts: str) -> str:
        part = row.get(stage)
        if part is None:
            return "not asked for"
        return ", ".join(parts) if part["works"] else str(part["why"])

    int8 = row.get("int8") or {}
    kept = " and ".join(int8.get("kept", ())) or "nothing"
    ours = (
        [f"{int8['snr_db']:.1f} dB", f"{int8['ratio']:.2f} of the time", f"{kept} in fp32"] if int8.get("works") else []
    )
    control = int8.get("control")
    ours += ["after accuracy control"] if control == "done" else [f"accuracy control {control}"] if control else []
    ov = int8.get("openvino_ratio")
    return [
        row["network"] + (f" ({row['weights']})" if row.get("weights") else ""),
        str(row.get("side", "–")),
        row["cut"]
        + (f", {row['odd']} of {row['layers']} no multiples of 8" if row["cut"] == "cut" and "odd" in row else ""),
        cell("export", "works"),
        *(cell(one, f"{(row.get(one) or {}).get('error', 0):.0e}") for one in ("onnxruntime", "openvino")),
        cell("fp16", f"{(row.get('fp16') or {}).get('snr_db', 0):.1f} dB"),
        cell("int8", *ours),
        f"{ov:.2f} of the time" if ov else "–",
        int8.get("ship", "fp32") if int8 else "–",
        *(cell(one, f"works, {(row.get(one) or {}).get('mib', 0):.1f} MiB") for one in ("rtx_sm86", "rtx_sm120")),
    ]


def machine() -> dict[str, str]:
    """What the figures were measured on."""
    info = Path("/proc/cpuinfo")
    text = info.read_text() if info.is_file() else ""
    names = [line.split(":", 1)[1].strip() for line in text.splitlines() if line.startswith("model name")]
    vnni = "with VNNI" if "vnni" in text else "no VNNI"
    return {"cpu": f"{names[0] if names else platform.processor()}, {os.cpu_count()} cores, {vnni}"}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(path.name + ".part")
    temporary.write_text(text)
    temporary.replace(path)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=sorted(NETWORKS), help="these networks alone")
    parser.add_argument("--cuts", nargs="+", choices=CUTS, default=list(CUTS))
    parser.add_argument("--out", type=Path, default=Path("engines_table.json"), help="the rows, as JSON")
    parser.add_argument("--markdown", type=Path, help="the table")
    parser.add_argument("--side", type=int, help="pixels of the images, instead of each network's own")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="after so long no further row begins")
    parser.add_argument("--limit", type=float, default=300, help="seconds a row may take")
    parser.add_argument("--control", type=float, default=0, help="seconds of accuracy control a row may take")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES), help="what to do in each row")
    options = parser.parse_args(arguments)
    old = json.loads(options.out.read_text())["rows"] if options.out.is_file() else []
    rows = {(row["network"], row["cut"]): row for row in old}
    until = time.monotonic() + 60 * options.minutes
    for name in options.only or NETWORKS:
        for cut in options.cuts:
            row = rows.setdefault((name, cut), {"network": name, "cut": cut})
            missing = [stage for stage in options.stages if stage not in row]
            if missing and time.monotonic() > until:
                print(f"{name}, {cut}, and what follows is left for the next call", flush=True)
                return 0
            if missing:
                row |= run_row(name, cut, missing, limit=options.limit, side=options.side, control=options.control)
            order = [(n, c) for n in NETWORKS for c in CUTS if (n, c) in rows]
            found = {
                "date": datetime.now(UTC).date().isoformat(),
                "machine": machine(),
                "versions": {package: _version(package) for package in PACKAGES},
                "rows": [rows[key] for key in order],
            }
            _write(options.out, json.dumps(found, indent=1) + "\n")
            if options.markdown is not None:
                _write(options.markdown, markdown(found))
            print(" | ".join(cells(row)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
