"""Count the cores that this process may use: its affinity, and the CPU quota of its container."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

_ROOT = Path("/")
_LONGEST = 4096  # of what the kernel writes into such a file


def usable_cores(root: Path = _ROOT) -> int:
    """Return how many threads can run at once, at least 1: the cores of the affinity, or the whole ones of the quota.

    Args:
        root: where ``proc`` and ``sys`` lie.
    """
    own = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cpu_quota(root)
    return own if quota is None else max(1, min(own, int(quota)))


def cpu_quota(root: Path = _ROOT) -> float | None:
    """Return the least CPU quota, in cores, of this process's control group and those above it; None without one.

    Control groups of version 2 say it in ``cpu.max``, those of version 1 in ``cpu.cfs_quota_us`` by
    ``cpu.cfs_period_us``.

    Args:
        root: where ``proc`` and ``sys`` lie.
    """
    found = [quota for folder in _groups(root) if (quota := _quota(folder)) is not None]
    return min(found, default=None)


def over_cores(threads: int, root: Path = _ROOT) -> str | None:
    """Say it where more threads are asked for than cores may be used; None where all is well.

    Args:
        threads: asked for; 0 follows the cores.
        root: as above.
    """
    cores = usable_cores(root)
    if threads <= cores:
        return None
    quota = cpu_quota(root)
    why = f", by a CPU quota of {quota:g}" if quota is not None and int(quota) <= cores else ""
    return f"{threads} threads share {cores} usable core(s){why}: they wait for each other; give {cores} or fewer."


def _groups(root: Path) -> Iterator[Path]:
    """Yield the folders of this process's control groups, each followed by those above it."""
    mounted = root / "sys/fs/cgroup"
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers and "cpu" not in controllers.split(","):
            continue
        # A version-1 controller is mounted under its own name or under that of all that are mounted with it.
        tops = [mounted / name for name in (controllers, "cpu", "cpu,cpuacct")] if controllers else [mounted]
        for top in tops:
            folder = top / path.strip("/")
            while folder != top and top in folder.parents:
                yield folder
                folder = folder.parent
            yield top


def _quota(folder: Path) -> float | None:
    """Return the quota that a control group states, in cores."""
    said = _text(folder / "cpu.max").split()
    if not said:
        said = [_text(folder / name).strip() for name in ("cpu.cfs_quota_us", "cpu.cfs_period_us")]
    try:
        quota, period = (int(number) for number in said)
    except ValueError:  # "max", or no file
        return None
    return quota / period if quota > 0 and period > 0 else None


def _text(path: Path) -> str:
    try:
        with path.open(encoding="utf-8") as file:
            return file.read(_LONGEST)
    except (OSError, UnicodeDecodeError):
        return ""  # not Linux, or no such controller
