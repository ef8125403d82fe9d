"""The study's lines as tables in Markdown, with 95 % intervals."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import mean, stdev
from typing import Any

from compress.prune import CRITERIA

T95 = {2: 12.71, 3: 4.303, 4: 3.182, 5: 2.776}
"""Student's t for the mean of so many values."""

Line = Mapping[str, Any]


def tables(lines: Sequence[Line]) -> str:
    """Return one table for each subject, split and share of the MACs, the largest share first."""
    parts = []
    for subject in dict.fromkeys(line["subject"] for line in lines):
        own = [line for line in lines if line["subject"] == subject]
        for split, shown in (("selection", _selection), ("test", _test)):
            judged = [line for line in own if line["split"] == split]
            for macs in sorted({line["macs"] for line in judged}, reverse=True):
                same = [line for line in judged if line["macs"] == macs]
                parts.append(shown(f"{subject} at {100 * macs:.0f} % of the MACs", same))
    return "\n\n".join(parts)


def _selection(subject: str, lines: Sequence[Line]) -> str:
    done = sorted((line for line in lines if "refused" not in line), key=lambda line: -line["solved"]["right"])
    count = done[0]["judged"] if done else 0
    dense = 100 * done[0]["dense"]["right"] / count if done else 0.0
    head = ("criterion", "scope", "scores", "images", "rounds", "MACs", "cut", "solved", "KL cut", "KL solved", "CPU s")
    rows = [
        (
            line["criterion"],
            line["scope"],
            how(line),
            str(line["images"]),
            str(line["rounds"]),
            f"{100 * line['share']:.1f} %",
            drop(line, "cut"),
            drop(line, "solved"),
            f"{line['before']:.2f}",
            f"{line['after']:.3f}",
            f"{line['cpu_seconds']:.0f}",
        )
        for line in done
    ]
    refused = "".join(f"\n- `{line['criterion']}`: {line['refused']}" for line in lines if "refused" in line)
    title = f"**{subject}**, {count} images to choose by, dense {dense:.1f} %; points lost:"
    return f"{title}\n\n{_markdown(head, rows)}" + (f"\n{refused}" if refused else "")


def _test(subject: str, lines: Sequence[Line]) -> str:
    head = ("criterion", "scope", "scores", "cut", "solved", "points lost, solved", "seeds")
    rows, ways = [], [(line["criterion"], line["scope"], how(line)) for line in lines]
    for way in dict.fromkeys(ways):
        own = [line for line, found in zip(lines, ways, strict=True) if found == way and "refused" not in line]
        if own:
            shares = [[100 * line[name]["right"] / line["judged"] for line in own] for name in ("cut", "solved")]
            lost = [100 * (line["dense"]["right"] - line["solved"]["right"]) / line["judged"] for line in own]
            rows.append((mean(lost), (*way, *(over_seeds(values) for values in (*shares, lost)), str(len(own)))))
    first = lines[0]
    dense = 100 * first["dense"]["right"] / first["judged"]
    text = _markdown(head, [row for _, row in sorted(rows)])
    return f"**{subject}**, {first['judged']} test images, dense {dense:.1f} %:\n\n{text}"


def how(line: Line) -> str:
    """Return what made the scores comparable from group to group."""
    return str(line.get("normalize") or CRITERIA[line["criterion"]].normalize)


def drop(line: Line, name: str) -> str:
    """Return the points lost against the dense network, with their interval."""
    lost, error = points_lost(line, name)
    return f"{lost:.1f} ± {error:.1f}"


def points_lost(line: Line, name: str) -> tuple[float, float]:
    """Return the points lost, and half of the 95 % interval of the paired difference."""
    lost, won, count = line[name]["lost"], line[name]["won"], line["judged"]
    difference = (lost - won) / count
    return 100 * difference, 196 * math.sqrt(max((lost + won) / count - difference**2, 0.0) / count)


def over_seeds(values: Sequence[float]) -> str:
    """Return the mean of several seeds with the 95 % interval by Student's t."""
    if len(values) < 2:
        return f"{values[0]:.1f}"
    return f"{mean(values):.1f} ± {T95[len(values)] * stdev(values) / math.sqrt(len(values)):.1f}"


def _markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
