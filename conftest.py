"""How the tests are run: in as many processes as there are cores, the longest files first, one thread each.

Benchmarks are timed where ``--benchmark-only`` or ``--benchmark-enable`` asks for that, in one process; elsewhere each
runs once.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

# Before torch is loaded: a process of tests computes in one thread, and a thread that waits does not spin.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("GOMP_SPINCOUNT", "5000")

MOST_PROCESSES = 8
"""Each takes about a gigabyte of memory."""
COSTS = {"heavy": 1, "fuzz": 10, "faults": 10, "network": 10, "slow": 10, "zoo": 10}
"""Seconds, about, that a test with the marker takes."""
BY_PARAMETER = ("test_prune_zoo.py", "test_prune_detection.py")
"""What the tests of these share belongs to one parameter, so that a file need not stay in one process."""


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


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Callable[..., None]) -> object | None:
    """Files in their order here, each in one process; of the zoo, each network."""
    if config.option.dist != "loadfile":
        return None
    from xdist.scheduler.loadscope import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file, _, test = nodeid.partition("::")
            return f"{file}[{test.partition('[')[2]}" if file.endswith(BY_PARAMETER) else file

    config.option.loadscopereorder = False
    return ByFile(config, log)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """What has no costly marker is quick; costly files go first, so that no process is left alone with one."""
    weight: dict[Path, int] = {}
    for item in items:
        costs = max((cost for mark, cost in COSTS.items() if item.get_closest_marker(mark)), default=0)
        weight[item.path] = weight.get(item.path, 0) + costs
        if not costs:
            item.add_marker("quick")
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: -weight[item.path])


def _timed(option: object) -> bool:
    return any(getattr(option, f"benchmark_{word}", False) for word in ("only", "enable"))


def _one_file(config: pytest.Config) -> bool:
    named = [argument.partition("::")[0] for argument in config.args]
    return len(set(named)) == 1 and Path(named[0]).is_file()


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
