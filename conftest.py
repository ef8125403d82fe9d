"""How the tests are run: in as many processes as there are cores, the longest files first, one thread each.

Benchmarks are timed where ``--benchmark-only`` or ``--benchmark-enable`` asks for that, in one process; elsewhere each
runs once.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# Before torch is loaded: a process of tests computes in one thread, and a thread that waits does not spin.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("GOMP_SPINCOUNT", "5000")

MOST_PROCESSES = 8
"""Each takes about a gigabyte of memory."""
COSTLY = ("zoo", "network", "slow")


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    option = config.option
    if hasattr(option, "benchmark_disable") and not _timed(option):
        option.benchmark_disable = True


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """Runs in several processes unless the caller says how many, names one file, or has something timed or debugged.

    A file is never split, so that what its tests share is made once.
    """
    option = config.option
    if not hasattr(option, "numprocesses") or hasattr(config, "workerinput"):
        return  # no pytest-xdist, or one of its processes
    if option.numprocesses is None and option.dist == "no" and not option.tx:
        alone = _timed(option) or option.usepdb or option.collectonly or _one_file(config)
        option.numprocesses = 0 if alone else min(_cores(), MOST_PROCESSES)
    if option.dist == "no":
        option.dist = "loadfile"
        option.loadscopereorder = False


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Costly files go first, so that no process is left with one when the others are done."""
    if not hasattr(config, "workerinput"):
        return
    weight: dict[Path, int] = {}
    for item in items:
        weight[item.path] = weight.get(item.path, 0) + any(item.get_closest_marker(mark) for mark in COSTLY)
    items.sort(key=lambda item: -weight[item.path])


def _timed(option: object) -> bool:
    return any(getattr(option, f"benchmark_{word}", False) for word in ("only", "enable"))


def _one_file(config: pytest.Config) -> bool:
    named = [argument.partition("::")[0] for argument in config.args]
    return len(set(named)) == 1 and Path(named[0]).is_file()


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
