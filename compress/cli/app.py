"""The command ``niwaki``. Each of its commands imports what it needs when it runs, so that some work without torch."""

from __future__ import annotations

import errno
import re
import signal
import sys
import time
from importlib.metadata import version
from io import TextIOWrapper
from typing import Annotated, NoReturn

import typer

from compress.cli.bench import bench, report
from compress.cli.bundle import build, predict, sign, verify
from compress.cli.common import launched, say
from compress.cli.docs import docs
from compress.cli.doctor import doctor
from compress.cli.examples import epilog, page_for
from compress.cli.gate import gate, schema
from compress.cli.history import history
from compress.cli.latency import explain, profile
from compress.cli.lowering import compare, export, quantize
from compress.cli.network import criteria, inspect
from compress.cli.pruning import prune, sensitivity
from compress.cli.run import run
from compress.cli.starting import init
from compress.errors import INTERRUPTED, ElsewhereError, exit_code_of
from compress.validation import worded

app = typer.Typer(
    name="niwaki",
    help="Transfer, prune, distil and deploy a vision network, and measure whether it was worth it.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

for command in (
    *(init, run, inspect, criteria, sensitivity, prune),
    *(export, quantize, compare, predict, build, sign, verify),
    *(gate, bench, profile, explain, schema, history, report, doctor, docs),
):
    app.command(epilog=epilog(command.__name__))(command)


def _print_version(asked: bool) -> None:
    if asked:
        print(f"niwaki {version('niwaki-vision')}")
        raise typer.Exit


@app.callback()
def about(
    shown: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Transfer, prune, distil and deploy a vision network, and measure whether it was worth it."""


_NO_MEMORY = re.compile(
    "can.t allocate memory|not enough memory|out of memory|can.t start new thread|could not create a (primitive|memory)"
    "|failed to map segment",
    re.IGNORECASE,
)


def main() -> NoReturn:
    """Run the command; every failure that a user can cause is one sentence and an exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            # A terminal that lacks a character gets its escape, not a traceback.
            stream.reconfigure(errors="backslashreplace")
    try:
        # Outside standalone mode a typer.Exit comes back as its code.
        code = app(args=sys.argv[1:] or ["--help"], prog_name="niwaki", standalone_mode=False)
    except (typer.Abort, KeyboardInterrupt):
        code = INTERRUPTED
    except SystemExit as error:
        # Typer ends so, with the code of a gate that failed, where nobody reads on (`| head`).
        if not isinstance(error.__context__, BrokenPipeError):
            raise
        code = 128 + signal.SIGPIPE
    except ElsewhereError as error:
        code = error.exit_code
        _outlast()
    except Exception as error:
        # How torch says it, and what may keep a package from being loaded.
        source = error.__cause__ if isinstance(error.__cause__, ImportError) else error
        if isinstance(source, RuntimeError | ImportError) and _NO_MEMORY.search(str(source)):
            error = MemoryError(str(source).splitlines()[0][:160])
        if not isinstance(error, OSError | MemoryError) and not hasattr(error, "exit_code"):
            raise
        if _first_to_fail():
            sentence, more = _message(error), page_for(sys.argv[1:])
            # What names a page says where to read on.
            say(sentence, more="" if "niwaki docs " in sentence else more)
        code = exit_code_of(error)
    if code == INTERRUPTED and launched("RANK", 0) == 0:
        say("stopped; the same command with --resume continues from there.")
    sys.exit(code or 0)


def _first_to_fail() -> bool:
    """Tell whether no other process of the run has said why it ends; else give that one time to end first."""
    # A command that needs no torch is no part of a run, whatever the environment says.
    if launched("WORLD_SIZE", 1) == 1 or "torch" not in sys.modules:
        return True
    from compress.train.ranks import may_speak

    if may_speak():
        return True
    _outlast()
    return False


def _outlast() -> None:
    """Wait a little: the launcher ends all processes when one has ended, and takes the first one's exit code."""
    time.sleep(3)


def _message(error: Exception) -> str:
    """Say in one sentence what went wrong, and the way out."""
    if hasattr(error, "format_message"):  # what the command line parser raises
        said = worded(error.format_message())
        if sys.argv[1:2] == ["run"] and said.startswith("No such option"):
            said += "; a key of the recipe is changed by --set, as in --set distill.epochs=5"
        return f"{said} (niwaki --help lists the commands; niwaki docs reference/cli has their options)"
    if isinstance(error, OSError):
        path = error.filename2 or error.filename  # what was to be replaced says more than what with
        where = f" {path}" if path else ""
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        remedy = "free some space" if full else "check that path and its permissions, or choose another folder"
        return f"{error.strerror or error}{where}; {remedy}."
    if isinstance(error, MemoryError):
        said = f" ({error})" if str(error) else ""
        return f"there is not enough memory{said}; use a smaller batch, smaller images or a larger machine."
    return str(error)
