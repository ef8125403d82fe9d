"""Damaged files, thousands of them, into everything that reads one: a sentence and exit 2 or 3, or acceptance.

Anything else fails, with the smallest file that shows it: a traceback, a hang, a flood of memory, a file written
outside the folder, code that is run. The same seed gives the same files.
"""

from __future__ import annotations

import math
import random
from pathlib import Path

import pytest
from finished import unpack
from fuzz_entries import ENTRIES, SEALS, Entry, make_home
from fuzz_mutations import damaged
from fuzz_smallest import smallest
from fuzz_structures import structures
from fuzz_watching import Verdict, Watched

pytestmark = [
    pytest.mark.heavy,
    pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc to watch a process"),
]

FEW, MANY, PARTS = 1000, 20_000, 10
SHOWN = 400


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """The folder of every entry point."""
    home = tmp_path_factory.mktemp("fuzz")
    make_home(home, unpack(home / ".archive"))
    return home


@pytest.fixture(scope="module")
def watched(home):
    """The processes that carry out cases: forked, and new ones."""
    both = {anew: Watched(home, anew=anew) for anew in (False, True)}
    yield both
    for one in both.values():
        one.stop()


@pytest.fixture(autouse=True)
def counted(watched):
    """Says, where a test's output is shown (``-rA``), what the cases so far took."""
    yield
    used, longest = sum(w.used for w in watched.values()), max(w.longest for w in watched.values())
    added = max(w.peak for w in watched.values()) >> 20
    print(f"{used:.1f} s of the processor so far, at most {longest:.1f} s and {added} MiB for a case")


def counted_for(entry: Entry, cases: int) -> int:
    """How many of so many cases an entry point has."""
    return math.ceil(cases * entry.share / sum(one.share for one in ENTRIES))


def cases(entry: Entry, home: Path, count: int, seed: int) -> list[bytes]:
    """The files of a seed: a fifth are structures where the form has them, the others damaged real files."""
    seeds = entry.seeds(home)
    drawn = structures(entry.form, seeds[0], count // 5, seed)
    found = list(drawn)
    for number in range(len(drawn), count):
        draw = random.Random(f"{entry.name} {seed} {number}")
        found.append(damaged(draw.choice(seeds), entry.form, draw, seeds))
    return found


def tried(entry: Entry, content: bytes, home: Path, watched: dict[bool, Watched]) -> Verdict:
    """Put a case in its file's place, and the file back."""
    folder = home / entry.name
    path = folder / entry.file
    before = {path: path.read_bytes()}
    try:
        path.write_bytes(content)
        if entry.seal is not None:
            about = folder / SEALS[entry.seal]
            before[about] = about.read_bytes()
            entry.seal(folder)
        return watched[entry.anew].run(f"fuzz_calls:{entry.call}", entry.name, entry.also)
    finally:
        for file, held in before.items():
            file.write_bytes(held)


def fuzz(entry: Entry, home: Path, watched: dict[bool, Watched], count: int, seed: int) -> None:
    for number, content in enumerate(cases(entry, home, count, seed)):
        verdict = tried(entry, content, home, watched)
        if verdict.fault is None:
            continue
        kind = verdict.fault.split(":")[0] if "traceback" not in verdict.fault else verdict.fault[:40]
        small = smallest(
            content,
            lambda shorter: (tried(entry, shorter, home, watched).fault or "").startswith(kind),  # noqa: B023
        )
        shown = f"{small[:SHOWN]!r}{f' and {len(small) - SHOWN} more' if len(small) > SHOWN else ''}"
        last = tried(entry, small, home, watched)
        pytest.fail(
            f"{entry.name}, seed {seed}, case {number}: {last.fault or verdict.fault}\n{entry.file} = {shown}\n"
            f"{last.said or verdict.said}",
            pytrace=False,
        )


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_the_files_themselves_are_accepted(entry, home, watched):
    """So that what is damaged is read to its end, not refused for what nobody damaged."""
    verdict = tried(entry, entry.seeds(home)[0], home, watched)
    assert (verdict.fault, verdict.accepted) == (None, True), verdict.said


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_a_damaged_file_is_a_sentence(entry, home, watched):
    fuzz(entry, home, watched, counted_for(entry, FEW), 0)


@pytest.mark.fuzz
@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
@pytest.mark.parametrize("part", range(1, PARTS + 1))
def test_twenty_thousand_damaged_files_are_sentences(entry, part, home, watched):
    fuzz(entry, home, watched, counted_for(entry, MANY // PARTS), part)
