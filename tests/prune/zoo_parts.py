"""Which part of the zoo a network is in: the light ones of every time, and sevenths of the others, one for each day."""

from pathlib import Path

import pytest

PAGE = Path(__file__).resolve().parents[2] / "docs/zoo.md"
LIGHT = 20.0
"""Millions of parameters below which a network is looked at every time."""
DAYS = 7


def rows():
    """The tables of docs/zoo.md: a row of cells for each network, its name first, its millions of parameters second."""
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    found = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")]
    return [row for row in found if row[0] not in ("model", "---")]


def parts():
    """Network -> ``light``, or the day of its seventh, 0 to 6; the sevenths are about as large as one another."""
    size = {name: float(millions.removesuffix(" M")) for name, millions, *_ in rows()}
    heavy = sorted((name for name in size if size[name] >= LIGHT), key=lambda name: (-size[name], name))
    held, day = dict.fromkeys(range(DAYS), 0.0), {}
    for name in heavy:
        day[name] = min(held, key=held.get)
        held[day[name]] += size[name]
    return {name: day.get(name, "light") for name in size}


PARTS = parts()


def zoo(name):
    """The marker of a network that plain pytest leaves out; of what is no network it is ``light`` too."""
    return pytest.mark.zoo(part=PARTS.get(name, "light"))
