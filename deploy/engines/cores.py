"""Count the cores that this process may use: its affinity, and the CPU set and quota of its container."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

_ROOT = Path("/")
_LONGEST = 4096  # of what the kernel writes into such a file


def usable_cores(root: Path = _ROOT) -> int:
    """Return how many threads can run at once, at least 1: cores of affinity and CPU set, whole ones of the quota.

    Args:
        root: where ``proc`` and ``sys`` lie.
    """
    own = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    # A kernel takes the CPU set into the affinity; what stands in for one in a sandbox may not.
    own = min([own, *(count for folder in _groups(root, "cpuset") if (count := _cores_in(folder)))])
    quota = cpu_quota(root)
    return own if quota is None else max(1, min(own, int(quota)))


def cpu_quota(root: Path = _ROOT) -> float | None:
    """Return the least CPU quota, in cores, of this process's control group and those above it; None without one.

    Control groups of version 2 say it in ``cpu.max``, those of version 1 in ``cpu.cfs_quota_us`` by
    ``cpu.cfs_period_us``.

    Args:
        root: where ``proc`` and ``sys`` lie.
    """
    found = [quota for folder in _groups(root, "cpu") if (quota := _quota(folder)) is not None]
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


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """Yield the folders of this process's control groups that may hold ``controller``, each before those above it."""
    mounted = root / "sys/fs/cgroup"
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers and controller not in controllers.split(","):
            continue
        # A version-1 controller is mounted under its own name or under that of all that are mounted with it; beside
        # such ones version 2 is mounted as "unified".
        names = (controllers, controller, "cpu,cpuacct") if controllers else ("", "unified")
        for top in dict.fromkeys(mounted / name for name in names):
            folder = top / path.strip("/")
            while folder != top and top in folder.parents:
                yield folder
                folder = folder.parent
            yield top


def _cores_in(folder: Path) -> int:
    """Return how many cores the CPU set of a control group names, 0 where it names none and takes those above."""
    files = ("cpuset.cpus.effective", "cpuset.effective_cpus", "cpuset.cpus")
    said = next((text for name in files if (text := _text(folder / name).strip())), "")
    count = 0
    for part in said.split(",") if said else ():
        first, _, last = part.partition("-")
        if not (first.isdecimal() and (last or first).isdecimal()):
            return 0
        count += max(0, int(last or first) - int(first) + 1)
    return count


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
