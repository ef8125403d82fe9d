"""Imports what a run of niwaki imports, once, and forks a process for each request on standard input.

A request is one line of JSON, and so is its answer: ``{"start": {...}}`` gives the number of a process, ``{"wait": pid,
"seconds": s}`` its exit code, or null where it is still at work after so long. Each process is one of its own, with its
own folder, environment and output; only what was imported is shared, and nothing had begun when it was forked.
"""

from __future__ import annotations

import importlib
import json
import os
import runpy
import signal
import sys
import time
from pathlib import Path
from typing import Any

IMPORTED = (
    "compress.cli.app", "compress.run", "compress.run.stages.bundle", "compress.run.stages.export",
    "compress.run.stages.measure", "compress.run.stages.qat", "compress.train", "deploy.report", "onnx", "onnxscript",
    "sklearn.datasets", "torch._dynamo", "torch.export", "torch.onnx", "torchmetrics.detection",
)  # fmt: skip
"""Not onnxruntime and nncf, which are quick to import and then have a thread, which a fork would lose."""


def start(asked: dict[str, Any]) -> int:
    pid = os.fork()
    if pid:
        return pid
    try:
        become(asked)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:  # noqa: BLE001  (as the interpreter would: a traceback and 1)
        sys.excepthook(*sys.exc_info())
        code = 1
    else:
        code = 0
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def become(asked: dict[str, Any]) -> None:
    """Takes on folder, environment, output and arguments, and runs the command or the script."""
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for target, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(asked[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC), target)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(asked["cwd"])
    os.environ.clear()
    os.environ.update(asked["env"])
    # What engines take is not what these tests look at: a second each for every table is most of their time.
    sys.modules["deploy.bench.timing"].benchmark.__kwdefaults__["min_seconds"] = 0.05
    script, sys.argv = asked["script"], [asked["script"] or "niwaki", *asked["arguments"]]
    if script is None:
        sys.modules["compress.cli.app"].main()
    else:
        sys.path.insert(0, str(Path(script).parent))
        runpy.run_path(script, run_name="__main__")


def wait(pid: int, seconds: float) -> int | None:
    end = time.monotonic() + seconds
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() >= end:
            return None
        time.sleep(0.005)


def main() -> None:
    for name in IMPORTED:
        importlib.import_module(name)
    threads = Path("/proc/self/task")
    assert not threads.is_dir() or len(list(threads.iterdir())) == 1, "a thread runs, which a fork would lose"
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    print("ready", file=answers)
    for line in sys.stdin:
        asked = json.loads(line)
        found = start(asked["start"]) if "start" in asked else wait(asked["wait"], asked["seconds"])
        print(json.dumps(found), file=answers)


if __name__ == "__main__":
    main()
