"""Carries out cases: a request is a call and a folder on a line of JSON, the answer what came of it.

Every call goes through ``niwaki``'s own ``main``, so that what it makes of an error is looked at too. Python tells what
is opened for writing, started and connected to while a case is at work; canaries lie about for code to touch.
"""

from __future__ import annotations

import importlib
import io
import json
import os
import sys
import traceback
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from functools import cache
from pathlib import Path
from typing import Any

import deploy

CANARIES = ("evil.py", "hubconf.py")
RAN = "RAN"
OURS = (str(Path(deploy.__file__).parent), str(Path(__file__).parent))
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_CHANGES = {
    "os.chmod": 1, "os.link": 2, "os.mkdir": 1, "os.remove": 1, "os.rename": 2, "os.rmdir": 1, "os.symlink": 2,
    "os.truncate": 1,
}  # fmt: skip
"""Event of an audit -> how many paths it begins with."""
_STARTS = ("os.exec", "os.posix_spawn", "os.spawn", "os.system", "subprocess.Popen", "pickle.find_class")


class Watch:
    """What Python does outside the folder of a case."""

    def __init__(self, home: Path) -> None:
        self.home, self.seen = home, []
        self.folder: Path | None = None
        sys.addaudithook(self._hear)

    def _hear(self, event: str, given: tuple[Any, ...]) -> None:
        if self.folder is None:
            return
        if event == "open":
            path, _, flags = given
            if isinstance(path, str | bytes) and isinstance(flags, int) and flags & _WRITES:
                self._changed(path)
        elif event in _CHANGES:
            for path in given[: _CHANGES[event]]:
                if isinstance(path, str | bytes):
                    self._changed(path)
        elif event in _STARTS and not _own(event, given):
            self.seen.append(f"code is run: {event} {str(given)[:200]}")
        elif event == "socket.connect":
            self.seen.append(f"a connection is opened: {str(given[1:])[:100]}")
        elif event == "ctypes.dlopen" and str(given[0]).startswith(str(self.home)):
            self.seen.append(f"code is run: the library {given[0]}")

    def _changed(self, path: str | bytes) -> None:
        where = os.path.realpath(os.fsdecode(path))
        allowed = (str(self.folder), str(self.home / ".tmp"), "/dev/null", "/proc/self")
        if not any(where == place or where.startswith(f"{place}/") for place in allowed):
            self.seen.append(f"a file outside the folder is written: {where}")


def _own(event: str, given: tuple[Any, ...]) -> bool:
    """Whether the process that is started is a Python of ours, in which a file is tried."""
    if event != "subprocess.Popen" or given[0] != sys.executable:
        return False
    return any(str(part).startswith(OURS) for part in given[1])


def others(home: Path, folder: Path) -> dict[str, tuple[int, int]]:
    """Size and time of what lies in ``home`` but not in ``folder``."""
    found = {}
    for entry in os.scandir(home):
        if entry.name != folder.name and not entry.name.startswith("."):
            about = entry.stat(follow_symlinks=False)
            found[entry.name] = (about.st_size, about.st_mtime_ns)
    return found


@cache
def command() -> Any:
    """``niwaki`` as its ``app`` makes it anew at each call."""
    import typer

    from compress.cli import app

    return typer.main.get_command(app.app)


def carry_out(call: Callable[[Path], list[str] | None], folder: Path, watch: Watch) -> dict[str, Any]:
    from compress.cli import app

    whole = app.app

    def work(*, args: list[str], **how: Any) -> int | None:
        told = call(folder)
        return None if told is None else command().main(args=told, **how)

    streams = [io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True) for _ in range(2)]
    before, trace, code = others(watch.home, folder), "", None
    app.app, watch.folder = work, folder
    watch.seen = []
    try:
        with redirect_stdout(streams[0]), redirect_stderr(streams[1]):
            app.main()
    except SystemExit as ended:
        code = ended.code
    except BaseException:  # noqa: BLE001  (whatever it is, it is what was looked for)
        trace = traceback.format_exc()
    finally:
        app.app, watch.folder = whole, None
    if others(watch.home, folder) != before:
        watch.seen.append("a file outside the folder is written")
    if (watch.home / RAN).exists():
        watch.seen.insert(0, "code is run: a canary")
        (watch.home / RAN).unlink()
    said = streams[1].buffer.getvalue().decode("utf-8", "replace")
    return {"code": code, "said": said if not trace else trace[-2000:], "trace": trace, "outside": watch.seen[:3]}


def main(asking: Path, answers: Path, home: Path) -> None:
    sys.path.insert(0, str(Path(__file__).parent))
    sys.argv = ["niwaki", "fuzz"]
    sys.dont_write_bytecode = True  # in a fresh checkout a module's first import would count as a file written
    watch = Watch(home)
    with open(answers, "w", buffering=1, encoding="utf-8") as out, open(asking, encoding="utf-8") as requests:  # noqa: PTH123
        importlib.import_module("fuzz_calls").get_ready()
        command()
        print("ready", file=out)
        for line in requests:
            asked = json.loads(line)
            module, _, name = asked["call"].partition(":")
            call = getattr(importlib.import_module(module), name)
            print(json.dumps(carry_out(call, home / asked["folder"], watch)), file=out)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
