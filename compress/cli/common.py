"""What several commands share: the options of all, what they need to be there, and how they speak."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from compress.errors import MissingError
from compress.models.names import is_untrained
from compress.terminal import Terminal, plain

JsonFlag = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text.")]
QuietFlag = Annotated[bool, typer.Option("--quiet", help="Print nothing but errors.")]

_SHOWN = 1200  # characters of a sentence


def need(command: str, packages: tuple[str, ...], extra: str = "compress") -> None:
    """Raise MissingError, with the extra that brings them, where packages that a command needs are not installed."""
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        what = "the training side" if extra == "compress" else "them"
        raise MissingError(
            f"niwaki {command} needs {', '.join(missing)}, not installed here; install {what} with: "
            f"pip install 'niwaki-vision[{extra}]'."
        )


def search_here() -> None:
    """Make a user's own ``module:function`` importable: an installed command does not search the current folder."""
    here = str(Path.cwd())
    if here not in sys.path:
        # Last: a torch.py that lies about must not become torch.
        sys.path.append(here)


def launched(name: str, otherwise: int) -> int:
    """Return the number that a launcher left in the environment under ``name``, or ``otherwise``."""
    said = os.environ.get(name, "")
    return int(said) if said.isdecimal() else otherwise


def remark_untrained(name: str, weights: str | None, *, quiet: bool) -> None:
    """Say so where a command works on a network with random weights: it computes nothing of use, whatever is proved."""
    if not quiet and is_untrained(name, weights):
        what = "--weights DEFAULT or FILE" if name.startswith("torchvision:") else "--weights FILE"
        say(f"{name} has random weights, as none were named; {what} loads trained ones.")


ForceFlag = Annotated[bool, typer.Option("--force", help="Replace the file if it is there already.")]


def unused(path: Path, *, force: bool = False) -> Path:
    """Return the file that a network is written to; raise DeployError where there is one, and it is to stay."""
    from deploy.errors import DeployError

    if path.is_dir():
        raise DeployError(f"{path} is a folder; name a file by --out.")
    if path.exists() and not force:
        raise DeployError(f"{path} is there already; name another file by --out, or add --force to replace it.")
    return path


def replaceable(path: Path, *endings: str) -> Path:
    """Return the file that a text is written to; raise DeployError for a folder, or a file of another kind."""
    from deploy.errors import DeployError

    if path.is_dir():
        raise DeployError(f"{path} is a folder; name a file in it.")
    if path.exists() and path.suffix.lower() not in endings:
        raise DeployError(f"{path} is there already and is no {' or '.join(endings)} file; name another one.")
    return path


def say(sentence: str, more: str = "") -> None:
    """Print one sentence to standard error, with what a terminal would obey spelt out, and ``more`` behind it.

    What a file says of itself may be long: of more than ``_SHOWN`` characters the middle is left out.
    """
    said = plain(sentence)
    if len(said) > _SHOWN:
        said = f"{said[: 2 * _SHOWN // 3]} ... {said[-_SHOWN // 3 :]}"
    stop = "." if more and not said.endswith((".", "!", "?")) else ""
    Terminal(stderr=True).print(f"niwaki: {said}{stop}{more}", soft_wrap=True, markup=False)
