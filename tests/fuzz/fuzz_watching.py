"""A process that carries out cases one after another, watched from outside: what it says, takes and leaves.

The process is forked from one that has done the imports (``forkserver``); a new one takes its place after a crash, a
hang or a flood of memory. Seconds are of the processor, so that a busy machine hangs nothing, and memory is what a
request adds to what the process held before it.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import processes

WORKER = Path(__file__).with_name("fuzz_worker.py")
MOST_SECONDS, MOST_WAITING, MOST_BYTES = 10.0, 60.0, 1 << 30
"""Of the processor, of the clock while it sleeps, and of memory added."""
MOST_CASES = 500
"""A process is replaced after so many, lest what one leaves behind adds up."""
MOST_SAID = 1500
"""Characters of a sentence."""
_LOOK, _PAGE, _TICK = 0.004, os.sysconf("SC_PAGE_SIZE"), os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Verdict:
    """How a case ended: ``fault`` is None where it was accepted, or refused in a sentence with exit code 2 or 3."""

    fault: str | None
    said: str
    seconds: float
    added: int
    accepted: bool = False


class Watched:
    """The process that carries out cases in ``home``, whose folders hold what the entry points read.

    Args:
        home: the folder that the process works in; only the folder of a case may change.
        seconds: of the processor, that a case may take.
        waiting: of the clock, that it may sleep.
        memory: bytes that a case may add.
        anew: whether it is a new process and not a forked one, in which OpenVINO does not always go on.
    """

    def __init__(
        self,
        home: Path,
        *,
        seconds: float = MOST_SECONDS,
        waiting: float = MOST_WAITING,
        memory: int = MOST_BYTES,
        anew: bool = False,
    ) -> None:
        self.anew = anew
        self.home, self.seconds, self.waiting, self.memory = home, seconds, waiting, memory
        self.begun = 0  # processes so far
        self._worker: processes.Started | subprocess.Popen | None = None
        self._cases = 0
        self.peak, self.longest, self.used = 0, 0.0, 0.0

    def _added(self, pid: int, before: int) -> int:
        """Bytes since ``before``; too much is read twice, for a child that has yet to begin counts its parent's."""
        added = _memory(pid) - before
        if added > self.memory:
            time.sleep(25 * _LOOK)
            added = min(added, _memory(pid) - before)
        return added

    def run(self, call: str, folder: str, also: Sequence[int] = ()) -> Verdict:
        """Carry out ``module:function`` on a folder of ``home``; ``also`` are exit codes that are no fault."""
        if self._worker is None or self._cases >= MOST_CASES:
            self._start()
        self._cases += 1
        pid = self._worker.pid
        before, start, looked, asleep, used = _memory(pid), _cpu(pid), time.monotonic(), 0.0, 0.0
        os.write(self._asking, (json.dumps({"call": call, "folder": folder}) + "\n").encode())
        held, ended, added = b"", None, 0
        while not held.endswith(b"\n"):
            if select.select([self._answers], [], [], _LOOK)[0]:
                held += os.read(self._answers, 1 << 16)
            elif (ended := self._ended(pid)) is not None:
                break
            added, used = max(added, self._added(pid, before)), _cpu(pid) - start
            # One that waits for the processor does not sleep, however long a busy machine lets it wait.
            now = time.monotonic()
            asleep, looked = asleep + (now - looked) * _asleep(pid), now
            if added > self.memory or used > self.seconds or asleep > self.waiting:
                self.stop()
                what = f"it takes more than {self.memory >> 20} MiB" if added > self.memory else "it hangs"
                return Verdict(what, f"{used:.1f} s of the processor, {added >> 20} MiB added", used, added)
        self.peak, self.longest, self.used = max(self.peak, added), max(self.longest, used), self.used + used
        if ended is not None:
            said = (self._worker.communicate(timeout=60)[1] or "")[-500:]
            self._worker = None
            return Verdict(f"the process ends by itself ({_ending(ended)})", said, used, added)
        answer = json.loads(held)
        return Verdict(_fault(answer, also), answer["said"], used, added, accepted=answer["code"] == 0)

    def stop(self) -> None:
        """End the process, and what it started."""
        if self._worker is not None:
            for pid in [*_below(self._worker.pid)][::-1]:
                os.kill(pid, signal.SIGKILL)
            self._worker.send_signal(signal.SIGKILL)
            self._worker.communicate(timeout=60)
            self._worker = None

    def _start(self) -> None:
        self.stop()
        self.begun += 1
        self._cases = 0
        pipes = [self.home / f".{name}-{self.begun}{self.anew}" for name in ("asking", "answers")]
        for pipe in pipes:
            os.mkfifo(pipe)
        # Opened for both, a pipe waits for no other end.
        self._asking, self._answers = (os.open(pipe, os.O_RDWR) for pipe in pipes)
        room = self.home / ".tmp"
        room.mkdir(exist_ok=True)
        told = processes.ENVIRONMENT | {"TMPDIR": str(room), "NIWAKI_TRUST": "", "HOME": str(room)}
        if self.anew:
            command = [sys.executable, WORKER, *pipes, self.home]
            told["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
            nowhere = subprocess.DEVNULL
            self._worker = subprocess.Popen(command, cwd=self.home, env=told, stdout=nowhere, stderr=nowhere)
        else:
            self._worker = processes.started(*pipes, self.home, cwd=self.home, script=WORKER, env=told)
        end = time.monotonic() + 900
        while not select.select([self._answers], [], [], 0.01)[0]:
            assert self._worker.poll() is None, self._worker.communicate(timeout=60)[1]
            assert time.monotonic() < end, "the process does not get ready"
        assert os.read(self._answers, 100) == b"ready\n"

    def _ended(self, pid: int) -> int | None:
        """The exit code of a process that has ended."""
        return self._worker.poll() if _state(pid) in ("Z", "X", "") else None


def _fault(answer: dict, also: Sequence[int]) -> str | None:
    """What is wrong with an answer."""
    code, said, outside = answer["code"], answer["said"], answer["outside"]
    if answer["trace"]:
        return f"a traceback: {answer['trace'].strip().splitlines()[-1][:200]}"
    if outside:
        return outside[0]
    if code not in (0, 2, 3, *also):
        return f"exit code {code}"
    if code in (2, 3) and not (said.startswith("niwaki: ") and said.count("\n") == 1 and said.endswith("\n")):
        return "no sentence, or more than one"
    if code and len(said) > MOST_SAID:
        return f"a sentence of {len(said)} characters"
    if code == 0 and "Traceback" in said:
        return "a traceback on standard error"
    return None


def _ending(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"


def _below(pid: int) -> Iterator[int]:
    """A process's children and theirs."""
    try:
        own = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return
    for child in map(int, own):
        yield child
        yield from _below(child)


def _memory(pid: int) -> int:
    """Bytes of a process and its children that are no file's: what was mapped of libraries is not counted."""
    total = 0
    for one in (pid, *_below(pid)):
        try:
            fields = Path(f"/proc/{one}/statm").read_text().split()
        except OSError:
            continue
        total += (int(fields[1]) - int(fields[2])) * _PAGE if len(fields) > 2 else 0
    return total


def _cpu(pid: int) -> float:
    """Seconds of the processor that a process and its children took."""
    total = 0
    for one in (pid, *_below(pid)):
        try:
            fields = Path(f"/proc/{one}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        total += sum(map(int, fields[11:15]))
    return total / _TICK


def _asleep(pid: int) -> bool:
    """Whether neither a process nor a child of it works or waits for the processor."""
    return all(_state(one) == "S" for one in (pid, *_below(pid)))


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""
