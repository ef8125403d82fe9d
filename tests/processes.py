"""Commands of niwaki, and scripts, in processes of their own that need not import everything first.

Imports take longer than most of what a test does: one process has done them and is forked (``forkserver``). Where there
is no fork, or a test is about starting up, processes are new ones.
"""

from __future__ import annotations

import atexit
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

NIWAKI = (sys.executable, "-c", "from compress.cli.app import main; main()")
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


class Server:
    """The process that is forked; one for each process of tests."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, Path(__file__).with_name("forkserver.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=ENVIRONMENT | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
        assert self._line() == "ready\n", "what niwaki imports cannot be imported"
        atexit.register(self.process.kill)

    def ask(self, **request: object) -> int | None:
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return json.loads(self._line())

    def _line(self) -> str:
        return self.process.stdout.readline()


@cache
def server() -> Server:
    return Server()


class Started:
    """A process at work: a ``subprocess.Popen`` as far as tests need one."""

    def __init__(self, arguments: Sequence[str], cwd: Path, env: Mapping[str, str], script: str | None) -> None:
        self.returncode: int | None = None
        self._said = tempfile.TemporaryDirectory()
        files = {name: str(Path(self._said.name) / name) for name in ("stdout", "stderr")}
        asked = {"arguments": arguments, "cwd": str(cwd), "env": {**env}, "script": script}
        self.pid = server().ask(start=asked | files)

    def poll(self) -> int | None:
        return self._wait(0)

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def communicate(self, timeout: float = 300) -> tuple[str, str]:
        if self._wait(timeout) is None:
            self.send_signal(signal.SIGKILL)
            self._wait(60)
            raise subprocess.TimeoutExpired("niwaki", timeout)
        return tuple((Path(self._said.name) / name).read_text("utf-8") for name in ("stdout", "stderr"))

    def _wait(self, seconds: float) -> int | None:
        if self.returncode is None:
            self.returncode = server().ask(wait=self.pid, seconds=seconds)
        return self.returncode


def started(
    *arguments: object, cwd: Path, script: Path | None = None, env: Mapping[str, str] = ENVIRONMENT
) -> Started | subprocess.Popen:
    """``niwaki ARGUMENTS``, or a script with them, at work in a process of its own."""
    told = [*map(str, arguments)]
    if hasattr(os, "fork"):
        return Started(told, cwd, env, script and str(script))
    command = [*NIWAKI, *told] if script is None else [sys.executable, str(script), *told]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=cwd, env=env, stdout=pipe, stderr=pipe, text=True)


def finished(process: Started | subprocess.Popen, timeout: float = 300) -> subprocess.CompletedProcess:
    """What a started process came to."""
    shown, error = process.communicate(timeout=timeout)
    return subprocess.CompletedProcess("niwaki", process.returncode, shown, error)


def niwaki(
    *arguments: object, cwd: Path, env: Mapping[str, str] = ENVIRONMENT, timeout: float = 300
) -> subprocess.CompletedProcess:
    """``niwaki ARGUMENTS``, carried out by a process that is forked."""
    return finished(started(*arguments, cwd=cwd, env=env), timeout)


def niwaki_anew(
    *arguments: object, cwd: Path, env: Mapping[str, str] = ENVIRONMENT, timeout: float = 300
) -> subprocess.CompletedProcess:
    """``niwaki ARGUMENTS`` as a user starts it."""
    command = [*NIWAKI, *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=timeout, check=False)
