"""Runs niwaki in a process in which something goes wrong: ``faulty_niwaki.py FAULT [ARGUMENT...] -- COMMAND...``."""

from __future__ import annotations

import ctypes
import errno
import itertools
import json
import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from torch.utils.data import dataloader, get_worker_info
from torch.utils.data._utils import fetch

from compress.cli import app
from compress.run import runner
from compress.run.stages import STAGES
from compress.train import checkpoint
from compress.train.tasks import TASKS

AT = Path("at")
"""Where the name of the stage stands in which it goes wrong, once it was begun."""


def in_stage(wanted: str, begin: Callable[[], None], end: Callable[[], None]) -> None:
    """Call one function before a stage, or the preparations or the report, and another after it.

    Where that stage was done before, the next one takes its place.
    """
    do, prepare, order = runner._do, runner.prepare, ("prepare", *(stage.name for stage in STAGES), "report")

    def around(name: str, work: Callable[..., Any], *given: Any) -> Any:
        if order.index(name) < order.index(wanted) or AT.exists():
            return work(*given)
        AT.write_text(name)
        begin()
        try:
            return work(*given)
        finally:
            end()

    runner._do = lambda work, view, stage: around(stage.name, do, work, view, stage)
    runner.prepare = lambda *given: around("prepare", prepare, *given)
    from deploy import report

    write = report.write_report
    report.write_report = lambda folder: around("report", write, folder)


def nothing() -> None:
    pass


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def kill_in(stage: str, share: str, calls: str) -> None:
    """End at a share of the calls of functions that a stage makes, or at its end where it makes fewer.

    ``calls`` is how many each stage makes, as JSON: another one may have taken the stage's place.
    """
    made = json.loads(calls)

    def begin() -> None:
        left = itertools.count(int(float(share) * made.get(AT.read_text(), 20_000)), -1)

        def count(frame: object, event: str, argument: object) -> None:
            if event == "call" and next(left) <= 0:
                kill()

        sys.setprofile(count)

    in_stage(stage, begin, kill)


def count_in(stage: str) -> None:
    """Count the calls of functions in each stage; the numbers go to ``calls``, a line each."""
    del stage
    do, prepare = runner._do, runner.prepare
    made = [0]

    def count(frame: object, event: str, argument: object) -> None:
        made[0] += event == "call"

    def around(name: str, work: Callable[..., Any], *given: Any) -> Any:
        made[0] = 0
        sys.setprofile(count)
        try:
            return work(*given)
        finally:
            sys.setprofile(None)
            with Path("calls").open("a") as file:
                file.write(f"{name} {made[0]}\n")

    runner._do = lambda work, view, stage: around(stage.name, do, work, view, stage)
    runner.prepare = lambda *given: around("prepare", prepare, *given)


def mark_in(stage: str) -> None:
    """Leave the name of a stage in ``at`` when it begins, and wait there for the one who kills."""
    in_stage(stage, nothing, lambda: time.sleep(60))


def clock(seconds: str) -> None:
    """Set the clock of the day forward and back at every look at it."""
    told, looks = time.time, itertools.count()
    time.time = lambda: told() + float(seconds) * (-1) ** next(looks)
    time.time_ns = lambda: int(time.time() * 1e9)


def worker(under_way: str) -> None:
    """Let a data worker die at the next batch once that file, the training's checkpoint, is there; notice soon."""
    dataloader._MultiProcessingDataLoaderIter._try_get_data.__defaults__ = (0.2,)
    real = fetch._MapDatasetFetcher.fetch

    def dying(self: fetch._MapDatasetFetcher, index: Any) -> Any:
        # Images that are prepared once are not read again: it is the batch that a worker is asked for.
        if get_worker_info() is not None and Path(under_way).exists():
            os._exit(9)
        return real(self, index)

    fetch._MapDatasetFetcher.fetch = dying


def no_number(calls: str) -> None:
    """Make the loss NaN after so many steps."""
    task, left = type(TASKS["classification"]), itertools.count(int(calls), -1)
    real = task.loss
    task.loss = lambda *given: real(*given) * (float("nan") if next(left) <= 0 else 1.0)


def refuse(number: str, code: str) -> None:
    """Let the n-th file that is put in its place, and all after it, not be put there: ENOSPC, EROFS."""
    real, left = Path.replace, itertools.count(int(number), -1)

    def replace(self: Path, target: Path) -> Path:
        if next(left) <= 0:
            which = getattr(errno, code)
            raise OSError(which, os.strerror(which), str(self), None, str(target))
        return real(self, target)

    Path.replace = replace


def read_only(stage: str, folder: str) -> None:
    """Take away the right to write to a folder when a stage begins; root has to give up what overrides it."""

    def close() -> None:
        for place in (Path(folder), *(path for path in Path(folder).rglob("*") if path.is_dir())):
            place.chmod(0o555)
        if os.geteuid() == 0:
            drop_override()

    in_stage(stage, close, nothing)


def drop_override() -> None:
    """Give up CAP_DAC_OVERRIDE, by which root writes where nobody may."""
    libc = ctypes.CDLL(None, use_errno=True)
    head = (ctypes.c_uint32 * 2)(0x20080522, 0)
    held = (ctypes.c_uint32 * 6)()
    assert libc.capget(head, held) == 0
    for at in (0, 1):  # effective and permitted
        held[at] &= ~(1 << 1)
    assert libc.capset(head, held) == 0, os.strerror(ctypes.get_errno())


def no_memory(stage: str, megabytes: str) -> None:
    """Leave no more memory than so much when a stage begins."""

    def close() -> None:
        held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (held + (int(megabytes) << 20),) * 2)

    in_stage(stage, close, nothing)


FAULTS = {
    "none": nothing, "kill_in": kill_in, "count_in": count_in, "mark_in": mark_in, "clock": clock, "worker": worker,
    "no_number": no_number, "refuse": refuse, "read_only": read_only, "no_memory": no_memory,
}  # fmt: skip

if __name__ == "__main__":
    place = sys.argv.index("--")
    # Every step leaves its state, so that what fails falls between two of them, or into the writing.
    checkpoint.Checkpoints.__init__.__defaults__ = (0.0,)
    AT.unlink(missing_ok=True)
    FAULTS[sys.argv[1]](*sys.argv[2:place])
    sys.argv = ["niwaki", *sys.argv[place + 1 :]]
    app.main()
